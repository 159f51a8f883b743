"""What the leases and namespaces of one cache share: lock, index, bytes, counters.

One lock covers index and extents.  Sections under it are short: no hashing of tokens,
no callback, no kernel call that can take long.  A segment is backed and drained with
only its own bookkeeping locked, before and after.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from erllama_py._cache.counters import Counters
from erllama_py._cache.directory import Directory
from erllama_py._cache.filetier import FileTier
from erllama_py._cache.index import Index
from erllama_py._cache.ram import Extent, RamTier, back, drain
from erllama_py._cache.row import Logits, Row
from erllama_py._cache.tier import RAM, Tier
from erllama_py._cache.trie import Node, Payload

if TYPE_CHECKING:
    from erllama_py._cache.mover import Mover
    from erllama_py._cache.namespace import Namespace

__all__ = ("Shared",)

_BATCH: Final = 32
"""Evictions under one hold of the lock: some 0.2 ms."""

_NO_GROWTH_NS: Final = 10_000_000_000
"""How long to do without more memory after the system refused some."""


class Shared:
    """Internal to the package; :class:`~erllama_py._cache.store.Cache` is the door."""

    def __init__(
        self, quota: int, block: int, segment_bytes: int, clock: Callable[[], int]
    ) -> None:
        self.lock = threading.Lock()
        self.index = Index(block)
        self.numbers = itertools.count().__next__
        """Numbers of segments and files: plans name either by them."""
        self.ram = RamTier(quota, segment_bytes=segment_bytes, numbers=self.numbers)
        self.files: list[FileTier] = []
        """The file tiers, fastest first."""
        self.mover: Mover | None = None
        """Who writes to them; None where there are none."""
        self.counters = Counters()
        self.clock = clock
        self.idle_since: float | None = time.monotonic()
        """When the last request ended, in seconds; None while there are any."""
        self._leases = 0
        self.closed = False
        self._resizing = threading.Lock()
        """Held by whoever adds or drains segments; taken before ``lock``, never inside."""
        self._no_growth_before = 0

    # -- with the lock held -----------------------------------------------------------

    def settle(self) -> tuple[int, int]:
        """Free what the index gave up; return (rows, bytes) that went."""
        index = self.index
        if index.heads.changed:
            index.heads.trim({RAM: self.ram.quota, **{tier: tier.quota for tier in self.files}})
        rows, index.rows_gone = index.rows_gone, 0
        freed, index.freed = index.freed, []
        nbytes = 0
        for tier, place in freed if not self.closed else ():
            if tier is RAM:
                self.ram.free(place)
            elif isinstance(tier, FileTier) and self.mover is not None:
                self.mover.free(tier, place)
            if tier.ours:
                nbytes += place.size
        if rows:
            self.counters.add("evictions", rows)
        self.counters.gauge("bytes_ram", self.ram.used)
        return rows, nbytes

    def stored(self, namespace: Namespace, item: Payload | Row | Logits) -> None:
        """Have something new written to the namespace's file tier."""
        if self.mover is not None:
            self.mover.stored(namespace, item)

    def began(self) -> None:
        """Count a request that begins."""
        self._leases += 1
        self.idle_since = None

    def ended(self) -> None:
        """Count one that is over."""
        self._leases -= 1
        if not self._leases:
            self.idle_since = time.monotonic()

    def give_back(self, extent: Extent) -> None:
        """Free an extent the index never took."""
        self.index.freed.append((RAM, extent))

    # -- without it -------------------------------------------------------------------

    def reserve(self, nbytes: int) -> Extent | None:
        """Grant an extent, growing or else evicting; None where neither is possible."""
        if nbytes > self.ram.quota:
            return None
        while True:
            with self.lock:
                if self.closed:
                    return None
                extent = self._take(nbytes)
                unsaved: list[Node | Logits] = []
                if extent is None and not self._by_resizing(nbytes):
                    extent, stuck, unsaved = self._evict_for(nbytes)
                    if stuck:
                        return None
                resize = extent is None and not unsaved and self._by_resizing(nbytes)
            if unsaved:
                self._demote(unsaved)
            if resize:
                extent = self._resize(nbytes)
            if extent is not None:
                return extent

    def _take(self, nbytes: int) -> Extent | None:
        extent = self.ram.take(nbytes)
        self.counters.gauge("bytes_ram", self.ram.used)
        return extent

    def _by_resizing(self, nbytes: int) -> bool:
        """Whether more memory, not eviction, is the way to room for ``nbytes``."""
        if self.ram.changing:
            return True
        if self.clock() < self._no_growth_before:
            return False
        return self.ram.room_for(nbytes) or self.ram.room_by_swap(nbytes)

    def _evict_for(self, nbytes: int) -> tuple[Extent | None, bool, list[Node | Logits]]:
        """Evict a few from memory.

        Returns the grant if that was enough, whether nothing is left to evict, and what
        should go to a file first instead.
        """
        index, unsaved = self.index, list[Node | Logits]()
        for _ in range(_BATCH):
            if self._by_resizing(nbytes):
                break
            item = index.queue(RAM).pop()
            if item is None:
                return None, not unsaved, unsaved
            if self.mover is not None and self.mover.would_save(item):
                unsaved.append(item)
                continue
            index.give_up(item, RAM)
            self.settle()
            extent = self._take(nbytes)
            if extent is not None:
                for kept in unsaved:
                    index.queue(RAM).offer(kept)
                return extent, False, []
        return None, False, unsaved

    def _demote(self, items: list[Node | Logits]) -> None:
        """Write to a file what memory has no room for; where that fails, let it go."""
        assert self.mover is not None
        self.mover.save_now(items)
        with self.lock:
            for item in items:
                self.index.queue(RAM).offer(item)

    def _resize(self, nbytes: int) -> Extent | None:
        """Add a segment for ``nbytes``, or else drain idle ones that stand in its way."""
        with self._resizing:
            with self.lock:
                extent = None if self.closed else self._take(nbytes)
                if extent is not None or self.closed:
                    return extent  # someone else's new segment, while this one waited
                segment = self.ram.promise(nbytes)
            if segment is None:
                self._drain_idle()
                return None
            try:
                back(segment)
            except OSError:
                with self.lock:
                    self.ram.withdraw(segment)
                    self._no_growth_before = self.clock() + _NO_GROWTH_NS
                return None
            with self.lock:
                self.ram.adopt(segment)
                return self._take(nbytes)

    def release_idle(self) -> int:
        """Give the pages of idle segments back to the system; return how many bytes."""
        with self._resizing:
            return self._drain_idle()

    def _drain_idle(self) -> int:
        with self.lock:
            retired = [one for one in self.ram.idle() if self.ram.retire(one)]
        released = 0
        for one in retired:
            if drain(one):
                with self.lock:
                    self.ram.withdraw(one)
                released += one.size
            else:
                with self.lock:
                    self.ram.adopt(one)
        return released

    def close(self) -> None:
        """Give all memory up.  Later reservations are refused, later frees ignored."""
        with self._resizing, self.lock:
            self.closed = True
            self.ram.close()
            self.counters.gauge("bytes_ram", 0)

    def evict(self, target: int | None, tiers: Sequence[Tier]) -> tuple[int, int]:
        """Evict until ``target`` bytes are free, or all that may go; return (rows, bytes)."""
        rows = nbytes = 0
        for tier in tiers:
            more = True
            while more and (target is None or nbytes < target):
                with self.lock:
                    for _ in range(_BATCH):
                        more = (target is None or nbytes < target) and self.index.evict(tier)
                        gone, freed = self.settle()
                        rows, nbytes = rows + gone, nbytes + freed
                        if not more:
                            break
        return rows, nbytes

    def measure_files(self) -> None:
        """Set the gauges of the file tiers."""
        held = {"ram_file": 0, "disk": 0}
        for tier in self.files:
            held[tier.kind] += tier.directory.used
        self.counters.gauge("bytes_ramfile", held["ram_file"])
        self.counters.gauge("bytes_disk", held["disk"])

    def directory_of(self, tier: Tier) -> Directory:
        """Return the files behind a file tier, ours or borrowed."""
        return next(one.directory for one in self.files if tier in (one, one.borrowed))

    @property
    def tiers(self) -> list[Tier]:
        """All tiers whose content is ours, fastest first."""
        return [RAM, *self.files]
