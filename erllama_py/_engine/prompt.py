"""Which prompts a model can take.  Pure.

Asked by the core before it queues a request, and by the model process where it
tokenised the text itself.
"""

from __future__ import annotations

from array import array
from typing import Final

from erllama_py._backends.base import MAX_TEXT_BYTES, BackendInfo

__all__ = ("GENERATING", "MAX_LIST", "MAX_TEXT_BYTES", "refusal")

GENERATING = ("complete", "infer")
"""Modes of requests that want tokens drawn."""

MAX_LIST: Final = 1 << 24
"""Tokens of any list: what is sent to a model process must fit into a frame."""


def refusal(tokens: array[int], info: BackendInfo, mode: str) -> tuple[str, str] | None:
    """Return (reason, detail) for a prompt the model cannot take, else ``None``.

    A prompt that fills the context is taken where nothing is to be generated.
    """
    if not info.generates:
        return "not_supported", "the model embeds, and does not generate"
    if mode == "verify" and not info.verifies:
        return "not_supported", "this backend does not verify"
    if not tokens and mode == "verify":
        return "empty_prefix", "the prefix has no tokens: give at least one"
    if not tokens:
        return "empty_prompt", "the prompt has no tokens: give at least one"
    if info.n_vocab and max(tokens) >= info.n_vocab:
        return (
            "invalid_token",
            f"token {max(tokens)} is not in the model's vocabulary of {info.n_vocab}",
        )
    if len(tokens) + (mode in (*GENERATING, "verify")) > info.n_ctx:
        detail = f"the prompt has {len(tokens)} tokens, the context {info.n_ctx} cells"
        return "context_overflow", f"{detail}: shorten it, or load with a larger n_ctx"
    return None
