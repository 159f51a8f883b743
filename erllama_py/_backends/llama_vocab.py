"""Text and tokens: the functions of llama.cpp that any thread may call.

They read the vocabulary only, which nothing changes after the load, and ctypes lets
go of the interpreter meanwhile: the control thread tokenises a long prompt while the
engine thread computes.  What must not happen is that the model is freed below such a
call, so calls are counted and :meth:`Vocab.close` waits for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np

from erllama_py._backends.base import MAX_TEXT_BYTES, MAX_TOKENS, BackendError

__all__ = ("Vocab",)

_FIRST_PIECE_BYTES = 64
"""Longer pieces are rare; the call says how much they need."""


class Vocab:
    """One model's vocabulary."""

    def __init__(self, pointer: Any) -> None:
        self._pointer = pointer
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self._calls = 0
        self._idle = threading.Condition()
        self._closed = False
        self.n_tokens: int = native.llama_vocab_n_tokens(pointer)

    def close(self) -> None:
        """Let no further call begin, and wait for those that run.  Idempotent."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: self._calls == 0)

    def tokenize(self, text: bytes, *, special: bool, parse_special: bool) -> list[int]:
        """See :meth:`erllama_py._backends.base.Backend.tokenize`."""
        if len(text) > MAX_TEXT_BYTES:
            raise BackendError("too_large", f"{len(text)} bytes of text; {MAX_TEXT_BYTES} at most")
        # A byte is a token at worst, with room for BOS and EOS; memory not written to
        # is not used, so the first guess can be generous.
        room = min(len(text) + 8, MAX_TOKENS)
        with self._running():
            count, tokens = self._tokenize(text, room, special, parse_special)
            if -MAX_TOKENS <= count < -room:
                count, tokens = self._tokenize(text, -count, special, parse_special)
        if count < -MAX_TOKENS:  # INT32_MIN, the engine's own overflow, among them
            raise BackendError("too_large", f"more than {MAX_TOKENS} tokens")
        if count < 0:
            raise BackendError("tokenize_failed", f"the engine answered {count}")
        ids: list[int] = tokens[:count].tolist()
        return ids

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """See :meth:`erllama_py._backends.base.Backend.detokenize`."""
        if len(tokens) > MAX_TOKENS:
            raise BackendError("too_large", f"{len(tokens)} tokens; {MAX_TOKENS} at most")
        return b"".join(map(self.piece, tokens))

    def piece(self, token: int) -> bytes:
        """See :meth:`erllama_py._backends.base.Backend.piece`."""
        piece = self._pieces.get(token)
        if piece is None:
            self._check(token)
            with self._running():
                piece = self._pieces[token] = self._piece(token)
        return piece

    def written(self, token: int) -> bytes:
        """See :meth:`erllama_py._backends.base.Backend.written`."""
        self._check(token)
        with self._running():
            return self._piece(token, special=True)

    def is_eog(self, token: int) -> bool:
        """See :meth:`erllama_py._backends.base.Backend.is_eog`."""
        ends = self._ends.get(token)
        if ends is None:
            self._check(token)
            with self._running():
                ends = self._ends[token] = bool(native.llama_vocab_is_eog(self._pointer, token))
        return ends

    def control_texts(self) -> list[bytes]:
        """See :meth:`erllama_py._backends.base.Backend.control_texts`."""
        wanted = native.LLAMA_TOKEN_ATTR_CONTROL | native.LLAMA_TOKEN_ATTR_UNKNOWN
        attributes, text = native.llama_vocab_get_attr, native.llama_vocab_get_text
        with self._running():
            return [
                spelt
                for token in range(self.n_tokens)
                if attributes(self._pointer, token) & wanted
                and (spelt := text(self._pointer, token))
            ]

    def bos_text(self) -> str:
        """Return the written form of the beginning-of-sequence token, or nothing."""
        return self._text(native.llama_vocab_bos(self._pointer))

    def eos_text(self) -> str:
        """Return the written form of the end-of-sequence token, or nothing."""
        return self._text(native.llama_vocab_eos(self._pointer))

    def _text(self, token: int) -> str:
        if token == native.LLAMA_TOKEN_NULL:
            return ""
        text = native.llama_vocab_get_text(self._pointer, token)
        return text.decode(errors="replace") if text else ""

    def _check(self, token: int) -> None:
        if not 0 <= token < self.n_tokens:
            raise BackendError(
                "invalid_token", f"token {token}: the vocabulary has 0 to {self.n_tokens - 1}"
            )

    def _tokenize(
        self, text: bytes, room: int, special: bool, parse_special: bool
    ) -> tuple[int, Any]:
        tokens = np.empty(room, np.int32)
        count: int = native.llama_tokenize(
            self._pointer,
            text,
            len(text),
            tokens.ctypes.data_as(native.llama_token_p),
            room,
            special,
            parse_special,
        )
        return count, tokens

    def _piece(self, token: int, *, special: bool = False) -> bytes:
        size = _FIRST_PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(size)
            # No stripping of a leading space; control tokens render empty unless ``special``.
            count = native.llama_token_to_piece(self._pointer, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        with self._idle:
            if self._closed:
                raise BackendError("released", "the model was unloaded")
            self._calls += 1
        try:
            yield
        finally:
            with self._idle:
                self._calls -= 1
                if not self._calls:
                    self._idle.notify_all()
