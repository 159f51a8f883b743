"""The RAM tier's bytes: shared-memory segments and the extents in them.

The core owns segments and hands their descriptors to model processes, which write and
read payloads at the offsets the core grants.  Nothing is copied through the core.

A segment is an anonymous file (``memfd``; elsewhere than Linux an unlinked temporary
file), 64 MiB or as large as one payload needs.  All of its space is reserved before
anyone writes: a write into a hole that cannot be filled is a SIGBUS, which kills the
writer, while a refused reservation is only a missed save.  It is sealed against
shrinking, for the same reason.

*Backed* is a segment whose pages exist.  The sizes of backed segments never add up to
more than the quota.  A segment without extents can be *drained*: its pages go back to
the system while file and mappings stay valid, so model processes need not hear of it.
It is backed again when it is needed.

Slow calls into the kernel (:func:`back`, :func:`drain`) are split from the bookkeeping
around them, so the owner can make them without holding its lock.

Not thread-safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import mmap
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Final, NamedTuple

from erllama_py._cache.room import Room

__all__ = ("ALIGN", "SEGMENT_BYTES", "Extent", "RamTier", "Segment", "back", "drain", "enter")

SEGMENT_BYTES: Final = 64 << 20
ALIGN: Final = 64
"""A cache line; logits in an extent are then aligned for any vector load too."""

CAN_DRAIN: Final = sys.platform == "linux"

_PAGE: Final = mmap.PAGESIZE
_ZEROS: Final = bytes(1 << 20)
_POPULATE_READ: Final = 22
"""Linux's ``MADV_POPULATE_READ``, of 5.14 and later."""
_ENTERED_BYTES: Final = 1 << 20
"""At a time: some 0.1 ms, in which no other Python thread runs."""


class Extent(NamedTuple):
    """A run of bytes in a segment.  ``size`` is a multiple of :data:`ALIGN`."""

    segment: int
    offset: int
    size: int


class Segment(Room):
    """One shared file and the map of what is granted in it."""

    __slots__ = ("backed", "fd", "index", "pending", "view")

    def __init__(self, index: int, size: int, fd: int) -> None:
        super().__init__(size)
        self.index = index
        self.fd = fd
        self.backed = False
        self.pending = False
        """Whether someone is backing or draining it now."""
        self.view: mmap.mmap | None = None

    def mapped(self) -> mmap.mmap:
        """Return this process's own mapping, made on first use."""
        if self.view is None:
            self.view = mmap.mmap(self.fd, self.size)
        return self.view


