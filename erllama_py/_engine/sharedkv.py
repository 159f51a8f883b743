"""The model process's side of the cache: where stored bytes lie, and granted extents.

The core owns shared memory and container files and decides what lies where.  This
process maps the memory, packs captured runs into extents of it that were granted, and
restores from extents a plan names.  What it was granted and has not used when it ends,
the core takes back.

A file is only ever read, at an offset and into memory of our own: a mapped file that
somebody cuts is a SIGBUS, a read of it is merely short.
"""

from __future__ import annotations

import collections
import mmap
import os
import threading
from collections.abc import Iterable

from erllama_py._cache.checksum import crc
from erllama_py._cache.ram import Extent

__all__ = ("SharedKv",)


class SharedKv:
    """Mapped segments, open files, and the pool of granted extents.

    Segments and grants arrive on the control thread and are used on the loader's and
    the engine's; a segment always arrives before the first extent that lies in it.
    """

    def __init__(self) -> None:
        self._segments: dict[int, memoryview] = {}
        self._files: dict[int, int] = {}
        self._blocks: collections.deque[Extent] = collections.deque()
        self._logits: collections.deque[Extent] = collections.deque()
        self._lock = threading.Lock()
        self._plans: collections.Counter[int] = collections.Counter()
        """Plans that use a segment, by its index."""
        self._forgotten: set[int] = set()

    # -- segments and files --------------------------------------------------------------

    def add_segment(self, index: int, size: int, fd: int) -> None:
        """Map shared memory; takes over the descriptor."""
        try:
            self._segments[index] = memoryview(mmap.mmap(fd, size))
        finally:
            os.close(fd)

    def add_file(self, index: int, fd: int) -> None:
        """Read from a container file; takes over the descriptor."""
        self._files[index] = fd

    def hold(self, segments: Iterable[int]) -> None:
        """Keep segments that are forgotten until :meth:`let_go`."""
        with self._lock:
            self._plans.update(segments)

    def let_go(self, segments: Iterable[int]) -> None:
        """End a :meth:`hold`."""
        with self._lock:
            self._plans.subtract(segments)
            for index in segments:
                if index in self._forgotten and not self._plans[index]:
                    self._remove(index)

    def forget(self, index: int) -> None:
        """Unmap or close a segment, once no plan uses it; ungranted is what lies in it."""
        with self._lock:
            for pool in (self._blocks, self._logits):
                for extent in [one for one in pool if one.segment == index]:
                    pool.remove(extent)
            self._forgotten.add(index)
            if not self._plans[index]:
                self._remove(index)

    def close(self) -> None:
        """Unmap and close everything."""
        with self._lock:
            for index in [*self._segments, *self._files]:
                self._remove(index)

    def _remove(self, index: int) -> None:
        self._forgotten.discard(index)
        del self._plans[index]
        # Memory is unmapped when the last view of it is gone, such as a capture's.
        self._segments.pop(index, None)
        fd = self._files.pop(index, None)
        if fd is not None:
            os.close(fd)

    # -- stored bytes ----------------------------------------------------------------------

    def in_file(self, extent: Extent) -> bool:
        """Whether the extent lies in a file."""
        return extent.segment in self._files

    def load(self, extent: Extent, nbytes: int, checksum: int) -> memoryview | None:
        """Return stored bytes that have their checksum, else ``None``.

        From memory it is a view of the segment; from a file, a copy.  May take as long
        as a disk does.
        """
        if extent.segment in self._files:
            data = _read(self._files[extent.segment], extent.offset, nbytes)
        else:
            data = self.view(extent, nbytes)
        return data if data is not None and crc(data) == checksum else None

    def view(self, extent: Extent, nbytes: int | None = None) -> memoryview:
        """Return the memory of an extent, writable; its first ``nbytes`` where given."""
        start = extent.offset
        return self._segments[extent.segment][
            start : start + (extent.size if nbytes is None else nbytes)
        ]

    # -- granted extents -------------------------------------------------------------------

    def grant(self, blocks: list[Extent], logits: list[Extent]) -> None:
        """Add extents to capture into."""
        self._blocks.extend(blocks)
        self._logits.extend(logits)

    def take_block(self) -> Extent | None:
        """Take an extent for a block or tail; ``None`` while there is none."""
        return _take(self._blocks)

    def take_logits(self) -> Extent | None:
        """Take an extent for one position's logits; ``None`` while there is none."""
        return _take(self._logits)

    def give_back_block(self, extent: Extent) -> None:
        """Return an extent that was not filled."""
        self._blocks.appendleft(extent)


def _take(pool: collections.deque[Extent]) -> Extent | None:
    try:
        return pool.popleft()
    except IndexError:
        return None


def _read(fd: int, offset: int, nbytes: int) -> memoryview | None:
    """Read so many bytes of a file; ``None`` where it is too short or cannot be read."""
    data = memoryview(bytearray(nbytes))
    done = 0
    try:
        while done < nbytes:
            count = os.preadv(fd, [data[done:]], offset + done)
            if not count:
                return None
            done += count
    except OSError:
        return None
    return data
