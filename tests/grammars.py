"""The engine's own grammar sampler on a model of noise: what it says, and what it takes.

A vocabulary of all bytes and some pairs: every way to break a character is in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from erllama_py._backends import open_backend
from erllama_py._backends.base import Backend, BackendConfig, ContextOptions, SamplerOptions
from tests.models import mamba_path

TOKENS = 300
CLOSING = {b'"': 4.0, b"]": 4.0, b"}": 5.0, b",": 2.0}


class Speaker:
    """Draws by a grammar from noise, pushed a little towards what closes things."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        pieces = [backend.piece(token) for token in range(backend.info.n_vocab)]
        self._byte = {piece: token for token, piece in enumerate(pieces) if len(piece) == 1}
        self._ends = [token for token in range(len(pieces)) if backend.is_eog(token)]
        self._pull = np.array([CLOSING.get(piece, 0.0) for piece in pieces], np.float32)
        self._pull[self._ends] = 6

    def say(self, grammar: bytes, seed: int, *, pull: Any = None) -> bytes | None:
        """Return a reply; ``None`` where it did not end.

        :param pull: what is added to the noise, more and more, for each token.
        """
        pull = self._pull if pull is None else pull
        noise = np.random.default_rng(seed)
        sampler = self.backend.new_sampler(
            SamplerOptions(grammar=grammar, visible=True, temperature=1.0, seed=seed)
        )
        reply = b""
        try:
            for at in range(TOKENS):
                logits = noise.standard_normal(len(self._pull), np.float32) * 3
                token = self._sample(sampler, logits + pull * (0.5 + at / 40))
                if self.backend.is_eog(token):
                    return reply
                reply += self.backend.piece(token)
        finally:
            sampler.close()
        return None

    def takes(self, grammar: bytes, reply: bytes) -> bool:
        """Whether a reply of these bytes, which then ends, is one of the grammar's."""
        sampler = self.backend.new_sampler(SamplerOptions(grammar=grammar, visible=True))
        try:
            for token in [self._byte[bytes([byte])] for byte in reply] + self._ends[:1]:
                logits = np.zeros(len(self._pull), np.float32)
                logits[token] = 50
                if self._sample(sampler, logits) != token:
                    return False
        finally:
            sampler.close()
        return True

    def _sample(self, sampler: Any, logits: Any) -> int:
        return self.backend.sample_stored(sampler, memoryview(logits.astype(np.float32)).cast("B"))


@contextmanager
def speaker() -> Iterator[Speaker]:
    """Open one."""
    backend = open_backend(
        BackendConfig("llama", mamba_path(), context=ContextOptions(n_ctx=64, n_threads=1))
    )
    try:
        yield Speaker(backend)
    finally:
        backend.close()
