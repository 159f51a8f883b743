"""The model process's side of the cache: shared segments and granted extents.

The core owns the segments and decides what lies where; this process maps them, packs
captured runs into extents it was granted, and restores from extents a plan names.
What it was granted and has not used when it ends, the core takes back.
"""

from __future__ import annotations

import collections
import mmap
import os

from erllama_py._cache.checksum import crc
from erllama_py._cache.ram import Extent
from erllama_py._engine.frames import Stored

__all__ = ("SharedKv",)


class SharedKv:
    """Mapped segments and the pool of granted extents.

    Segments and grants arrive on the control thread and are used on the engine thread;
    dict and deque operations are atomic, and a segment always arrives before the first
    extent that lies in it.
    """

    def __init__(self) -> None:
        self._segments: dict[int, memoryview] = {}
        self._blocks: collections.deque[Extent] = collections.deque()
        self._logits: collections.deque[Extent] = collections.deque()

    def add_segment(self, index: int, size: int, fd: int) -> None:
        """Map a segment; takes over the descriptor."""
        try:
            self._segments[index] = memoryview(mmap.mmap(fd, size))
        finally:
            os.close(fd)

    def grant(self, blocks: list[Extent], logits: list[Extent]) -> None:
        """Add extents to capture into."""
        self._blocks.extend(blocks)
        self._logits.extend(logits)

    def take_block(self) -> Extent | None:
        """Take an extent for a block or tail; ``None`` while there is none."""
        return self._blocks.popleft() if self._blocks else None

    def take_logits(self) -> Extent | None:
        """Take an extent for one position's logits; ``None`` while there is none."""
        return self._logits.popleft() if self._logits else None

    def give_back_block(self, extent: Extent) -> None:
        """Return an extent that was not filled."""
        self._blocks.appendleft(extent)

    def view(self, extent: Extent, nbytes: int | None = None) -> memoryview:
        """Return the extent's memory, writable; its first ``nbytes`` where given."""
        start = extent.offset
        return self._segments[extent.segment][
            start : start + (extent.size if nbytes is None else nbytes)
        ]

    def intact(self, stored: Stored) -> bool:
        """Whether stored bytes still have their checksum."""
        return crc(self.view(stored.extent, stored.nbytes)) == stored.crc
