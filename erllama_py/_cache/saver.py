"""Writing what is in memory to a file tier, in batches between two syncs.

A chain is written from its front: a node only after its parent, so that what a file
tier holds can be reached from position 0 when it is read in again.

Room is set aside first, by evicting from the tier if need be.  What finds none, or cannot
be written, is counted and stays where it is.
"""

from __future__ import annotations

import collections
import logging
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from erllama_py._cache.blockfile import Entry
from erllama_py._cache.entries import block_entry, row_entry
from erllama_py._cache.filetier import FileTier
from erllama_py._cache.ram import enter
from erllama_py._cache.row import Logits, Row
from erllama_py._cache.tier import RAM
from erllama_py._cache.trie import Blob, Node, Payload

if TYPE_CHECKING:
    from erllama_py._cache.blockfile import Spot
    from erllama_py._cache.namespace import Namespace
    from erllama_py._cache.shared import Shared

__all__ = ("BATCH_BYTES", "Item", "Job", "Saver")

Item = Payload | Row | Logits
"""What is written."""

BATCH_BYTES: Final = 32 << 20
"""Written between two syncs."""

_SILENCE_S: Final = 60.0
"""Between two warnings that something could not be saved."""

_EVICTED_PART: Final = 64
"""A full tier gives up this part of its quota at a time."""

_EVICTED_MOST: Final = 32
"""Evictions under one hold of the lock."""

_log = logging.getLogger(__name__)


class Job(NamedTuple):
    """Something to write."""

    space: Namespace
    item: Item
    stored: float
    """When it came, in seconds of the monotonic clock."""


class Write(NamedTuple):
    """Something being written: pinned, and with room set aside."""

    item: Item
    spot: Spot
    entry: Entry


