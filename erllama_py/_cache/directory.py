"""A directory of containers under one byte quota, which several processes may share.

A process writes only to containers it has locked (:mod:`erllama_py._cache.container`), so
several can use one directory: each sees the others' entries, read only, and takes over
what a dead process left.  Only growing needs all of them to agree: a new file is made
under a lock of the directory's, with the sum of sizes read from the directory itself, so
that they never exceed the quota together.  Files are sparse; what counts is their length.

An entry is announced when :meth:`Directory.commit` returns: its payload, its row and its
file's name are on disk then, in that order.  So whatever stops this process, or the
machine, leaves entries that are whole, and room that belongs to none.

Two locks: one for the bookkeeping, under which nothing waits for the disk to finish; one
for what changes which files there are, under which files are made, removed and scanned.

``*.tmp``, ``*.kvc`` and containers of another format or a later version are left alone;
the last count against the quota.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from erllama_py._cache.blockfile import (
    ALIGN,
    Damaged,
    Entry,
    Foreign,
    Head,
    Spot,
    data_offset,
    round_up,
    row_bytes,
)
from erllama_py._cache.container import (
    Container,
    create,
    lock,
    read_at,
    read_head,
    write_at,
)
from erllama_py._cache.dirlock import DirLock
from erllama_py._cache.listing import SUFFIX, Known, is_free, length_of, remove_parts, survey

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ("Directory",)

FILE_BYTES: Final = 64 << 20
TABLE_ROWS: Final = 1024

_FEWEST_ROWS: Final = 8
_TABLE_SHARE: Final = 8
"""A table takes at most this part of a file, if it has more than the fewest rows."""
_FEWEST_FILES: Final = 8
"""A quota is at least so many files: with one it could serve one identity."""
_MOST_FILES: Final = 256
"""And at most about so many: each takes a descriptor."""

_CLOCK_S: Final = 2.0
"""A file that changed longer ago than any file system's clock ticks has not changed since."""


