"""Log probabilities of what was drawn, and of what might have been.  Pure.

They are the model's own: the softmax of its logits, before penalties, temperature, top-k and
a grammar have their say.  So a token that a grammar forced can be an unlikely one.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

__all__ = ("FLOOR", "Scores", "scores")

FLOOR: Final = -9999.0
"""Stands for the logarithm of nothing, which neither Erlang nor JSON can write."""


class Scores(NamedTuple):
    """Of one position."""

    logprob: float
    """Of the token that was drawn."""
    top: list[tuple[int, float]]
    """The likeliest tokens and their log probabilities, likeliest first; of equals the
    lowest id first."""


def scores(logits: bytes | bytearray | memoryview, token: int, count: int) -> Scores:
    """Return the log probability of a token, and of the ``count`` likeliest.

    :param logits: float32, one for each token of the vocabulary.
    """
    row = np.frombuffer(logits, np.float32)
    highest = row.max()
    # A quarter of a millisecond for 49 000 tokens; the sum in 64 bits, for its many terms.
    total = float(highest) + math.log(np.exp(row - highest).sum(dtype=np.float64))

    def logprob(one: int) -> float:
        return max(FLOOR, float(row[one]) - total)

    likeliest: list[int] = []
    if count:
        least = np.partition(row, -count)[-count] if count < len(row) else -np.inf
        likeliest = np.flatnonzero(row >= least).tolist()
        likeliest.sort(key=lambda one: (-row[one], one))
    return Scores(logprob(token), [(one, logprob(one)) for one in likeliest[:count]])
