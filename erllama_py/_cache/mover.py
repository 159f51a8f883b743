"""What moves payloads between memory and files, on a thread of its own.

Two ways down.  *Save*: whatever is stored is written to its file tier soon after, so that
a power cut takes no more than the last moments (:mod:`erllama_py._cache.backlog` says
when).  *Demote*: it is written when memory is needed for something else.  And one way up:
*promote*, a payload that was restored from a file is read into memory, where the next
restore is quicker.

Besides, on the same thread: uses are noted in files, so that what is worth keeping is still
known after a restart; and after a lookup that found too little, what other processes have
added to a shared directory since is read in, for the next one.

How things are written: :mod:`erllama_py._cache.saver`.

The queue is bounded; what finds no room in it is counted and stays where it is.  Nobody
waits for the mover, but who needs memory that holds unsaved payloads, and
:meth:`Mover.flush`.
"""

from __future__ import annotations

import collections
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from erllama_py._cache.backlog import SETTLE_S, Backlog
from erllama_py._cache.checksum import crc
from erllama_py._cache.filetier import FileTier
from erllama_py._cache.queue import uses_of
from erllama_py._cache.row import Logits, Row
from erllama_py._cache.saver import Item, Job, Saver
from erllama_py._cache.tier import RAM
from erllama_py._cache.trie import Node, Payload

if TYPE_CHECKING:
    from erllama_py._cache.blockfile import Spot
    from erllama_py._cache.namespace import Namespace
    from erllama_py._cache.shared import Shared

__all__ = ("Mover",)

QUEUED_MOST: Final = 65536
"""Payloads and rows waiting to be written: entries of some hundred bytes."""

USES_S: Final = 5.0
"""How long uses are collected before they are noted in files: they are only a hint."""

REFRESH_S: Final = 1.0
"""How often a namespace is looked for in files that other processes write."""

_log = logging.getLogger(__name__)


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
        self._jobs = Backlog(shared.ram.quota)
        self._promotions: collections.deque[Payload] = collections.deque()
        self._uses: dict[Payload | Row, None] = {}
        self._misses: dict[Namespace, None] = {}
        self._refreshed: dict[Namespace, float] = {}
        self._spaces: dict[Node, Namespace] = {}
        self._saver = Saver(shared)
        self._working = threading.Lock()
        """Held while a batch is being moved."""
        self._noted = 0.0
        self._hurry = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="cache-mover", daemon=True)
        self._thread.start()

    # -- asked from outside; never waits ------------------------------------------------

    def adopt(self, namespace: Namespace) -> None:
        """Learn of a namespace, to find the one a payload belongs to."""
        self._spaces[namespace.space.root] = self._spaces[namespace.space.wholes] = namespace

    def stored(self, namespace: Namespace, item: Item) -> None:
        """Something new is in memory.  The cache's lock is held."""
        if self._save and namespace.home is not None:
            if len(self._jobs) >= QUEUED_MOST:
                self._saver.drop(item)
                return
            if self._jobs.add(Job(namespace, item, time.monotonic())):
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

    @property
    def dropped(self) -> int:
        """Payloads and rows that were not written for want of room."""
        return self._saver.dropped

    def free(self, tier: FileTier, place: Any) -> None:
        """Have a place in a file freed.  The cache's lock is held."""
        self._saver.free(tier, place)
        self._poke()

    def would_save(self, item: Node | Logits) -> bool:
        """Whether something is in memory only and belongs into a file before it goes."""
        if not (self._save or self._demote):
            return False
        blobs = [item] if isinstance(item, Logits) else list(item.variants.values())
        if all(len(blob.places) > 1 or self._saver.refused(blob) for blob in blobs):
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
            self._saver.demote(jobs)

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
        waiting = self._jobs or self._promotions or self._uses or self._misses
        return bool(waiting) or self._saver.frees

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
            # Nobody says when the last request ends, but then it is due no earlier.
            return max(0.0, min(SETTLE_S, self._due_at() - time.monotonic()))
        return USES_S if self._uses else None

    def _due_at(self) -> float:
        """Return when what is stored is to be written."""
        return -math.inf if self._jobs and self._hurry else self._jobs.due(self._shared.idle_since)

    def _due(self) -> bool:
        if self._saver.frees or self._promotions or self._misses:
            return True
        now = time.monotonic()
        if self._uses_due(now):
            return True
        return self._due_at() <= now

    def _uses_due(self, now: float) -> bool:
        return bool(self._uses) and (self._hurry > 0 or now - self._noted >= USES_S)

    def _round(self) -> None:
        self._saver.free_all()
        now = time.monotonic()
        if self._uses_due(now):
            self._noted = now
            self._note_uses()
        if self._due_at() <= now:
            self._saver.write(self._jobs.take(now, all_of_it=self._hurry > 0))

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


def _saved(item: Item) -> bool:
    places = item.records if isinstance(item, Row) else item.places
    return any(isinstance(tier, FileTier) for tier in places)


def _notes_of(item: Payload | Row) -> list[tuple[FileTier, Spot, int]]:
    """Return where the uses of something are to be noted, and how many."""
    if isinstance(item, Payload):
        hits, places = uses_of(item.node), item.places
    else:
        hits, places = item.hits, item.records
    return [(tier, spot, hits) for tier, spot in places.items() if isinstance(tier, FileTier)]
