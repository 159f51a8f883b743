"""A directory of whole rows as files, one writer or many, any of which may die.

A row's file is ``<64 hex of its key>.kvc`` (:mod:`erllama_py._cache.kvc`).  Whoever sees
that name sees a whole file:

===  ==============================  ==================================================
1    write ``<name>.<pid>.<n>.part``  created exclusively, locked as long as it is written
2    sync its data                    or the name could outlive the bytes
3    hard link it to its name         atomic, and fails where the name is taken
4    remove the ``.part``
5    sync the directory               the name is durable
6    read it back, check everything   what the disk kept is what was written
===  ==============================  ==================================================

Where the name is taken by a file that passes the same check, that one is *adopted* and
ours dropped; a damaged one is replaced, once.

Temporary files do not end in ``.tmp`` as the original's do, which deletes every ``*.tmp`` at
start-up: a directory may be shared.  For the same reason a scan here removes only what is
named like ours: damaged rows, and ``.part`` files whose lock nobody holds, since a lock
goes with its process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from erllama_py._cache import kvc
from erllama_py._cache.kvc import BadKvc, Facts, Kvc, Meta
from erllama_py._cache.kvcrow import ROW_NAME, Entry, check_entry, is_damage, opened, read_entry
from erllama_py.errors import ErllamaError, refusal_of, system_reason
from erllama_py.types import Atom

__all__ = (
    "Foreign",
    "KvcDirectory",
    "Saved",
    "Scan",
    "Staged",
)

_PART: Final = re.compile(r"[0-9a-f]{64}\.kvc\.\d+\.\d+\.part")

# The clock keeps a name from coming back when a process id does.
_numbers: Final = itertools.count(time.time_ns())

_sync_data: Final[Callable[[int], None]] = getattr(os, "fdatasync", os.fsync)


class Staged(NamedTuple):
    """A row that is written and synced under a temporary name."""

    key: bytes
    tmp: Path
    final: Path
    prefix: bytes
    """The file's bytes before its payload."""
    size: int
    engine: bytes
    fd: int
    """Holds the lock."""


class Saved(NamedTuple):
    """A published row."""

    key: bytes
    path: Path
    header: bytes
    """48 bytes."""
    size: int
    """Bytes of the file."""
    adopted: bool
    """Whether the file was there before, and is not what was to be saved."""


class Foreign(NamedTuple):
    """A file a scan did not understand and left alone."""

    path: Path
    reason: object


class Scan(NamedTuple):
    """What a directory holds."""

    entries: list[Entry]
    foreign: list[Foreign]
    removed: list[Path]
    """Leftovers of dead writers, and damaged rows."""


