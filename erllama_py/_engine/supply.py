"""What one run of a model process has been given of the cache's memory.

*Granted* extents are for it to capture into: so many ahead of need that a capture never
waits.  Before the first extent in a segment is named to it, it gets the segment's
descriptor.  Both end with the process: the next one has a supply of its own, and knows
of nothing that this one was told.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from erllama_py._engine.frames import Grants, Segment

if TYPE_CHECKING:
    from erllama_py._cache.ram import Extent
    from erllama_py._cache.store import Cache
    from erllama_py._engine.wire import Wire

__all__ = ("Supply", "Target")


class Target(NamedTuple):
    """How many extents are to be granted, and of how many bytes."""

    extents: int
    nbytes: int


class Supply:
    """Thread-safe.  Grants nothing before :meth:`start`, nor after :meth:`end`.

    :param blocks: extents for blocks, and tails of rows.
    """

    def __init__(self, cache: Cache, wire: Wire, *, blocks: Target, logits: Target) -> None:
        self.wire = wire
        self._cache = cache
        self._targets = blocks, logits
        self._lock = threading.Lock()
        self._blocks: set[Extent] = set()
        self._logits: set[Extent] = set()
        self._introduced: set[int] = set()
        """Segments whose descriptors were sent."""
        self._wanted = threading.Event()
        self._ended = False

    def start(self) -> None:
        """Grant what is due now, and from here on replace what is spent."""
        self._top_up()  # before the first request, so that its captures find room
        threading.Thread(target=self._keep_up, name="grants", daemon=True).start()

    def introduce(self, segments: Iterable[int]) -> None:
        """Have the process know these segments before it is told of extents in them.

        :raises KeyError: one of them is a file that is gone.
        """
        with self._lock:
            for index in segments:
                self._introduce(index)

    def spent(self, *extents: Extent) -> None:
        """The process has filled these; they are not granted any more."""
        with self._lock:
            for extent in extents:
                self._blocks.discard(extent)
                self._logits.discard(extent)

    def replenish(self) -> None:
        """Have spent grants replaced, on a thread of their own.

        A new segment takes tens of milliseconds to reserve, which no stream should wait.
        """
        self._wanted.set()

    def end(self) -> None:
        """The process has ended: take back what it was granted."""
        with self._lock:
            self._ended = True
            granted = self._blocks | self._logits
            self._blocks.clear()
            self._logits.clear()
        self._wanted.set()
        for extent in granted:
            self._cache.release(extent)

    def _keep_up(self) -> None:
        while not self._ended:
            self._wanted.wait()
            self._wanted.clear()
            self._top_up()

    def _top_up(self) -> None:
        """Grant extents up to the targets, as far as the quota goes."""
        blocks = self._grant(self._blocks, self._targets[0])
        logits = self._grant(self._logits, self._targets[1])
        if blocks or logits:
            self.wire.send(Grants(blocks, logits))

    def _grant(self, granted: set[Extent], target: Target) -> list[Extent]:
        fresh: list[Extent] = []
        while not self._ended and len(granted) < target.extents:
            reserved = self._cache.reserve(target.nbytes)
            if reserved is None:
                break
            with self._lock:
                ended = self._ended
                if not ended:
                    self._introduce(reserved.segment)
                    granted.add(reserved)
            if ended:
                self._cache.release(reserved)
                return []
            fresh.append(reserved)
        return fresh

    def _introduce(self, index: int) -> None:
        """Send a segment's descriptor, unless it was; the lock is held."""
        if index in self._introduced:
            return
        fd, size, is_file = self._cache.segment(index)
        try:
            self.wire.send(Segment(index, size, is_file), fd)
        finally:
            if is_file:
                os.close(fd)
        self._introduced.add(index)
