"""How much to draft, and when drafting is worth it.  Pure.

A row of drafted tokens costs more than a row of one, and on a CPU nearly as much as its
tokens one by one.  So what counts is time: a step with a draft has gained what its tokens
would have taken without, and cost what it took.  Once drafts have lost the time of a few
steps they rest, twice as long each time; so a request whose drafts are no good loses those
few steps in many.
"""

from __future__ import annotations

__all__ = ("Pace",)

LOSS = 4
"""Steps without drafts whose time may be lost before drafts rest."""
CREDIT = 8
"""Such steps that gains count for, at most: what was gained long ago is no reason to lose."""
REST, LONGEST_REST = 32, 1024
"""Tokens without drafts, at first and at most."""
SHORTEST = 4
"""Tokens of a draft at first and at least: a shorter row costs nearly as much."""
_WEIGHT = 0.2


class Pace:
    """Of one request.

    :param most: tokens of a draft at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._length = min(most, SHORTEST)
        self._plain_ns = 0.0
        """A token without drafts, as a running average; 0 until one was seen."""
        self._balance = 0.0
        """Nanoseconds gained since drafts last rested."""
        self._left = 0
        """Tokens still to rest."""
        self._rest = REST

    @property
    def length(self) -> int:
        """Tokens to draft now; 0 while it rests."""
        return 0 if self._left else self._length

    def plain(self, took_ns: int, *, alone: bool) -> None:
        """Take in a step without a draft.

        :param alone: no draft was being made beside it, on the same cores perhaps.
        """
        before = self._plain_ns
        if alone:
            self._plain_ns = (1 - _WEIGHT) * before + _WEIGHT * took_ns if before else took_ns
        if self._left:
            self._left -= 1
        elif not alone and before:
            self._count(before - took_ns)

    def drafted(self, drafted: int, accepted: int, took_ns: int) -> None:
        """Take in a step of so many drafted tokens, of which so many were right."""
        if accepted == drafted:
            self._length = min(self._most, 2 * self._length)
        else:
            self._length = min(self._most, max(SHORTEST, accepted + 2))
        self._count((accepted + 1) * self._plain_ns - took_ns)

    def nothing(self) -> None:
        """There was no draft to be had: ask again later."""
        self._pause()

    def _count(self, gained_ns: float) -> None:
        most = CREDIT * self._plain_ns
        self._balance = min(self._balance + gained_ns, most)
        if self._balance == most:
            self._rest = REST
        if self._balance < -LOSS * self._plain_ns:
            self._pause()

    def _pause(self) -> None:
        self._left, self._rest = self._rest, min(2 * self._rest, LONGEST_REST)
        self._balance = 0.0