class KvcDirectory:
    """Thread-safe; several processes may use one directory.

    :param path: created where it is not there.
    :param quota: tells the most bytes of rows, those being written included; None for no
        limit.
        Counts what :meth:`scan` found and this object saved, not what other processes
        add later.
    :param on_corrupt: called for each damaged row that is removed.
    :param on_bytes: called with each change of the bytes of whole rows.
    :raises ErllamaError: ``{cannot_create_dir, Dir, Reason}``.
    """

    def __init__(
        self,
        path: Path,
        *,
        quota: Callable[[], int] | None = None,
        on_corrupt: Callable[[], None] = lambda: None,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> None:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ErllamaError(
                (Atom("cannot_create_dir"), os.fsencode(path), system_reason(error)),
                f"cannot create {path}: {error.strerror}",
                "name a directory you may write to",
            ) from error
        self.dir: Final = path
        self.quota = quota
        self._on_corrupt = on_corrupt
        self._on_bytes = on_bytes
        self._lock = threading.Lock()
        self._sizes: dict[bytes, int] = {}
        self._staged = 0

    @property
    def used(self) -> int:
        """Bytes of the rows that are known, and of those being written."""
        with self._lock:
            return self._staged + sum(self._sizes.values())

    @property
    def stored(self) -> int:
        """Bytes of the rows that are known."""
        with self._lock:
            return sum(self._sizes.values())

    def path_of(self, key: bytes) -> Path:
        """Return the name a row has, whether it is there or not."""
        return self.dir / f"{key.hex()}.kvc"

    # -- saving -----------------------------------------------------------------------

    def save(self, meta: Meta, payload: bytes | memoryview) -> Saved:
        """Write and publish a row.

        :raises ErllamaError: as :meth:`write_tmp` and :meth:`publish` do.
        """
        return self.publish(self.write_tmp(meta, payload))

    def write_tmp(self, meta: Meta, payload: bytes | memoryview) -> Staged:
        """Write a row under a temporary name; to be published or aborted.

        :raises ErllamaError: ``quota_exceeded``, or the system's reason (``enospc``).
        """
        prefix, body = kvc.prefix(meta, payload), memoryview(payload).cast("B")
        key, size = kvc.key_of(meta), len(prefix) + len(body)
        final = self.path_of(key)
        tmp = self.dir / f"{final.name}.{os.getpid()}.{next(_numbers)}.part"
        self._grant(size)
        fd = -1
        try:
            fd = os.open(tmp, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            _write_all(fd, prefix)
            _write_all(fd, body)
            _sync_data(fd)
        except BaseException as error:
            self._drop(tmp, size, fd)
            if isinstance(error, OSError):
                raise refusal_of(error, tmp) from error
            raise
        return Staged(key, tmp, final, prefix, size, meta.engine, fd)

    def publish(self, staged: Staged) -> Saved:
        """Give a written row its name; the temporary file is gone whatever happens.

        :raises ErllamaError: ``eexist`` where the name cannot be had, ``enoent`` where the
            temporary file is gone, another reason of the system.
        :raises BadKvc: the disk did not keep what was written; nothing is published.
        """
        header = staged.prefix[: kvc.HEADER_BYTES]
        try:
            there = self._claim(staged)
            if there is not None:
                self._remember(staged.key, there.size)
                return Saved(staged.key, staged.final, there.header, there.size, adopted=True)
            self._check_published(staged)
        except OSError as error:
            raise refusal_of(error, staged.final) from error
        finally:
            self._drop(staged.tmp, staged.size, staged.fd)
        self._remember(staged.key, staged.size)
        return Saved(staged.key, staged.final, header, staged.size, adopted=False)

    def abort_tmp(self, staged: Staged) -> None:
        """Drop a written row that is not to be published."""
        self._drop(staged.tmp, staged.size, staged.fd)

    def _claim(self, staged: Staged) -> Entry | None:
        """Link a row to its name; return the row that has it already, if it may stay."""
        there: Entry | None = None
        try:
            os.link(staged.tmp, staged.final)
        except FileExistsError:
            there = self._adoptable(staged)
            if there is None:
                with contextlib.suppress(FileNotFoundError):
                    staged.final.unlink()
                os.link(staged.tmp, staged.final)
        staged.tmp.unlink()
        _sync_directory(self.dir)
        return there

    def _adoptable(self, staged: Staged) -> Entry | None:
        try:
            there = self.check(staged.key)
        except BadKvc as error:
            if not is_damage(error):
                raise FileExistsError(errno.EEXIST, "taken by another version's row") from error
            self._on_corrupt()
            return None
        # Another engine's payload is of no use to this one, and only one can have the name.
        return there if there and there.facts.meta.engine == staged.engine else None

    def _check_published(self, staged: Staged) -> None:
        try:
            there = self.check(staged.key)
        except BadKvc:
            self._on_corrupt()
            with contextlib.suppress(FileNotFoundError):
                staged.final.unlink()
            raise
        if there is None:
            raise FileNotFoundError(errno.ENOENT, "removed by somebody else")

    def _drop(self, tmp: Path, size: int, fd: int) -> None:
        with contextlib.suppress(OSError):
            tmp.unlink()
        if fd >= 0:
            os.close(fd)
        with self._lock:
            self._staged -= size

    # -- reading ----------------------------------------------------------------------

    def load(self, key: bytes) -> Kvc | None:
        """Return a row, fully checked, or None where there is none.

        :raises BadKvc: it was damaged, and is deleted now.
        :raises ErllamaError: the system's reason.
        """
        try:
            with opened(self.path_of(key)) as fd, open(fd, "rb", closefd=False) as file:
                data = file.read()
        except FileNotFoundError:
            self._forget(key)
            return None
        except OSError as error:
            raise refusal_of(error, self.path_of(key)) from error
        try:
            return kvc.parse(data, key)
        except BadKvc as error:
            self._remove_damaged(key, error)
            raise

    def load_meta(self, key: bytes) -> Facts | None:
        """Return what a row says, or None where there is none; the payload is not read.

        :raises BadKvc: it was damaged, and is deleted now.
        """
        try:
            found = read_entry(self.path_of(key))
            kvc.check_key(found.facts, key)
        except FileNotFoundError:
            self._forget(key)
            return None
        except OSError as error:
            raise refusal_of(error, self.path_of(key)) from error
        except BadKvc as error:
            self._remove_damaged(key, error)
            raise
        return found.facts

    def check(self, key: bytes) -> Entry | None:
        """Check a row as :meth:`load` does, without keeping it; None where there is none.

        :raises BadKvc: it is damaged; it is left there.
        :raises OSError: it cannot be read.
        """
        try:
            return check_entry(self.path_of(key), key)
        except FileNotFoundError:
            return None

    def delete(self, key: bytes) -> int:
        """Delete a row, if it is there; return the bytes this freed."""
        path = self.path_of(key)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            size = 0
        except OSError as error:
            raise refusal_of(error, path) from error
        self._forget(key)
        return size

    def _remove_damaged(self, key: bytes, error: BadKvc) -> None:
        if is_damage(error):
            self._on_corrupt()
            with contextlib.suppress(OSError):
                self.delete(key)

    # -- scanning ---------------------------------------------------------------------

    def scan(self) -> Scan:
        """List the rows that are there, and clean up.

        Payloads are not read, and damage to one is found when it is loaded.  A file is
        listed only under the name that its own records give it: tokens with a flipped
        bit would else serve other prompts.

        :raises ErllamaError: the directory cannot be read.
        """
        found = Scan([], [], [])
        with self._lock:
            before = set(self._sizes)
        try:
            paths = sorted(self.dir.iterdir())
        except OSError as error:
            raise refusal_of(error, self.dir) from error
        for path in paths:
            if _PART.fullmatch(path.name):
                if _is_left_over(path):
                    found.removed.append(path)
            elif path.suffix == ".kvc":
                self._scan_row(path, found)
        listed = {entry.key: entry.size for entry in found.entries}
        for key in before - listed.keys():
            if not self.path_of(key).exists():
                self._forget(key)
        for key, size in listed.items():
            self._remember(key, size)
        return found

    def _scan_row(self, path: Path, found: Scan) -> None:
        try:
            entry = read_entry(path)
            self._check_name(entry)
        except FileNotFoundError:
            return
        except OSError as error:
            found.foreign.append(Foreign(path, system_reason(error)))
        except BadKvc as error:
            if not (ROW_NAME.fullmatch(path.name) and is_damage(error)):
                found.foreign.append(Foreign(path, error.reason))
                return
            self._on_corrupt()
            with contextlib.suppress(OSError):
                path.unlink()
            found.removed.append(path)
        else:
            found.entries.append(entry)

    def _check_name(self, entry: Entry) -> None:
        if entry.path != self.path_of(entry.key):
            given = os.fsencode(entry.path.stem)
            raise BadKvc((Atom("key_mismatch"), given, entry.key), "a row under another's name")

    # -- bytes ------------------------------------------------------------------------

    def _grant(self, size: int) -> None:
        with self._lock:
            used = self._staged + sum(self._sizes.values())
            quota = used + size if self.quota is None else self.quota()
            if used + size > quota:
                raise ErllamaError(
                    "quota_exceeded",
                    f"{size} bytes more than {used} do not fit into {quota} in {self.dir}",
                    "evict rows first, or raise the tier's quota",
                )
            self._staged += size

    def _remember(self, key: bytes, size: int) -> None:
        with self._lock:
            change = size - self._sizes.get(key, 0)
            self._sizes[key] = size
        if change:
            self._on_bytes(change)

    def _forget(self, key: bytes) -> None:
        with self._lock:
            size = self._sizes.pop(key, 0)
        if size:
            self._on_bytes(-size)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_left_over(path: Path) -> bool:
    """Remove a temporary file nobody is writing any more; return whether it was one."""
    try:
        with opened(path) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except OSError:
        return False
    return True
