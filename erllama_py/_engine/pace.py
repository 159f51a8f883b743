"""How much to draft, and when drafting is worth it.  Pure.

A row of drafted tokens costs more than a row of one, and on a CPU nearly as much as its
tokens one by one.  So what counts is time.  Before a draft is checked it is known what its
step takes (:mod:`~erllama_py._engine.costs`), and how many tokens of this request's last
drafts were right: there is none where these promise less than steps without.  Drafts grow
while they are right.

What promises well may lose all the same, so the time that drafts really took is counted,
too.  Once they have lost that of a few steps they rest, twice as long each time.
"""

from __future__ import annotations

import collections

from erllama_py._engine.costs import Costs

__all__ = ("Pace",)

LOSS = 4
"""Steps without drafts whose time may be lost before drafts rest."""
CREDIT = 8
"""Such steps that gains count for, at most: what was gained long ago is no reason to lose."""
REST, LONGEST_REST = 32, 1024
"""Tokens without drafts, at first and at most."""
SHORTEST = 4
"""Tokens of a draft at first and at least: a shorter row costs nearly as much."""
WORTH = 1.1
"""What a draft has to promise, over steps without: promises are rough."""
LAST = 8
"""Drafts that say what the next one will be: texts change."""
STALE = 256
"""Tokens without any after which they say nothing."""
_WEIGHT = 0.2


class Pace:
    """Of one request.

    :param most: tokens of a draft at most.
    :param costs: what is known of the context.
    :param hopeful: drafts count as right before any was compared; else as wrong.
    """

    def __init__(self, most: int, costs: Costs, *, hopeful: bool = False) -> None:
        self._most = most
        self._costs = costs
        self._length = min(most, SHORTEST)
        self._hopeful = hopeful
        self._last: collections.deque[tuple[int, bool]] = collections.deque(maxlen=LAST)
        """Of the last drafts, how many tokens were right, and whether all were."""
        self._since = 0
        """Tokens since the last of them."""
        self._plain_ns = 0.0
        """A token without drafts, as a running average; 0 until one was seen."""
        self._balance = 0.0
        """Nanoseconds gained since drafts last rested."""
        self._left = 0
        """Tokens still to rest."""
        self._rest = REST

    def length(self, decoding: int, room: int) -> int:
        """Return how many tokens to draft now; 0 while it rests, or where that only costs.

        Where the length that has grown so far is too short to be worth it, a longer one may
        be: a row of two costs nearly as much as one of four.

        :param decoding: sequences that decode in the step.
        :param room: tokens that a draft may have.
        """
        if self._left or not self._plain_ns:
            return 0
        length = min(self._length, room)
        while length > 0:
            if self._promised(length) > WORTH * self._costs.steps(decoding, length + 1):
                return length
            if length >= min(self._most, room):
                break
            length = min(2 * length, self._most, room)
        return 0

    def _promised(self, length: int) -> float:
        """Return how many tokens a step with a draft of so many may give."""
        if not self._last:
            return 1 + length * self._hopeful
        # What was right to its end would have been for longer.
        right = sum(length if whole else min(count, length) for count, whole in self._last)
        return 1 + right / len(self._last)

    def plain(self, took_ns: int, *, alone: bool) -> None:
        """Take in a step without a draft.

        :param alone: no draft was being made beside it, on the same cores perhaps.
        """
        self._costs.passed()
        self._since += 1
        if self._since > STALE:
            self._last.clear()
        before = self._plain_ns
        if alone:
            self._plain_ns = (1 - _WEIGHT) * before + _WEIGHT * took_ns if before else took_ns
        if self._left:
            self._left -= 1
        elif not alone and before:
            self._count(before - took_ns)

    def compared(self, drafted: int, right: int) -> None:
        """Take in that so many tokens of a draft were right, up to the first that was not."""
        whole = right == drafted
        self._since = 0
        self._last.append((right, whole))
        self._length = min(self._most, 2 * self._length if whole else max(SHORTEST, right + 2))

    def drafted(self, drafted: int, right: int, took_ns: int, decoding: int = 1) -> None:
        """Take in a step with a draft of so many tokens, of which so many were right."""
        self.compared(drafted, right)
        if self._plain_ns:
            self._costs.found(decoding, drafted + 1, took_ns / self._plain_ns)
        self._count((right + 1) * self._plain_ns - took_ns)

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