class Saver:
    """Writes, and frees what was written.

    One thread at a time; but whoever holds the cache's lock may call :meth:`free`,
    :meth:`drop` and :meth:`refused`.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._frees: collections.deque[tuple[FileTier, Spot]] = collections.deque()
        self._silent_until = 0.0
        self._refused: set[Item] = set()
        """What could not be written when memory had to be freed."""
        self.dropped = 0
        """Payloads and rows that were not written for want of room."""

    # -- places that are free again ------------------------------------------------------

    def free(self, tier: FileTier, place: Any) -> None:
        """Have a place in a file freed.  The cache's lock is held."""
        self._frees.append((tier, place))

    @property
    def frees(self) -> bool:
        """Whether places wait to be freed."""
        return bool(self._frees)

    def free_all(self) -> None:
        """Free them."""
        freed: dict[FileTier, list[Spot]] = {}
        while self._frees:
            tier, spot = self._frees.popleft()
            freed.setdefault(tier, []).append(spot)
        for tier, spots in freed.items():
            tier.directory.free(spots)
        if freed:
            self._shared.measure_files()

    # -- writing ---------------------------------------------------------------------------

    def demote(self, jobs: list[Job]) -> None:
        """Write what memory has no room for; remember what could not be."""
        self._refused = {item for item in self._refused if item.live}
        self._refused.update(job.item for job in jobs)
        self.write(jobs)

    def refused(self, item: Item) -> bool:
        """Whether something could not be written when memory had to be freed."""
        return item in self._refused

    def drop(self, item: Item) -> None:
        """Count something that is not written."""
        self.dropped += 1
        if isinstance(item, Row):
            self._shared.counters.incr("saves_dropped")

    def write(self, jobs: list[Job]) -> None:
        """Write all that is not there yet, and what that hangs on."""
        batch: list[Write] = []
        coming: set[Any] = set()
        """The items of the batch."""
        size = 0
        tier: FileTier | None = None
        stuck: set[Any] = set()
        for job in jobs:
            home = job.space.home
            if home is None:
                continue
            if batch and (home is not tier or size >= BATCH_BYTES):
                assert tier is not None
                self._commit(tier, batch)
                batch, coming, size = [], set(), 0
            tier = home
            for item in self._with_what_it_needs(job.item, home, coming):
                if item in stuck:
                    break  # nor can be what builds on it
                write = self._prepare(job._replace(item=item), home, coming)
                if write is not None:
                    batch.append(write)
                    coming.add(item)
                    size += write.entry.nbytes
                elif item is not job.item:
                    stuck.add(item)
        if batch and tier is not None:
            self._commit(tier, batch)
        self._shared.measure_files()

    def _with_what_it_needs(self, item: Item, tier: FileTier, coming: set[Any]) -> list[Any]:
        """Return an item behind the blobs it hangs on that are not in the tier yet.

        A row comes before the block that its tail was replaced by; a block may follow one
        that the tier had to evict.
        """
        with self._shared.lock:
            if not item.live:
                return []
            node: Node | None
            if isinstance(item, Payload):
                node = item.node.parent
            else:
                node = (item if isinstance(item, Row) else item.row).node
            missing: list[Node] = []
            while node is not None and node.parent is not None:
                if self._ends(node, tier, coming):
                    break
                missing.append(node)
                node = node.parent
            above = [one for node in reversed(missing) for one in node.variants.values()]
            return [*above, item]

    def _prepare(self, job: Job, tier: FileTier, coming: set[Any]) -> Write | None:
        """Set room aside for one item and copy its bytes there; None if it need not, or cannot."""
        item = job.item
        with self._shared.lock:
            entry = self._entry(item, tier, coming)
            if entry is None:
                return None
            if isinstance(item, Blob):
                item.pins += 1
            data = self._bytes(item)
        spot = self._room(job.space, tier, entry.nbytes)
        if spot is None:
            self._refuse(item, tier, f"{entry.nbytes} bytes are more than its quota has left")
            return None
        try:
            at = spot.offset
            if isinstance(item, Blob):
                enter(data[-1], item.extent.offset)
            for part in data:
                tier.directory.write(spot._replace(offset=at), part)
                at += len(part)
        except OSError as error:
            tier.directory.free([spot])
            self._refuse(item, tier, str(error))
            return None
        return Write(item, spot, entry)

    def _bytes(self, item: Item) -> list[memoryview]:
        if isinstance(item, Row):
            return []
        data = self._shared.ram.view(item.extent)[: item.nbytes]
        if isinstance(item, Payload) and item.node.whole:
            return [memoryview(item.node.tokens), data]
        return [data]

    def _entry(self, item: Item, tier: FileTier, coming: set[Any]) -> Entry | None:
        """Return what describes an item in the tier; None if it has no business there."""
        if not item.live or tier in (item.records if isinstance(item, Row) else item.places):
            return None
        if item in coming or (isinstance(item, Blob) and RAM not in item.places):
            return None
        if isinstance(item, Payload):
            return block_entry(item) if self._follows(item.node, tier, coming) else None
        row = item if isinstance(item, Row) else item.row
        logits = item if isinstance(item, Logits) else None
        return row_entry(row, logits) if self._ends(row.node, tier, coming) else None

    def _follows(self, node: Node, tier: FileTier, coming: set[Any]) -> bool:
        parent = node.parent
        assert parent is not None
        return parent.parent is None or self._ends(parent, tier, coming)

    def _ends(self, node: Node, tier: FileTier, coming: set[Any]) -> bool:
        """Whether a node is in the tier, or will be with the batch."""
        return (
            node.within(tier)
            or node.within(tier.borrowed)
            or any(payload in coming for payload in node.variants.values())
        )

    def _room(self, namespace: Namespace, tier: FileTier, nbytes: int) -> Spot | None:
        """Set room aside, evicting from the tier if need be."""
        directory = tier.directory
        while True:
            spot = directory.take(namespace.digest, namespace.description, nbytes)
            if spot is not None:
                return spot
            if self._remove_idle(tier):
                continue
            if not self._evict_some(tier, nbytes):
                return None
            self.free_all()

    def _evict_some(self, tier: FileTier, nbytes: int) -> bool:
        """Evict for one item, and for some that will follow; False if nothing may go.

        Room that was freed is granted after a sync of milliseconds, which a full tier
        would else pay for each item.
        """
        wanted = max(nbytes, min(tier.quota // _EVICTED_PART, BATCH_BYTES))
        freed = count = 0
        with self._shared.lock:
            while freed < wanted and count < _EVICTED_MOST and self._shared.index.evict(tier):
                count += 1
                freed += self._shared.settle()[1]
        return count > 0

    def _remove_idle(self, tier: FileTier) -> bool:
        """Remove the oldest file of a model that is not loaded; False if there is none."""
        return any(tier.directory.remove(number) > 0 for _, number, _ in tier.directory.idle())

    def _commit(self, tier: FileTier, batch: list[Write]) -> None:
        try:
            tier.directory.commit([(write.spot, write.entry) for write in batch])
        except OSError as error:
            tier.directory.free([write.spot for write in batch])
            for write in batch:
                self._refuse(write.item, tier, str(error))
            return
        with self._shared.lock:
            index = self._shared.index
            for write in batch:
                item = write.item
                if not item.live or not self._still_fits(item, tier):
                    index.freed.append((tier, write.spot))
                elif isinstance(item, Row):
                    item.records[tier] = write.spot
                else:
                    index.place(item, tier, write.spot)
                if isinstance(item, Blob):
                    index.unpin(item)
                self._refused.discard(item)
            self._shared.settle()

    def _still_fits(self, item: Item, tier: FileTier) -> bool:
        if isinstance(item, Payload):
            return self._follows(item.node, tier, set())
        return self._ends((item if isinstance(item, Row) else item.row).node, tier, set())

    def _refuse(self, item: Item, tier: FileTier, why: str) -> None:
        now = time.monotonic()
        if now >= self._silent_until:
            _log.warning("%s: the cache could not be saved there: %s", tier.path, why)
            self._silent_until = now + _SILENCE_S
        with self._shared.lock:
            if isinstance(item, Blob):
                self._shared.index.unpin(item)
            self.drop(item)
            self._shared.settle()
