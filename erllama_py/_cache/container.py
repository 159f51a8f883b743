"""One open container: its file, its table's free rows and its free bytes.

Whoever writes a container holds ``flock`` on it, so a file that nobody locks belongs to
nobody alive and can be taken over; one that is locked is read only here.

Bytes that were freed go through three states: *pending* from the moment the row is
zeroed, then given back to the system, then granted again; the second and third only after
a sync, or a power cut could bring a row back whose bytes are another's by then.

Reads and writes go through calls and never through a mapping: a file that somebody cuts
short would kill a reader with SIGBUS.  The bookkeeping is not thread-safe; I/O is.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from erllama_py._cache.blockfile import (
    ALIGN,
    Damaged,
    Entry,
    Head,
    Spot,
    pack_head,
    pack_row,
    pack_use,
    unpack_head,
    unpack_row,
)
from erllama_py._cache.room import Room

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ("Container", "create", "lock", "read_at", "read_head", "write_at")


class Container:
    """A file that is open here.  ``fd`` is its descriptor, with the lock if ``owned``."""

    __slots__ = (
        *(
            "doomed",
            "fd",
            "head",
            "number",
            "owned",
            "path",
            "pending",
            "room",
            "seen",
            "seen_mtime",
        ),
        *("size", "slots", "spots", "unzeroed", "users", "written"),
    )

    def __init__(self, number: int, path: Path, fd: int, head: Head, *, owned: bool) -> None:
        self.number = number
        self.path = path
        self.fd = fd
        self.head = head
        self.owned = owned
        self.size = os.fstat(fd).st_size
        table = min(max(0, self.size - ALIGN) // head.row_bytes, head.rows)
        self.slots = list(range(table))
        """Free rows, a heap."""
        self.room = Room(max(0, self.size - head.data) // ALIGN * ALIGN)
        """Of the bytes behind the table."""
        self.spots: dict[int, Spot] = {}
        """Granted, by row."""
        self.written: set[int] = set()
        """Rows that may be on disk."""
        self.pending: dict[int, Spot] = {}
        """Freed since the last sync."""
        self.unzeroed: set[int] = set()
        """Pending rows that could not be zeroed yet."""
        self.seen: dict[int, bytes] = {}
        """Rows of a file of somebody else's as they were read last."""
        self.seen_mtime = -1.0
        """That file's time of change when they were."""
        self.users = 0
        """Calls that use ``fd`` now, without the directory's lock."""
        self.doomed = False
        """Whether the last user closes it."""

    @property
    def empty(self) -> bool:
        """Whether nothing is granted in it."""
        return not self.spots

    @property
    def used(self) -> int:
        """Bytes of the table and of payloads, freed ones included until they are given back."""
        return min(self.size, self.head.data) + self.room.size - self.room.free

    # -- granting ---------------------------------------------------------------------

    def take(self, size: int) -> Spot | None:
        """Grant a row and ``size`` bytes, or return None."""
        if not self.slots:
            return None
        offset = 0
        if size:
            found = self.room.take(size)
            if found is None:
                return None
            offset = self.head.data + found
        spot = Spot(self.number, heapq.heappop(self.slots), offset, size)
        self.spots[spot.slot] = spot
        return spot

    def free(self, spot: Spot) -> None:
        """Zero the row at once; the room is pending until a sync if the row was written.

        :raises ValueError: the spot is not granted (any more).
        """
        if self.spots.get(spot.slot) != spot:
            raise ValueError(f"{spot} is not granted")
        del self.spots[spot.slot]
        if spot.slot not in self.written:
            self.give_back(spot)
            return
        self.pending[spot.slot] = spot
        self.unzeroed.add(spot.slot)
        self.zero()

    def zero(self) -> None:
        """Zero the rows that are still to be zeroed, as far as the system lets us."""
        for slot in list(self.unzeroed):
            with contextlib.suppress(OSError):
                write_at(self.fd, bytes(self.head.row_bytes), self.head.row_at(slot))
                self.unzeroed.discard(slot)
                self.written.discard(slot)

    def unsettled(self) -> dict[int, Spot]:
        """Take over what a sync that starts now makes free."""
        self.zero()
        ready = {slot: spot for slot, spot in self.pending.items() if slot not in self.unzeroed}
        for slot in ready:
            del self.pending[slot]
        return ready

    def give_back(self, spot: Spot) -> None:
        """Let a row and its bytes be granted again."""
        heapq.heappush(self.slots, spot.slot)
        if spot.size:
            offset = spot.offset - self.head.data
            del self.room.granted[offset]
            self.room.give_back(offset, spot.size)

    # -- rows ---------------------------------------------------------------------------

    def write_row(self, spot: Spot, entry: Entry) -> None:
        """Write a row.

        :raises OSError: it may be written in part; :meth:`free` zeroes it.
        """
        self.written.add(spot.slot)
        row = pack_row(self.head, spot.slot, entry, spot.offset, spot.size)
        write_at(self.fd, row, self.head.row_at(spot.slot))

    def write_use(self, slot: int, hits: int, used: int) -> None:
        """Rewrite a row's hits and time of last use."""
        use = pack_use(hits, used)
        write_at(self.fd, use, self.head.row_at(slot + 1) - len(use))

    def scan(self) -> Iterator[tuple[int, bytes]]:
        """Yield row numbers and bytes, but for free ones.

        :raises OSError: the table cannot be read.
        """
        step = self.head.row_bytes
        table = bytearray(self.head.rows * step)
        del table[read_at(self.fd, table, ALIGN) :]
        free = bytes(step)
        for slot in range(len(table) // step):
            row = bytes(table[slot * step : (slot + 1) * step])
            if row != free:
                yield slot, row

    def adopt_rows(self) -> tuple[list[tuple[Spot, Entry]], int]:
        """Grant what the table says; zero the rows that are damaged, and count them.

        :raises OSError: the table cannot be read.
        """
        found: list[tuple[Spot, Entry]] = []
        damaged = 0
        for slot, row in self.scan():
            taken = self._adopt_row(slot, row)
            self.written.add(slot)
            if taken is None:
                damaged += 1
                taken = Spot(self.number, slot, 0, 0), None
            spot, entry = taken
            self.spots[slot] = spot
            if entry is None:
                self.free(spot)
            else:
                found.append((spot, entry))
        taken_now = self.spots.keys() | self.pending.keys()
        self.slots = [slot for slot in self.slots if slot not in taken_now]
        return found, damaged

    def _adopt_row(self, slot: int, row: bytes) -> tuple[Spot, Entry | None] | None:
        """Return None for a damaged row, and no entry for one that is free but for its use."""
        try:
            parsed = unpack_row(self.head, slot, row)
        except Damaged:
            return None
        if parsed is None:
            return Spot(self.number, slot, 0, 0), None
        entry, offset, size = parsed
        if size and not self.room.claim(offset - self.head.data, size):
            return None
        return Spot(self.number, slot, offset if size else 0, size), entry

    def news(self) -> list[tuple[Spot, Entry]]:
        """Read a table that somebody else writes; return what changed since the last time.

        :raises OSError: the table cannot be read.
        """
        found: list[tuple[Spot, Entry]] = []
        seen: dict[int, bytes] = {}
        for slot, row in self.scan():
            with contextlib.suppress(Damaged):  # its owner may be writing it now
                parsed = unpack_row(self.head, slot, row)
                if parsed is None:
                    continue
                entry, offset, size = parsed
                seen[slot] = row[:4]
                if offset + size <= self.size and self.seen.get(slot) != row[:4]:
                    found.append((Spot(self.number, slot, offset, size), entry))
        self.seen = seen
        return found

    def punch(self, spot: Spot) -> None:
        """Give the bytes of a spot back to the file system, where it can."""
        if spot.size:
            _punch(self.fd, spot.offset, spot.size)

    def close(self, *, unlock: bool) -> None:
        """Close the file.  ``unlock`` frees the lock even if a forked process holds it too."""
        if self.fd >= 0:
            if unlock and self.owned:
                with contextlib.suppress(OSError):
                    fcntl.flock(self.fd, fcntl.LOCK_UN)
            os.close(self.fd)
            self.fd = -1


def create(number: int, part: Path, path: Path, head: Head, size: int) -> Container:
    """Make a container, locked, and give it its name when all of it is on disk.

    :raises OSError: it cannot be made; nothing of it is left.
    """
    data = pack_head(head)
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, size)
        write_at(fd, data, 0)
        os.fsync(fd)
        part.rename(path)
        _sync_directory(path.parent)
        return Container(number, path, fd, head, owned=True)
    except OSError:
        for name in (part, path):
            with contextlib.suppress(OSError):
                name.unlink()
        os.close(fd)
        raise


