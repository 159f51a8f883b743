"""The one batch of a context: arrays that llama.cpp reads and numpy fills.

The engine takes five arrays of the same length.  We own them, as numpy arrays, and the
struct points into them; ``seq_id`` is an array of pointers, each set once to the place
of its token in a sixth array.  So nothing is allocated, and no Python loop runs over
tokens, at any step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np

from erllama_py._backends.base import Row, StepFailed

__all__ = ("Batch",)


class Batch:
    """A reusable batch.

    :param capacity: tokens, the context's ``n_batch``.
    :param n_ctx: cells of the context, the bound of positions.
    :param all_outputs: every token has an output, as a context that embeds demands.
    """

    def __init__(
        self, capacity: int, n_ctx: int, n_vocab: int, *, all_outputs: bool = False
    ) -> None:
        self._n_vocab = n_vocab
        self._all_outputs = all_outputs
        self._token = np.zeros(capacity, np.int32)
        self._pos = np.zeros(capacity, np.int32)
        self._seq = np.zeros(capacity, np.int32)
        self._n_seq = np.ones(capacity, np.int32)
        self._logits = np.zeros(capacity, np.int8)
        self._seq_at = (self._seq.ctypes.data + 4 * np.arange(capacity)).astype(np.uintp)
        self._count_up = np.arange(n_ctx + capacity, dtype=np.int32)
        self.struct: Any = native.llama_batch(
            n_tokens=0,
            token=self._token.ctypes.data_as(native.llama_token_p),
            pos=self._pos.ctypes.data_as(ctypes.POINTER(native.llama_pos)),
            n_seq_id=self._n_seq.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._seq_at.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(native.llama_seq_id))),
            logits=self._logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, rows: Sequence[Row], total: int) -> list[int]:
        """Write checked rows of ``total`` tokens.

        Returns where in the batch each row's logits will be, -1 for those not wanted.

        :raises StepFailed: ``invalid_token``.
        """
        token, pos, seq, logits = self._token, self._pos, self._seq, self._logits
        outputs = []
        at = 0
        try:
            for row in rows:
                count = len(row.tokens)
                last = at + count - 1
                if count == 1:  # a decoding row: plain stores beat four slices
                    token[at] = row.tokens[0]
                    pos[at] = row.pos
                    seq[at] = row.seq
                else:
                    token[at : last + 1] = row.tokens
                    pos[at : last + 1] = self._count_up[row.pos : row.pos + count]
                    seq[at : last + 1] = row.seq
                    logits[at:last] = self._all_outputs or row.every
                logits[last] = row.logits
                outputs.append(last if row.logits else -1)
                at = last + 1
        except (OverflowError, TypeError, ValueError) as error:
            raise StepFailed("invalid_token", str(error)) from None
        # Read as unsigned, a negative id is a large one: one comparison serves both ends.
        highest = int(token[:total].view(np.uint32).max())
        if highest >= self._n_vocab:
            raise StepFailed(
                "invalid_token",
                f"token {np.uint32(highest).astype(np.int32)}: the vocabulary has 0 to "
                f"{self._n_vocab - 1}",
            )
        self.struct.n_tokens = total
        return outputs

    def want_all(self) -> None:
        """Ask for the logits of every token of what was filled in last."""
        self._logits[: self.struct.n_tokens] = 1
