"""The order of eviction in one tier: by value, leaves first.

An item's value is what it saves, times how often it was used lately, over its bytes.
Uses count half as much after every :data:`HALF_LIFE_NS`.  Then all values decay alike,
their order changes only when something is used, and the logarithm of a value can be
kept as a *score* in units of time: the moment of last use, plus a half-life for every
doubling of the worth at that moment.

A heap holds at most one entry for each item, pushed when the item becomes a candidate.
Using an item does not touch the heap: an entry with an old score is put back when it
comes up.  An item that stopped being a candidate is forgotten when it comes up, and
offered again when it becomes one.

A node's score passes to its parent when it goes, so using a leaf counts as using its
chain, without walking it.  Within a tier a node goes after its children; where it has
no other place left, after all of its children everywhere.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Final

from erllama_py._cache.row import Logits, Row
from erllama_py._cache.tier import RAM, Tier
from erllama_py._cache.trie import NEW, Node

__all__ = ("HALF_LIFE_NS", "EvictionQueue", "used", "used_before", "uses_of", "worth")

HALF_LIFE_NS: Final = 600_000_000_000
"""Ten minutes: a prompt used forty times outlives newer ones by almost an hour."""

LOGITS_WORTH: Final = 0.4
"""A row's logits save one decoded token, a block a prefill of 64; per byte, measured on
a small model, that is less than half."""

_SLACK: Final = 1024
"""Stale entries tolerated on top of as many as there are live ones."""


def used(item: Node | Row, now: int, uses: float) -> None:
    """Score an item anew after a use, or none (0) that only refreshes it."""
    age = max(0, now - item.used)
    item.heat = item.heat * 2.0 ** (-age / HALF_LIFE_NS) + uses
    item.used = max(item.used, now)
    item.score = max(item.score, now + worth(item.heat))


def used_before(item: Node | Row, uses: int) -> None:
    """Score an item of an earlier life, whose last use is known, by its uses there."""
    item.heat = NEW + uses
    item.score = max(item.score, item.used + worth(item.heat))


def uses_of(item: Node | Row) -> int:
    """Return an item's uses for :func:`used_before` in a later life."""
    return max(0, int(item.heat - NEW))


def worth(value: float) -> int:
    """Return a worth as nanoseconds of recency."""
    return int(HALF_LIFE_NS * math.log2(value))


_LOGITS_LESS: Final = worth(LOGITS_WORTH)


class EvictionQueue:
    """Candidates of one tier.  Offering what is not one, or is queued, does nothing."""

    def __init__(self, tier: Tier = RAM) -> None:
        self._tier = tier
        self._heap: list[tuple[int, int, Node | Logits]] = []
        self._queued: set[Node | Logits] = set()
        self._serials = itertools.count()
        self._limit = _SLACK

    def __len__(self) -> int:
        return len(self._heap)

    def offer(self, item: Node | Logits) -> None:
        """Queue an item that may be evicted now."""
        if item not in self._queued and self._may_go(item):
            self._queued.add(item)
            heapq.heappush(self._heap, (_score(item), next(self._serials), item))
            if len(self._heap) > self._limit:
                self._sweep()

    def pop(self) -> Node | Logits | None:
        """Take the item to evict next, or None where nothing may go."""
        while self._heap:
            score, _, item = heapq.heappop(self._heap)
            self._queued.discard(item)
            if not self._may_go(item):
                continue
            if score == _score(item):
                return item
            self.offer(item)
        return None

    def _sweep(self) -> None:
        """Drop the entries of what is gone: while the tier has room, nothing pops them."""
        self._heap = [entry for entry in self._heap if self._may_go(entry[2])]
        self._queued = {entry[2] for entry in self._heap}
        heapq.heapify(self._heap)
        self._limit = 2 * len(self._heap) + _SLACK

    def _may_go(self, item: Node | Logits) -> bool:
        if not item.live:
            return False
        tier = self._tier
        if isinstance(item, Logits):
            return tier in item.places and not item.pins and not item.row.pins
        if item.parent is None or item.under.get(tier):
            return False
        held = [payload for payload in item.variants.values() if tier in payload.places]
        if not held or any(payload.pins for payload in held):
            return False
        if not item.children and not item.pins:
            return not any(payload.pins for payload in item.variants.values())
        return all(len(payload.places) > 1 for payload in held)


def _score(item: Node | Logits) -> int:
    return item.score if isinstance(item, Node) else item.row.score + _LOGITS_LESS