class RamTier:
    """Segments under one byte quota.

    :param quota: bytes; 0 stores nothing.
    :param segment_bytes: size of a segment, unless one payload needs more or the quota
        has less left.
    :param numbers: gives segments their numbers, which files of other tiers share.
    """

    def __init__(
        self,
        quota: int,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        numbers: Callable[[], int] | None = None,
    ) -> None:
        self.quota = max(0, quota)
        self.used = 0
        """Bytes granted now: extents that hold payloads and extents still to be filled."""
        self._segment_bytes = segment_bytes
        self._segments: dict[int, Segment] = {}
        self._promised = 0
        self._number = numbers or itertools.count().__next__

    @property
    def segments(self) -> dict[int, tuple[int, int]]:
        """(descriptor, size) of each segment by number.  Numbers are never used again."""
        made = (one for one in self._segments.values() if one.fd >= 0)
        return {one.index: (one.fd, one.size) for one in made}

    @property
    def backed(self) -> int:
        """Bytes of backed segments: what the tier takes of the machine's memory."""
        return sum(one.size for one in self._segments.values() if one.backed)

    # -- extents --------------------------------------------------------------------

    def take(self, nbytes: int) -> Extent | None:
        """Grant at least ``nbytes`` in the segments there are, or return None."""
        if nbytes < 1:
            raise ValueError(f"cannot reserve {nbytes} bytes")
        size = _round_up(nbytes, ALIGN)
        for one in self._segments.values():
            offset = one.take(size) if one.backed else None
            if offset is not None:
                self.used += size
                return Extent(one.index, offset, size)
        return None

    def trim(self, extent: Extent, used: int) -> Extent:
        """Shrink a grant to the ``used`` bytes at its start; return the new extent."""
        if not 0 < used <= extent.size:
            raise ValueError(f"{used} bytes were not written into an extent of {extent.size}")
        size = _round_up(used, ALIGN)
        if size < extent.size:
            one = self._holder(extent)
            one.granted[extent.offset] = size
            one.give_back(extent.offset + size, extent.size - size)
            self.used -= extent.size - size
        return extent._replace(size=size)

    def free(self, extent: Extent) -> None:
        """Take a grant back.

        :raises ValueError: the extent is not granted (any more).
        """
        one = self._holder(extent)
        del one.granted[extent.offset]
        one.give_back(extent.offset, extent.size)
        self.used -= extent.size

    def view(self, extent: Extent) -> memoryview:
        """Return the extent's bytes as this process sees them."""
        mapped = self._holder(extent).mapped()
        return memoryview(mapped)[extent.offset : extent.offset + extent.size]

    def _holder(self, extent: Extent) -> Segment:
        one = self._segments.get(extent.segment)
        if one is None or one.granted.get(extent.offset) != extent.size:
            raise ValueError(f"{extent} is not granted")
        return one

    # -- growing and shrinking --------------------------------------------------------

    def reserve(self, nbytes: int) -> Extent | None:
        """Grant ``nbytes``, growing within the quota: :meth:`take` for a single thread."""
        extent = self.take(nbytes)
        if extent is None and (one := self.promise(nbytes)) is not None:
            try:
                back(one)
            except OSError:
                self.withdraw(one)
            else:
                self.adopt(one)
                extent = self.take(nbytes)
        return extent

    def room_for(self, nbytes: int) -> bool:
        """Whether the quota allows one more segment that holds ``nbytes``."""
        return _round_up(nbytes, _PAGE) <= self.quota - self.backed - self._promised

    def room_by_swap(self, nbytes: int) -> bool:
        """Whether it would, were the idle segments drained first."""
        if not CAN_DRAIN:
            return False
        idle = sum(one.size for one in self.idle())
        left = self.quota - self.backed - self._promised
        return bool(idle) and _round_up(nbytes, _PAGE) <= left + idle

    @property
    def changing(self) -> bool:
        """Whether some segment is being backed or drained."""
        return any(one.pending for one in self._segments.values())

    def promise(self, nbytes: int) -> Segment | None:
        """Set quota aside for a segment that holds ``nbytes``; None where it has too little.

        The segment counts from now on.  Pass it to :func:`back`, then to :meth:`adopt`,
        or to :meth:`withdraw` if that failed.
        """
        if not self.room_for(nbytes):
            return None
        need = _round_up(nbytes, _PAGE)
        left = self.quota - self.backed - self._promised
        for one in self._segments.values():
            if not (one.backed or one.pending) and need <= one.size <= left:
                break
        else:
            size = max(need, min(self._segment_bytes, left) // _PAGE * _PAGE)
            one = Segment(self._number(), size, -1)
            self._segments[one.index] = one
        self._promised += one.size
        one.pending = True
        return one

    def adopt(self, one: Segment) -> None:
        """Start granting from a segment that was promised and is backed now."""
        self._promised -= one.size
        one.backed = True
        one.pending = False

    def withdraw(self, one: Segment) -> None:
        """Give a promised segment's quota back."""
        self._promised -= one.size
        one.pending = False
        if one.fd < 0:
            del self._segments[one.index]

    def idle(self) -> list[Segment]:
        """Return the backed segments nothing is granted in."""
        return [one for one in self._segments.values() if one.backed and one.idle]

    def retire(self, one: Segment) -> bool:
        """Stop granting from an idle segment; False if it is not idle any more.

        Its bytes count against the quota until :meth:`withdraw`, after :func:`drain`.
        """
        if not (one.backed and one.idle):
            return False
        one.backed = False
        one.pending = True
        self._promised += one.size
        return True

    def close(self) -> None:
        """Give everything up.  Model processes keep what they have mapped."""
        for one in self._segments.values():
            if one.view is not None:
                # A view someone still holds keeps the mapping; it goes with that view.
                with contextlib.suppress(BufferError):
                    one.view.close()
            if one.fd >= 0:
                os.close(one.fd)
        self._segments.clear()
        self.used = self._promised = 0


def back(one: Segment) -> None:
    """Make sure every page of a segment exists.  Slow: the kernel zeroes them.

    :raises OSError: there is no room; the segment's file is gone if it was new.
    """
    new = one.fd < 0
    fd = _create() if new else one.fd
    try:
        _fill(fd, one.size)
    except OSError:
        if new:
            os.close(fd)
        raise
    if new and sys.platform == "linux":
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    one.fd = fd


def drain(one: Segment) -> bool:
    """Give a segment's pages back to the system; its mappings stay valid and read zero.

    Returns whether this platform can.
    """
    if sys.platform == "linux":
        one.mapped().madvise(mmap.MADV_REMOVE)
    return CAN_DRAIN


def enter(memory: memoryview, offset: int) -> None:
    """Have the kernel map pages for this process that another one wrote, many at a time.

    A write to a file from pages that are not mapped faults at every sixteenth of them, and
    takes twice as long.  Best effort.

    :param memory: of a segment's mapping, where it begins at ``offset``.
    """
    mapped = memory.obj
    if sys.platform != "linux" or not isinstance(mapped, mmap.mmap):
        return
    end = offset + memory.nbytes
    with contextlib.suppress(OSError):  # an older kernel
        for at in range(offset // _PAGE * _PAGE, end, _ENTERED_BYTES):
            mapped.madvise(_POPULATE_READ, at, min(_ENTERED_BYTES, end - at))


def _create() -> int:
    if sys.platform == "linux":
        return os.memfd_create("erllama-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fd, path = tempfile.mkstemp(prefix="erllama-kv-")
    os.unlink(path)  # noqa: PTH108 - mkstemp gave a str
    return fd


def _fill(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
        return
    for at in range(0, size, len(_ZEROS)):  # macOS has no such call
        os.pwrite(fd, _ZEROS[: size - at], at)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