def lock(path: Path) -> int | None:
    """Open a file of nobody alive, and lock it; None if somebody has it, or it is gone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it may have deleted it between the two calls.
        if os.fstat(fd).st_nlink and os.path.samestat(os.fstat(fd), path.stat()):
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def read_head(fd: int) -> Head:
    """Read a file's head.

    :raises OSError: it cannot be read.
    :raises Foreign: the file is none of ours, or a later version's.
    :raises Damaged: the head is not whole.
    """
    data = bytearray(ALIGN)
    return unpack_head(bytes(data[: read_at(fd, data, 0)]))


def read_at(fd: int, buffer: Buffer, offset: int) -> int:
    """Fill a buffer from a file; return the bytes read, fewer only at the file's end."""
    view = memoryview(buffer).cast("B")
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if not got:
            break
        done += got
    return done


def write_at(fd: int, data: Buffer, offset: int) -> None:
    """Write all of ``data``."""
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _no_punch(fd: int, offset: int, size: int) -> None:
    """Leave the bytes where they are."""


if sys.platform == "linux":
    _fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
    _KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02

    def _punch(fd: int, offset: int, size: int) -> None:
        # A file system that cannot says so, and keeps the bytes: nothing is lost by that.
        _fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, offset, size)

else:
    _punch = _no_punch
