"""One index over everything cached: the engine's rows, and those put in by name.

The engine's rows live in its cache; rows of tier servers, of ``cache_ram:put`` and of
saves by hand live in a table beside it.  Where both have a row, the engine's is shown.

Paths in rows come from peers.  Files are read, written and deleted only where a running
tier server would have put that very row.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, NamedTuple

from erllama_py._cache.kvc import BadKvc
from erllama_py._cache.kvcfile import KvcDirectory, Saved
from erllama_py._cache.kvcrow import Entry, touch_hits
from erllama_py._cache.ram import Extent
from erllama_py._cache.reservations import SWEEP_S, ExternalRow, Published, Recover, Table
from erllama_py._cache.store import Cache
from erllama_py._cache.writer import Places
from erllama_py._engine.registry import core
from erllama_py._machine.environment import Environment
from erllama_py.errors import BadCall, ErllamaError, ModelGone
from erllama_py.otp._servers import Server, Servers, TierPid, directory_of, tell
from erllama_py.otp._source import CachedRow, CacheSource, Source
from erllama_py.types import Atom, Ref, next_serial

__all__ = ("Index", "Pin", "index", "key_argument", "made")

TIERS: Final = ("ram", "ram_file", "disk")

_SHARE: Final = 4
"""Rows put in by hand may take one part in so many of a tier's quota: the engine cannot
evict them for its own."""

_POLL_S: Final = 0.02
"""How often a wait looks for a row that the engine is saving."""

_GAUGES: Final = {"disk": "bytes_disk", "ram_file": "bytes_ramfile"}


class Pin(NamedTuple):
    """A row that is checked out."""

    ref: Ref
    row: CachedRow | ExternalRow


class _Holder(NamedTuple):
    pid: object
    key: bytes
    external: bool


class _Slab(NamedTuple):
    extent: Extent
    size: int


class Index:
    """Thread-safe.

    :param source: the engine's cache.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        fallback = 2 * (os.cpu_count() or 1) + 1
        self.places = Places(Environment().get("writer_max_concurrent") or fallback)
        self.servers = Servers()
        self._arrived = threading.Condition(threading.RLock())
        self._table = Table(source.clock)
        self._holders: dict[Ref, _Holder] = {}
        self._slabs: dict[bytes, _Slab] = {}
        self._swept = source.clock()

    # -- rows -------------------------------------------------------------------------

    def terms(self) -> list[tuple[Any, ...]]:
        """Return all rows, those being written included."""
        self._sweep()
        cached = {row.key: row.term() for row in self.source.rows()}
        with self._arrived:
            external = {row.key: row.term() for row in self._table.rows()}
            writing = {row[0]: row for row in self._table.placeholders()}
        return list({**writing, **external, **cached}.values())

    def term(self, key: bytes) -> tuple[Any, ...] | None:
        """Return one row, being written or not."""
        self._sweep()
        row = self.available(key)
        if row is not None:
            return row.term()
        with self._arrived:
            return self._table.placeholder(key)

    def available(self, key: bytes) -> CachedRow | ExternalRow | None:
        """Return an available row."""
        row = self.source.row(key)
        if row is not None:
            return row
        with self._arrived:
            return self._table.row(key)

    def has(self, key: bytes) -> bool:
        """Whether :meth:`available` would return a row."""
        if self.source.has(key):
            return True
        with self._arrived:
            return self._table.row(key) is not None

    def await_row(self, key: bytes, timeout_ms: float) -> CachedRow | ExternalRow | None:
        """Return an available row, waiting for one that is being written."""
        deadline = time.monotonic() + timeout_ms / 1000
        row = self.available(key)
        if row is not None or not self._is_writing(key):
            return row
        while (left := deadline - time.monotonic()) > 0:
            self._sweep()
            with self._arrived:
                self._arrived.wait(min(left, _POLL_S))
            row = self.available(key)
            if row is not None:
                return row
        return None

    def _is_writing(self, key: bytes) -> bool:
        with self._arrived:
            return self._table.writing(key) or self.source.writing(key) is not None

    def insert_available(
        self,
        key: bytes,
        tier: str,
        size: int,
        header: bytes,
        location: tuple[Any, ...],
        tokens: bytes | None,
    ) -> None:
        """Put a row in and wake those who wait for it."""
        with self._arrived:
            self._table.insert_available(key, tier, size, header, location, tokens)
            self._arrived.notify_all()

    # -- pins -------------------------------------------------------------------------

    def checkout(self, key: bytes, pid: object) -> Pin | None:
        """Pin a row for a process.

        :raises ErllamaError: ``busy``: it is being written.
        """
        ref = Ref(next_serial())
        while (row := self.source.row(key)) is not None:
            if self.source.pin(key):  # or else it was evicted in between
                with self._arrived:
                    self._holders[ref] = _Holder(pid, key, external=False)
                return Pin(ref, row)
        with self._arrived:
            external = self._table.pin(key)
            if external is not None:
                self._holders[ref] = _Holder(pid, key, external=True)
        if external is None:
            if self._is_writing(key):
                raise ErllamaError("busy", "this row is being written")
            return None
        if self.servers.holding(key, external.path) is not None:
            touch_hits(directory_of(external.path), external.hits)
        return Pin(ref, external)

    def checkin(self, ref: object) -> None:
        """Take a pin off.  One that is not known is ignored."""
        with self._arrived:
            holder = self._holders.pop(ref, None) if isinstance(ref, Ref) else None
            if holder is not None and holder.external:
                self._table.unpin(holder.key)
        if holder is not None and not holder.external:
            self.source.unpin(holder.key)

    # -- eviction ---------------------------------------------------------------------

    def evict(self, target: int | None, tiers: Collection[str] = TIERS) -> tuple[int, int]:
        """Evict rows put in by name, then the engine's; return (rows, bytes)."""
        rows = freed = 0
        with self._arrived:
            going = list(self._table.evictable(tiers))
        for row in going:
            if target is not None and freed >= target:
                return rows, freed
            with self._arrived:
                if row.refcount or self._table.row(row.key) is not row:
                    continue
                self._table.remove(row.key)
            freed += self._free(row)
            rows += 1
            self.source.counters.incr("evictions")
        if target is not None and freed >= target:
            return rows, freed
        more, bytes_more = self.source.evict(None if target is None else target - freed, tiers)
        return rows + more, freed + bytes_more

    def _free(self, row: ExternalRow) -> int:
        """Remove what a row names; return the bytes that are free now."""
        server = self.servers.holding(row.key, row.path)
        if server is not None:
            return server.rows.delete(row.key)
        return self._free_slab(row.key)

    def forget(self, key: bytes, path: bytes | None) -> None:
        """Take a row out whose file is gone, unless it names another."""
        with self._arrived:
            row = self._table.row(key)
            if row is not None and row.path == path:
                self._table.remove(key)

    # -- payloads in memory -----------------------------------------------------------

    def put_slab(self, key: bytes, slab: bytes, header: bytes) -> None:
        """Keep a payload in memory as a row, in place of an earlier one.

        :raises ErllamaError: ``quota_exceeded``.
        """
        room = self.source.memory_quota() // _SHARE
        self._free_slab(key)
        while len(slab) > 0 and len(slab) + self._slab_bytes() > room and self._evict_slab():
            pass
        extent = self.source.reserve(len(slab)) if self._fits(slab, room) else None
        if slab and extent is None:
            with self._arrived:
                self._table.remove(key)
            raise ErllamaError(
                "quota_exceeded",
                f"{len(slab)} bytes do not fit into the {room} for rows put in by hand",
                "raise the memory tier's quota",
            )
        if extent is not None:
            self.source.view(extent)[: len(slab)] = slab
            with self._arrived:
                replaced = self._slabs.get(key)
                self._slabs[key] = _Slab(extent, len(slab))
            if replaced is not None:
                self.source.release(replaced.extent)
        self.insert_available(key, "ram", len(slab), header, (Atom("ram"),), None)

    def slab(self, key: bytes) -> bytes | None:
        """Return a payload kept in memory."""
        with self._arrived:
            one = self._slabs.get(key)
            if one is not None:
                return bytes(self.source.view(one.extent)[: one.size])
            row = self._table.row(key)
            return b"" if row is not None and row.tier == "ram" and row.size == 0 else None

    def delete_slab(self, key: bytes) -> None:
        """Drop a payload and its row."""
        self._free_slab(key)
        with self._arrived:
            row = self._table.row(key)
            if row is not None and row.tier == "ram":
                self._table.remove(key)

    def _fits(self, slab: bytes, room: int) -> bool:
        return len(slab) > 0 and len(slab) + self._slab_bytes() <= room

    def _slab_bytes(self) -> int:
        with self._arrived:
            return sum(one.size for one in self._slabs.values())

    def _evict_slab(self) -> bool:
        with self._arrived:
            for row in self._table.evictable(("ram",)):
                if row.key in self._slabs:
                    self._table.remove(row.key)
                    break
            else:
                return False
        self._free_slab(row.key)
        self.source.counters.incr("evictions")
        return True

    def _free_slab(self, key: bytes) -> int:
        with self._arrived:
            one = self._slabs.pop(key, None)
        if one is None:
            return 0
        self.source.release(one.extent)
        return one.size

    # -- reservations -----------------------------------------------------------------

    def reserve_save(self, key: bytes, tier: str, pid: object) -> Ref:
        """Reserve a row; see :class:`~erllama_py._cache.reservations.Table`.

        :raises ErllamaError: ``already_present`` or ``conflict``.
        """
        if self.source.has(key):
            raise ErllamaError("already_present", "this row is there already")
        while True:
            with self._arrived:
                found = self._table.reserve_save(key, tier, pid)
            if isinstance(found, Ref):
                return found
            self._recover([found])

    def check_reservation(self, key: bytes, token: object) -> None:
        """Extend a reservation.

        :raises ErllamaError: ``expired``.
        """
        with self._arrived:
            self._table.check(key, token)

    def mark_published(self, key: bytes, token: object, path: bytes) -> None:
        """Note a reserved row's file.

        :raises ErllamaError: ``expired``.
        """
        with self._arrived:
            self._table.mark_published(key, token, path)

    def announce_saved(
        self, key: bytes, token: object, size: int, header: bytes, tokens: bytes | None
    ) -> None:
        """Make a reserved row available and wake those who wait for it.

        :raises ErllamaError: ``expired``.
        """
        with self._arrived:
            self._table.announce(key, token, size, header, tokens)
            self._arrived.notify_all()

    def cancel_reservation(self, key: bytes, token: object) -> None:
        """Give a reservation up."""
        with self._arrived:
            self._table.cancel(key, token)

    def process_died(self, pid: object) -> None:
        """Let go of all that a process held: pins, reservations, its place."""
        with self._arrived:
            held = [ref for ref, one in self._holders.items() if one.pid == pid]
            recover = self._table.writer_died(pid)
        for ref in held:
            self.checkin(ref)
        self.places.holder_died(pid)
        self._recover(recover)

    def _sweep(self) -> None:
        """Give up expired reservations, if it is time: nobody sees the difference."""
        with self._arrived:
            if self.source.clock() - self._swept < SWEEP_S * 1_000_000_000:
                return
            self._swept = self.source.clock()
            recover = self._table.sweep()
        self._recover(recover)

    def _recover(self, files: list[Recover]) -> None:
        for one in files:
            found = self._check(one)
            with self._arrived:
                self._table.recovered(one, found)
                self._arrived.notify_all()

    def _check(self, one: Recover) -> Published | None:
        server = self.servers.holding(one.key, one.path)
        if server is None:
            return None
        try:
            entry = server.rows.check(one.key)
        except BadKvc:
            self.source.counters.incr("corrupt_files")
            server.rows.delete(one.key)
            return None
        except OSError:
            return None
        return entry and Published(entry.size, entry.header, entry.facts.meta.tokens)

    # -- tier servers -----------------------------------------------------------------

    def start_tier(self, name: Any, kind: Any, where: Any) -> TierPid:
        """Start a tier server and put the rows of its directory into the index.

        :raises ErllamaError: ``{already_started, Pid}``, ``{cannot_create_dir, Dir, Reason}``.
        """
        path = directory_of(where)
        server = self.servers.start(name, kind, lambda: self._directory(kind, path))
        try:
            server.rows.quota = self.source.start_tier(kind, server.name, path, _SHARE)
        except BaseException:
            self.servers.stop(name)
            raise
        for entry in server.rows.scan().entries:
            self._insert_entry(server, entry)
        tell("up", server)
        return server.pid

    def server(self, which: Any) -> Server:
        """Return a tier server by name or pid; one for each tier of the engine, too.

        :raises ModelGone: ``noproc``.
        """
        try:
            return self.servers.find(which)
        except ModelGone:
            tier = self.source.tier(which)
            if tier is None:
                raise
        with contextlib.suppress(ErllamaError):  # started by somebody else meanwhile
            self.start_tier(which, *tier)
        return self.servers.find(which)

    def _directory(self, kind: str, path: Path) -> KvcDirectory:
        counters = self.source.counters
        return KvcDirectory(
            path,
            on_corrupt=lambda: counters.incr("corrupt_files"),
            on_bytes=lambda change: counters.besides(_GAUGES[kind], change),
        )

    def stop_tier(self, which: Any) -> None:
        """Stop a tier server; its rows leave the index, its files stay.

        :raises ModelGone: ``noproc``.
        """
        server = self.servers.stop(which)
        with self._arrived:
            for row in self._table.rows():
                if row.path == os.fsencode(server.rows.path_of(row.key)):
                    self._table.remove(row.key)
        self.source.counters.besides(_GAUGES[server.kind], -server.rows.stored)
        tell("down", server)

    def rescan(self, server: Server) -> list[Entry]:
        """Scan a server's directory again, put new rows in and take lost ones out."""
        found = server.rows.scan().entries
        there = {entry.key for entry in found}
        with self._arrived:
            for row in self._table.rows():
                path = server.rows.path_of(row.key)
                if row.path == os.fsencode(path) and row.key not in there and not path.exists():
                    self._table.remove(row.key)
            new = [one for one in found if self._table.row(one.key) is None]
        for entry in new:
            self._insert_entry(server, entry)
        return found

    def saved(self, server: Server, row: Saved, tokens: bytes) -> None:
        """Put a row in that was saved past the reservations.

        One that somebody has reserved waits for their announcement.
        """
        location = (Atom(server.kind), os.fsencode(row.path))
        with self._arrived:
            if not self._table.writing(row.key):
                self.insert_available(row.key, server.kind, row.size, row.header, location, tokens)

    def _insert_entry(self, server: Server, entry: Entry) -> None:
        row = Saved(entry.key, entry.path, entry.header, entry.size, adopted=True)
        self.saved(server, row, entry.facts.meta.tokens)


class _Home:
    """The index of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cache: object = None
        self._index: Index | None = None

    @property
    def present(self) -> Index | None:
        """The index, if it was asked for before."""
        return self._index

    def index(self, cache: Cache) -> Index:
        """Return the index over a cache; a new one where the core has a new cache."""
        with self._lock:
            if self._index is None or self._cache is not cache:
                self._cache, self._index = cache, Index(CacheSource(cache))
            return self._index


_home = _Home()


def index() -> Index:
    """Return the index over this process's cache."""
    return _home.index(core().cache)


def made() -> Index | None:
    """Return the index if there is one: looking makes none, nor a cache."""
    return _home.present


def key_argument(value: Any) -> bytes:
    """Check a key argument.

    :raises BadCall: it is not ``bytes``.
    """
    if not isinstance(value, bytes):
        raise BadCall("function_clause", f"a key is 32 bytes, not {value!r}")
    return value


# A child's core is new, and the lock may be held by a thread that the child does not have.
os.register_at_fork(after_in_child=_home.__init__)  # type: ignore[misc]
