"""What moves payloads between memory and files, on a thread of its own.

Two ways down.  *Save*: whatever is stored is written to its file tier soon after, so that
a power cut takes no more than the last moments.  *Demote*: it is written when memory is
needed for something else.  And one way up: *promote*, a payload that was restored from a
file is read into memory, where the next restore is quicker.

Besides, on the same thread: uses are noted in files, so that what is worth keeping is still
known after a restart; and after a lookup that found too little, what other processes have
added to a shared directory since is read in, for the next one.

A chain is written from its front: a node only after its parent, so that what a file
tier holds can be reached from position 0 when it is read in again.

The queue is bounded; what finds no room in it, or no room on the disk, is counted and
stays where it is.  Nobody waits for the mover, but who needs memory that holds unsaved
payloads, and :meth:`Mover.flush`.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from erllama_py._cache.blockfile import Entry
from erllama_py._cache.checksum import crc
from erllama_py._cache.filetier import FileTier
from erllama_py._cache.queue import uses_of
from erllama_py._cache.row import Logits, Row
from erllama_py._cache.tier import RAM
from erllama_py._cache.trie import TOKEN_BYTES, Blob, Node, Payload, address

if TYPE_CHECKING:
    from erllama_py._cache.directory import Spot
    from erllama_py._cache.namespace import Namespace
    from erllama_py._cache.shared import Shared

__all__ = ("Mover",)

QUEUED_MOST: Final = 65536
"""Payloads and rows waiting to be written: entries of some hundred bytes."""

BATCH_BYTES: Final = 32 << 20
"""Written between two syncs."""

SETTLE_S: Final = 0.2
"""How long a new payload waits before it is written: a tail is often replaced by a block,
and logits by better ones, within moments."""

USES_S: Final = 5.0
"""How long uses are collected before they are noted in files: they are only a hint."""

REFRESH_S: Final = 1.0
"""How often a namespace is looked for in files that other processes write."""

_NO_KEY: Final = bytes(32)
_SILENCE_S: Final = 60.0

_EVICTED_PART: Final = 64
"""A full tier gives up this part of its quota at a time."""

_EVICTED_MOST: Final = 32
"""Evictions under one hold of the lock."""

_log = logging.getLogger(__name__)


class Job(NamedTuple):
    """Something to write."""

    space: Namespace
    item: Payload | Row | Logits
    due: float


class Write(NamedTuple):
    """Something being written: pinned, and with room set aside."""

    item: Payload | Row | Logits
    spot: Spot
    entry: Entry


class Mover:
    """The thread and its queues.

    :param save: write what is stored soon; else only what memory has no room for.
    :param promote: read what was restored from a file into memory.
    :param refresh: reads in what others have added for a namespace.
    """

    def __init__(
        self,
        shared: Shared,
        refresh: Callable[[Namespace], None],
        *,
        save: bool,
        demote: bool,
        promote: bool,
    ) -> None:
        self._shared = shared
        self._refresh = refresh
        self._save = save
        self._demote = demote
        self._promote = promote
        self._wake = threading.Condition()
        self._jobs: collections.deque[Job] = collections.deque()
        self._promotions: collections.deque[Payload] = collections.deque()
        self._frees: collections.deque[tuple[FileTier, Spot]] = collections.deque()
        self._uses: dict[Payload | Row, None] = {}
        self._misses: dict[Namespace, None] = {}
        self._refreshed: dict[Namespace, float] = {}
        self._spaces: dict[Node, Namespace] = {}
        self._refused: set[Payload | Row | Logits] = set()
        """What could not be written when memory had to be freed."""
        self._working = threading.Lock()
        """Held while a batch is being moved."""
        self._silent_until = 0.0
        self._noted = 0.0
        self._hurry = 0
        self._closed = False
        self.dropped = 0
        """Payloads and rows that were not written for want of room."""
        self._thread = threading.Thread(target=self._run, name="cache-mover", daemon=True)
        self._thread.start()

    # -- asked from outside; never waits ------------------------------------------------

    def adopt(self, namespace: Namespace) -> None:
        """Learn of a namespace, to find the one a payload belongs to."""
        self._spaces[namespace.space.root] = self._spaces[namespace.space.wholes] = namespace

    def stored(self, namespace: Namespace, item: Payload | Row | Logits) -> None:
        """Something new is in memory.  The cache's lock may be held."""
        if self._save and namespace.home is not None:
            if len(self._jobs) >= QUEUED_MOST:
                self._drop(item)
                return
            self._jobs.append(Job(namespace, item, time.monotonic() + SETTLE_S))
            self._poke()

    def restored(self, payloads: Iterable[Payload]) -> None:
        """Payloads were restored; those in files only may be worth memory now."""
        if self._promote and self._shared.ram.quota:
            self._promotions.extend(p for p in payloads if p.live and p.extent is None)
            if self._promotions:
                self._poke()

    def used(self, item: Payload | Row) -> None:
        """Something was found and used.  The cache's lock is held."""
        self._uses[item] = None
        if len(self._uses) == 1:
            self._poke()

    def missed(self, namespace: Namespace) -> None:
        """A lookup found less than it asked for; perhaps another process has the rest."""
        if time.monotonic() - self._refreshed.get(namespace, 0.0) >= REFRESH_S:
            self._misses[namespace] = None
            self._poke()

    @property
    def queued(self) -> int:
        """Payloads and rows waiting to be written."""
        return len(self._jobs)

    def free(self, tier: FileTier, place: Any) -> None:
        """Have a place in a file freed.  The cache's lock is held."""
        self._frees.append((tier, place))
        self._poke()

    def would_save(self, item: Node | Logits) -> bool:
        """Whether something is in memory only and belongs into a file before it goes."""
        if not (self._save or self._demote):
            return False
        blobs = [item] if isinstance(item, Logits) else list(item.variants.values())
        if all(len(blob.places) > 1 or blob in self._refused for blob in blobs):
            return False
        namespace = self._namespace_of(item)
        return namespace is not None and namespace.home is not None

    def _poke(self) -> None:
        with self._wake:
            self._wake.notify_all()

    # -- asked from outside; waits ------------------------------------------------------

    def save_now(self, items: Iterable[Node | Logits]) -> None:
        """Write something to its file tier and wait until it is there, or has failed."""
        jobs: list[Job] = []
        with self._shared.lock:
            for item in items:
                namespace = self._namespace_of(item)
                if namespace is None:
                    continue
                blobs = [item] if isinstance(item, Logits) else [*item.variants.values()]
                jobs.extend(Job(namespace, blob, 0.0) for blob in self._upwards(item, blobs))
        with self._working:
            self._refused = {item for item in self._refused if item.live}
            self._refused.update(job.item for job in jobs)
            self._write_all(jobs)

    def _upwards(self, item: Node | Logits, blobs: list[Any]) -> list[Any]:
        """Return the blobs behind those of their chain that are in no file yet."""
        node = item.row.node if isinstance(item, Logits) else item
        chain: list[Any] = [item.row, *blobs] if isinstance(item, Logits) else blobs
        parent = node if isinstance(item, Logits) else node.parent
        while parent is not None and parent.parent is not None:
            chain = [*parent.variants.values(), *chain]
            parent = parent.parent
        return [one for one in chain if not _saved(one)]

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything stored so far is in its file tier; False if time ran out."""
        ends = None if timeout_s is None else time.monotonic() + timeout_s
        with self._wake:
            self._hurry += 1
            self._wake.notify_all()
        try:
            while self._busy() or self._working.locked():
                if not self._thread.is_alive() or (ends and time.monotonic() > ends):
                    return False
                time.sleep(0.002)
        finally:
            with self._wake:
                self._hurry -= 1
        return True

    def _busy(self) -> bool:
        return bool(self._jobs or self._promotions or self._frees or self._uses or self._misses)

    def close(self, timeout_s: float) -> None:
        """Write what is queued, as far as the time goes, and end the thread."""
        self.flush(timeout_s)
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join(timeout_s)

    # -- the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._closed or self._due()):
                    self._wake.wait(self._pause())
                if self._closed:
                    return
            try:
                with self._working:
                    self._round()
                # Not inside: memory for them may have to be freed by saving something.
                while self._misses:
                    self._look_again(next(iter(self._misses)))
                while self._promotions:
                    try:
                        self._read(self._promotions[0])
                    finally:
                        self._promotions.popleft()
            except Exception:  # noqa: BLE001 - logged, and the next round is another one's
                # Files may fail in ways nobody thought of; the cache in memory goes on.
                _log.exception("moving payloads between memory and files failed")

    def _pause(self) -> float | None:
        if self._jobs:
            return SETTLE_S
        return USES_S if self._uses else None

    def _due(self) -> bool:
        if self._frees or self._promotions or self._misses:
            return True
        now = time.monotonic()
        if self._uses_due(now):
            return True
        return bool(self._jobs) and (self._hurry > 0 or self._jobs[0].due <= now)

    def _uses_due(self, now: float) -> bool:
        return bool(self._uses) and (self._hurry > 0 or now - self._noted >= USES_S)

    def _round(self) -> None:
        self._free_all()
        now = time.monotonic()
        if self._uses_due(now):
            self._noted = now
            self._note_uses()
        jobs = []
        while self._jobs and (self._hurry or self._jobs[0].due <= now):
            jobs.append(self._jobs.popleft())
        if jobs:
            self._write_all(jobs)

    def _free_all(self) -> None:
        freed: dict[FileTier, list[Spot]] = {}
        while self._frees:
            tier, spot = self._frees.popleft()
            freed.setdefault(tier, []).append(spot)
        for tier, spots in freed.items():
            tier.directory.free(spots)
        if freed:
            self._shared.measure_files()

    def _note_uses(self) -> None:
        now = int(time.time())
        with self._shared.lock:
            uses, self._uses = self._uses, {}
            notes = [note for item in uses if item.live for note in _notes_of(item)]
        for tier, spot, hits in notes:
            tier.directory.touch(spot, hits, now)

    def _look_again(self, namespace: Namespace) -> None:
        self._refreshed[namespace] = time.monotonic()
        try:
            self._refresh(namespace)
        finally:
            self._misses.pop(namespace, None)

    # -- writing ------------------------------------------------------------------------

    def _write_all(self, jobs: list[Job]) -> None:
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

    def _with_what_it_needs(
        self, item: Payload | Row | Logits, tier: FileTier, coming: set[Any]
    ) -> list[Any]:
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
            for part in data:
                tier.directory.write(spot._replace(offset=at), part)
                at += len(part)
        except OSError as error:
            tier.directory.free([spot])
            self._refuse(item, tier, str(error))
            return None
        return Write(item, spot, entry)

    def _bytes(self, item: Payload | Row | Logits) -> list[bytes | memoryview]:
        if isinstance(item, Row):
            return []
        data = self._shared.ram.view(item.extent)[: item.nbytes]
        if isinstance(item, Payload) and item.node.whole:
            return [item.node.tokens, data]
        return [data]

    def _entry(
        self, item: Payload | Row | Logits, tier: FileTier, coming: set[Any]
    ) -> Entry | None:
        """Return what describes an item in the tier; None if it has no business there."""
        if not item.live or tier in (item.records if isinstance(item, Row) else item.places):
            return None
        if item in coming or (isinstance(item, Blob) and RAM not in item.places):
            return None
        if isinstance(item, Payload):
            return _block_entry(item) if self._follows(item.node, tier, coming) else None
        row = item if isinstance(item, Row) else item.row
        logits = item if isinstance(item, Logits) else None
        return _row_entry(row, logits) if self._ends(row.node, tier, coming) else None

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
            self._free_all()

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

    def _still_fits(self, item: Payload | Row | Logits, tier: FileTier) -> bool:
        if isinstance(item, Payload):
            return self._follows(item.node, tier, set())
        return self._ends((item if isinstance(item, Row) else item.row).node, tier, set())

    def _refuse(self, item: Payload | Row | Logits, tier: FileTier, why: str) -> None:
        now = time.monotonic()
        if now >= self._silent_until:
            _log.warning("%s: the cache could not be saved there: %s", tier.path, why)
            self._silent_until = now + _SILENCE_S
        with self._shared.lock:
            if isinstance(item, Blob):
                self._shared.index.unpin(item)
            self._drop(item)
            self._shared.settle()

    def _drop(self, item: Payload | Row | Logits) -> None:
        self.dropped += 1
        if isinstance(item, Row):
            self._shared.counters.incr("saves_dropped")

    def _namespace_of(self, item: Node | Logits) -> Namespace | None:
        node = item.row.node if isinstance(item, Logits) else item
        while node.parent is not None:
            node = node.parent
        return self._spaces.get(node)

    # -- reading ------------------------------------------------------------------------

    def _read(self, payload: Payload) -> None:
        """Copy a payload from its file into memory."""
        with self._shared.lock:
            tier = payload.tier if payload.live else RAM
            if not payload.live or tier is RAM:
                return
            payload.pins += 1
            spot, nbytes = payload.places[tier], payload.nbytes
            if payload.node.whole:
                spot = spot._replace(offset=spot.offset + len(payload.node.tokens))
        extent = self._shared.reserve(nbytes)
        good = False
        if extent is not None:
            with self._shared.lock:
                view = self._shared.ram.view(extent)[:nbytes]
            good = self._shared.directory_of(tier).read_into(spot, nbytes, view)
            good = good and crc(view) == payload.crc
        with self._shared.lock:
            if extent is not None and good and payload.live and RAM not in payload.places:
                self._shared.index.place(payload, RAM, extent)
            elif extent is not None:
                self._shared.give_back(extent)
            self._shared.index.unpin(payload)
            self._shared.settle()


def _saved(item: Payload | Row | Logits) -> bool:
    places = item.records if isinstance(item, Row) else item.places
    return any(isinstance(tier, FileTier) for tier in places)


def _notes_of(item: Payload | Row) -> list[tuple[FileTier, Spot, int]]:
    """Return where the uses of something are to be noted, and how many."""
    if isinstance(item, Payload):
        hits, places = uses_of(item.node), item.places
    else:
        hits, places = item.hits, item.records
    return [(tier, spot, hits) for tier, spot in places.items() if isinstance(tier, FileTier)]


def _block_entry(payload: Payload) -> Entry:
    """Describe a payload.  A sequence in one piece has its tokens before its KV."""
    node = payload.node
    parent = node.parent
    assert parent is not None
    head = len(node.tokens) if node.whole else 0
    return Entry(
        kind="whole" if node.whole else "block",
        parent=address(parent),
        start=node.start,
        tokens=b"" if node.whole else node.tokens,
        length=node.end - node.start,
        grade=payload.grade,
        key=address(node) if node.whole else _NO_KEY,
        nbytes=head + payload.nbytes,
        crc=payload.crc,
        reason="",
        canonical=0,
        created=int(time.time()),
        hits=uses_of(node),
        used=int(time.time()),
    )


def _row_entry(row: Row, logits: Logits | None) -> Entry:
    node = row.node
    parent = node.parent
    assert parent is not None
    # A row hangs on the last whole block of its tokens, whatever node covers the rest.
    ends_here = node.whole or (node.end == row.length and len(node.tokens) == row.space.step)
    return Entry(
        kind="row",
        parent=address(node if ends_here else parent),
        start=row.length if ends_here else node.start,
        tokens=b"" if ends_here else node.tokens[: row.cut * TOKEN_BYTES],
        length=row.length,
        grade=None,
        key=row.key,
        nbytes=logits.nbytes if logits else 0,
        crc=logits.crc if logits else 0,
        reason=row.reason,
        canonical=row.canonical if logits else 0,
        created=row.created,
        hits=row.hits,
        used=int(time.time()),
    )
