"""What a step with a draft takes, in steps without one.  Pure.

That is a matter of the model, its threads and the processor, not of a request: so it is
known to a context, and a request begins with what others have found out.  As a ratio it
holds for short contexts and long ones, and beside a busy neighbour.

What is not known counts as a plain step, so that it is tried.  What was found is forgotten
after a while: a single slow step would else keep all later ones from being tried.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ("Costs",)

KEPT = 4096
"""Tokens without drafts after which a cost is found out anew."""
_WEIGHT = 0.25
"""Of the newest value."""


class _Cost(NamedTuple):
    steps: float
    at: int


class Costs:
    """Of one context."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], _Cost] = {}
        """By how many sequences decode, and the bits of a row's length: what is alike
        costs alike, and there are few."""
        self._now = 0

    def steps(self, decoding: int, size: int) -> float:
        """Return how many plain steps one takes with a row of ``size`` tokens.

        Where that is not known it is what fewer tokens take, or one.
        """
        for bits in range(size.bit_length(), 0, -1):
            cost = self._known.get((decoding, bits))
            if cost and self._now - cost.at <= KEPT:
                return cost.steps
        return 1.0

    def found(self, decoding: int, size: int, steps: float) -> None:
        """Take in what a step took."""
        key = decoding, size.bit_length()
        before = self._known.get(key)
        if before and self._now - before.at <= KEPT:
            steps = (1 - _WEIGHT) * before.steps + _WEIGHT * steps
        self._known[key] = _Cost(steps, self._now)

    def passed(self) -> None:
        """A token was decoded without a draft."""
        self._now += 1
