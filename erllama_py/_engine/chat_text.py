"""A rendered chat's tokens, in the model process."""

from __future__ import annotations

from erllama_py._backends.base import Backend
from erllama_py._templates.controls import Controls

__all__ = ("chat_tokens",)


def chat_tokens(backend: Backend, text: bytes, mark: str = "") -> list[int]:
    """Tokenise a rendered chat: its control tokens are such, but where a mark is.

    What the vocabulary puts around every text (BOS, in some EOS) is there once, whether
    or not the template wrote it, too.

    :param mark: see :mod:`erllama_py._templates.controls`; empty: there is none.
    :raises BackendError: as ``Backend.tokenize``.
    """
    if mark:
        spelt = (one.decode(errors="replace") for one in backend.control_texts())
        pieces = Controls(spelt).pieces(text.decode(errors="surrogateescape"), mark)
    else:
        pieces = []
    tokens: list[int] = []
    for piece, special in pieces:
        data = piece.encode(errors="surrogateescape")
        tokens += backend.tokenize(data, special=False, parse_special=special)
    if not mark:
        tokens = backend.tokenize(text, special=False, parse_special=True)
    before, after = _around(backend)
    if tokens[: len(before)] == before:
        before = []
    if after and tokens[-len(after) :] == after:
        after = []
    return [*before, *tokens, *after]


def _around(backend: Backend) -> tuple[list[int], list[int]]:
    """Return what the vocabulary puts before and behind every text."""
    inner = backend.tokenize(b"a", special=False, parse_special=False)
    outer = backend.tokenize(b"a", special=True, parse_special=False)
    extra = len(outer) - len(inner)
    for start in range(extra + 1):
        if outer[start : start + len(inner)] == inner:
            return outer[:start], outer[start + len(inner) :]
    return [], []