class Directory:
    """Thread-safe; may block on I/O.

    A process that forks calls :meth:`abandon` in the child.

    :param path: made, with its parents, if it is not there.
    :param quota: bytes that all files together may have.
    :param numbers: gives a file its number, never twice the same.
    :param file_bytes: of a new file, unless the quota is small or large or a payload
        needs more.
    :param table_rows: of a new file of that size; a larger one has more, a small one fewer.
    :param block: tokens of a block.  Files with another number are not loaded.
    :raises OSError: the directory cannot be made, read or locked.
    """

    def __init__(
        self,
        path: Path,
        quota: int,
        *,
        numbers: Callable[[], int],
        file_bytes: int = FILE_BYTES,
        table_rows: int = TABLE_ROWS,
        block: int = 64,
    ) -> None:
        self.path = path
        self.quota = quota
        self.block = block
        self.corrupt = 0
        """Files and rows dropped as damaged since this was opened."""
        most = max(file_bytes, quota // _MOST_FILES)
        self._file_bytes = min(most, quota // _FEWEST_FILES) // ALIGN * ALIGN
        self._table_rows = table_rows * max(1, self._file_bytes // max(1, file_bytes))
        self._numbers = numbers
        self._lock = threading.Lock()
        self._changes = threading.Lock()
        self._syncs = threading.Lock()
        self._known: dict[Path, Known] = {}
        self._open: dict[int, Container] = {}
        self._loaded: set[bytes] = set()
        self._pid = os.getpid()
        self._gate = DirLock(path)
        with self._gate.held():
            remove_parts(path)
        self._survey()

    # -- what is there ------------------------------------------------------------------

    def identities(self) -> dict[bytes, bytes]:
        """Return digest and description of every identity there are files of."""
        with self._lock:
            heads = [one.head for one in self._known.values() if one.head is not None]
        return {head.digest: head.description for head in heads}

    def load(self, digest: bytes) -> list[tuple[Spot, Entry, bool]]:
        """Read the tables of an identity's files; return what was not returned before.

        The flag says whether the file is ours now: then the entry is ours to free.  A file
        of a live process's is read only, and its entries may go at any time; if that
        process dies, a later call takes its file over, and returns all of it again as ours.
        """
        with self._changes:
            self._survey()
            with self._lock:
                self._loaded.add(digest)
                files = list(self._known.items())
                theirs = [one for one in self._open.values() if not one.owned]
            for one in theirs:
                if one.path not in self._known:
                    self._forget(one)
            found: list[tuple[Spot, Entry, bool]] = []
            for path, known in files:
                if known.head and known.head.digest == digest and known.head.block == self.block:
                    with contextlib.suppress(OSError, Damaged, Foreign):
                        found += self._visit(path, known)
            return found

    @property
    def capacity(self) -> int:
        """Bytes that count against the quota: the lengths of all containers.

        Other processes' are among them, and files of later versions.  It is above the
        quota only where the quota was larger when they were made.
        """
        return length_of(self.path)

    @property
    def used(self) -> int:
        """Bytes of tables and payloads; of files that are not loaded, bytes on disk."""
        with self._lock:
            rest = (one.on_disk for one in self._known.values() if one.number not in self._open)
            return sum(one.used for one in self._open.values()) + sum(rest)

    def idle(self) -> list[tuple[float, int, int]]:
        """List files nobody uses, of identities not loaded here: (mtime, number, bytes).

        Oldest first; bytes are those on disk.  Files with another block length are among
        them whatever their identity.
        """
        with self._changes:
            self._survey()
            with self._lock:
                found = [
                    (one.mtime, one.number, one.on_disk, path)
                    for path, one in self._known.items()
                    if one.head is not None
                    and one.number not in self._open
                    and (one.head.digest not in self._loaded or one.head.block != self.block)
                ]
            return sorted(item[:3] for item in found if is_free(item[3]))

    def remove(self, number: int) -> int:
        """Delete a file that :meth:`idle` listed; return its bytes on disk.

        0 where it is gone, or somebody has begun to use it.
        """
        with self._changes:
            with self._lock:
                if number in self._open:
                    return 0
            path = next((path for path, one in self._known.items() if one.number == number), None)
            fd = lock(path) if path is not None else None
            if path is None or fd is None:
                return 0
            try:
                freed = os.fstat(fd).st_blocks * 512
                path.unlink()
            except OSError:
                return 0
            finally:
                os.close(fd)
            with self._lock:
                del self._known[path]
            return freed

    # -- writing ------------------------------------------------------------------------

    def take(self, digest: bytes, description: bytes, nbytes: int) -> Spot | None:
        """Set room aside, making a file within the quota; None if there is no room.

        Room that was freed is used after a sync, which is made here if need be.

        :param nbytes: of the payload; 0 for an entry without one.
        :raises ValueError: the digest is not 32 bytes, or the description too long.
        """
        size = round_up(nbytes)
        with self._lock:
            spot = self._fit(digest, size)
            waiting = any(one.pending for one in self._own(digest))
        if spot is None and waiting:
            self.sync()
            with self._lock:
                spot = self._fit(digest, size)
        return spot or self._grow(digest, description, size)

    def write(self, spot: Spot, data: Buffer) -> None:
        """Write a payload into its room, or a part of one: ``offset`` may be further on.

        :raises OSError: it could not be written; the room can still be freed.
        :raises ValueError: the spot is not granted, or the data goes beyond its end.
        """
        with self._using(spot.file) as one:
            granted = one.spots.get(spot.slot)
            end = spot.offset + memoryview(data).nbytes
            if granted is None or not granted.offset <= spot.offset <= end <= sum(granted[2:]):
                raise ValueError(f"[{spot.offset}, {end}) is not within what is granted: {granted}")
            write_at(one.fd, data, spot.offset)

    def commit(self, batch: Sequence[tuple[Spot, Entry]]) -> None:
        """Announce entries whose payloads are written: they are safe when this returns.

        :raises OSError: none of the batch is announced; free its spots.
        :raises ValueError: a spot is not granted, or an entry is not as it should be.
        """
        with contextlib.ExitStack() as stack:
            numbers = dict.fromkeys(spot.file for spot, _ in batch)
            files = {number: stack.enter_context(self._using(number)) for number in numbers}
            self._settle(list(files.values()))
            with self._lock:
                for spot, _ in batch:
                    if files[spot.file].spots.get(spot.slot) != spot:
                        raise ValueError(f"{spot} is not granted")
                for spot, entry in batch:
                    files[spot.file].write_row(spot, entry)
            for one in files.values():
                _sync(one.fd)

    def free(self, spots: Iterable[Spot]) -> None:
        """Zero the rows at once.  The room is granted again after the next sync.

        Files of other processes are left alone.

        :raises ValueError: a spot is not granted (any more).
        """
        with self._lock:
            for spot in spots:
                one = self._open.get(spot.file)
                if one is not None and one.owned:
                    one.free(spot)

    def sync(self) -> None:
        """Make sure that freed rows stay free, so that their room can be granted again.

        What the disk refuses to write stays set aside.
        """
        with contextlib.ExitStack() as stack:
            with self._lock:
                numbers = [one.number for one in self._open.values() if one.pending]
            for number in numbers:
                with contextlib.suppress(OSError):
                    self._settle([stack.enter_context(self._using(number))])

    def touch(self, spot: Spot, hits: int, used: int) -> None:
        """Note how often and when (unix seconds) an entry was used.  Best effort, no sync."""
        with self._lock, contextlib.suppress(OSError):
            one = self._open.get(spot.file)
            if one is None or not one.owned or one.spots.get(spot.slot) != spot:
                return
            if spot.slot in one.written:
                one.write_use(spot.slot, hits, used)

    def drop_empty(self) -> int:
        """Delete our files that hold nothing; return the bytes by which capacity fell."""
        with self._changes:
            return self._drop_empty()

    # -- reading ------------------------------------------------------------------------

    def read_into(self, spot: Spot, nbytes: int, buffer: Buffer) -> bool:
        """Read the first ``nbytes`` of a payload; False where they cannot be read.

        What is read must be checked: a file of another process's may hold something else
        by now.
        """
        try:
            with self._using(spot.file) as one:
                return read_at(one.fd, memoryview(buffer)[:nbytes], spot.offset) == nbytes
        except OSError:
            return False

    def descriptor(self, number: int) -> tuple[int, int]:
        """Open a file read-only, without its lock: a new descriptor, and the size.

        The caller closes it.  It can be passed to another process.

        :raises KeyError: there is none of that number (any more).
        :raises OSError: it cannot be opened.
        """
        try:
            fd = os.open(self.path_of(number), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise KeyError(number) from None
        return fd, os.fstat(fd).st_size

    def path_of(self, number: int) -> Path:
        """Return where a file is.

        :raises KeyError: there is none of that number (any more).
        """
        with self._lock:
            one = self._open.get(number)
            if one is not None:
                return one.path
            for path, known in self._known.items():
                if known.number == number:
                    return path
        raise KeyError(number)

    # -- the end ------------------------------------------------------------------------

    def close(self) -> None:
        """Give up all files.  What is announced stays."""
        if os.getpid() != self._pid:
            self.abandon()
            return
        with self._changes, self._lock:
            for one in self._open.values():
                self._close_or_doom(one)
            self._shut()

    def abandon(self) -> None:
        """Close descriptors only: for a forked child, whose parent keeps the locks.

        Takes no lock, since another thread may have held it at the fork.
        """
        for one in self._open.values():
            one.close(unlock=False)
        self._shut()

    def _shut(self) -> None:
        self._open.clear()
        self._known.clear()
        self._loaded.clear()
        self._gate.close()

    # -- granting -----------------------------------------------------------------------

    def _own(self, digest: bytes) -> Iterator[Container]:
        for one in self._open.values():
            if one.owned and one.head.digest == digest:
                yield one

    def _fit(self, digest: bytes, size: int) -> Spot | None:
        for one in self._own(digest):
            spot = one.take(size)
            if spot is not None:
                return spot
        return None

    def _grow(self, digest: bytes, description: bytes, size: int) -> Spot | None:
        with self._changes:
            with self._lock:
                spot = self._fit(digest, size)  # another thread may have grown
            if spot is not None or self._gate.closed:
                return spot
            try:
                with self._gate.held():
                    made = self._make(digest, description, size)
            except OSError:
                return None
            if made is None:
                return None
            with self._lock:
                self._open[made.number] = made
                inode = os.fstat(made.fd).st_ino
                self._known[made.path] = Known(made.number, inode, made.head, time.time(), 0)
                return made.take(size)

    def _make(self, digest: bytes, description: bytes, size: int) -> Container | None:
        plan = self._plan(self.quota - self.capacity, size)
        if plan is None and self._drop_empty():
            plan = self._plan(self.quota - self.capacity, size)
        if plan is None:
            return None
        length, rows = plan
        name = os.urandom(8).hex()
        head = Head(self.block, rows, digest, description, int(time.time()))
        part, path = self.path / f"{name}.part", self.path / f"{name}{SUFFIX}"
        return create(self._numbers(), part, path, head, length)

    def _plan(self, left: int, size: int) -> tuple[int, int] | None:
        """Return length and rows of a new file that has room for ``size`` bytes."""
        length = min(self._file_bytes, left) // ALIGN * ALIGN
        share = length // _TABLE_SHARE // row_bytes(self.block)
        rows = max(_FEWEST_ROWS, min(self._table_rows, share))
        if data_offset(self.block, rows) + size <= length:
            return length, rows
        least = data_offset(self.block, _FEWEST_ROWS) + size
        return (least, _FEWEST_ROWS) if least <= left else None

    def _drop_empty(self) -> int:
        freed = 0
        with self._lock:
            for one in [one for one in self._open.values() if one.owned and one.empty]:
                with contextlib.suppress(OSError):
                    with contextlib.suppress(FileNotFoundError):
                        one.path.unlink()
                    freed += one.size
                    self._known.pop(one.path, None)
                    self._close_or_doom(self._open.pop(one.number))
        return freed

    # -- syncing ------------------------------------------------------------------------

    def _settle(self, files: list[Container]) -> None:
        """Sync files, then let the room be granted that was freed in them before."""
        with self._syncs:
            for one in files:
                with self._lock:
                    freed = one.unsettled()
                try:
                    _sync(one.fd)
                except OSError:
                    with self._lock:
                        one.pending |= freed
                    raise
                for spot in freed.values():
                    one.punch(spot)
                with self._lock:
                    for spot in freed.values():
                        one.give_back(spot)

    @contextlib.contextmanager
    def _using(self, number: int) -> Iterator[Container]:
        """Keep a file's descriptor open meanwhile."""
        with self._lock:
            one = self._open.get(number)
            if one is None:
                raise FileNotFoundError(f"container {number} in {self.path} is not open")
            one.users += 1
        try:
            yield one
        finally:
            with self._lock:
                one.users -= 1
                if one.doomed and not one.users:
                    one.close(unlock=True)

    def _close_or_doom(self, one: Container) -> None:
        one.doomed = True
        if not one.users:
            one.close(unlock=True)

    # -- the directory ------------------------------------------------------------------

    def _survey(self) -> None:
        """See which files there are now."""
        found, damaged = survey(self.path, self._known, self._numbers)
        with self._lock:
            self._known = found
            self.corrupt += damaged

    def _visit(self, path: Path, known: Known) -> list[tuple[Spot, Entry, bool]]:
        """Take a file over if nobody has it, else look at it; return what is new."""
        number = known.number
        with self._lock:
            one = self._open.get(number)
        if one is not None and one.owned:
            return []
        fd = lock(path)
        if fd is not None:
            return self._adopt(path, number, fd, one)
        if one is None:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                one = Container(number, path, fd, read_head(fd), owned=False)
            except (OSError, Damaged, Foreign):
                os.close(fd)
                raise
            with self._lock:
                self._open[number] = one
        if known.mtime == one.seen_mtime and time.time() - known.mtime > _CLOCK_S:
            return []
        one.seen_mtime = known.mtime
        return [(*item, False) for item in one.news()]

    def _adopt(
        self, path: Path, number: int, fd: int, before: Container | None
    ) -> list[tuple[Spot, Entry, bool]]:
        try:
            one = Container(number, path, fd, read_head(fd), owned=True)
            entries, damaged = one.adopt_rows()
        except (OSError, Damaged, Foreign):
            os.close(fd)
            raise
        with self._lock:
            self.corrupt += damaged
            self._open[number] = one
            if before is not None:
                self._close_or_doom(before)
        return [(*item, True) for item in entries]

    def _forget(self, one: Container) -> None:
        with self._lock:
            del self._open[one.number]
            self._close_or_doom(one)


_sync = getattr(os, "fdatasync", os.fsync)
