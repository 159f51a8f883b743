"""The order of eviction: leaves, the longest unused first.

A heap with at most one entry for each node and each row's logits, pushed when the item
becomes a candidate.  Using an item does not touch the heap: an entry older than its
item's last use is put back when it comes up.  An item that stopped being a candidate
is forgotten when it comes up, and offered again when it becomes one.

A node's time passes to its parent when it goes, so using a leaf counts as using its
chain, without walking it.  Logits come before a node of the same age: a row without
them costs one decoded token, without its tail many.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Final

from erllama_py._cache.row import Logits
from erllama_py._cache.trie import Node

__all__ = ("EvictionQueue",)

_SLACK: Final = 1024
"""Stale entries tolerated on top of as many as there are live ones."""

_LOGITS, _NODE = 0, 1  # by their order at equal age


class EvictionQueue:
    """Candidates for eviction.  Offering what is not one, or is queued, does nothing."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, Node | Logits]] = []
        self._serials = itertools.count()
        self._limit = _SLACK

    def __len__(self) -> int:
        return len(self._heap)

    def offer(self, item: Node | Logits) -> None:
        """Queue an item that may be evicted now."""
        if not item.queued and _may_go(item):
            item.queued = True
            kind, used = (_NODE, item.used) if isinstance(item, Node) else (_LOGITS, item.row.used)
            heapq.heappush(self._heap, (used, kind, next(self._serials), item))
            if len(self._heap) > self._limit:
                self._sweep()

    def pop(self) -> Node | Logits | None:
        """Take the item to evict next, or None where nothing may go."""
        while self._heap:
            used, _, _, item = heapq.heappop(self._heap)
            item.queued = False
            if not _may_go(item):
                continue
            if used == (item.used if isinstance(item, Node) else item.row.used):
                return item
            self.offer(item)
        return None

    def _sweep(self) -> None:
        """Drop the entries of what is gone: while the tier has room, nothing pops them."""
        self._heap = [entry for entry in self._heap if entry[3].live]
        heapq.heapify(self._heap)
        self._limit = 2 * len(self._heap) + _SLACK


def _may_go(item: Node | Logits) -> bool:
    if isinstance(item, Logits):
        return item.live and not (item.pins or item.row.pins)
    return (
        item.live
        and item.parent is not None
        and not item.children
        and not item.pins
        and not any(payload.pins for payload in item.variants.values())
    )
