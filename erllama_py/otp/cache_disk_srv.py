"""``erllama_cache_disk_srv``: directories of whole rows, under a name.

Servers are named by atom or by what :func:`start_link` returned.  Paths come back as
``bytes``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from erllama_py._cache import kvc, kvcrow
from erllama_py._cache.kvc import BadKvc, Meta
from erllama_py._cache.kvcfile import KvcDirectory, Saved, Staged
from erllama_py._cache.reservations import TTL_NS
from erllama_py._engine import exchange
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.otp._index import Index, index, key_argument, made
from erllama_py.otp._maps import info_of, meta_of
from erllama_py.otp._servers import Server, ServerWatcher, TierPid, directory_of
from erllama_py.otp._servers import watch as _watch
from erllama_py.types import Atom

__all__ = (
    "TierPid",
    "abort_tmp",
    "delete",
    "dir",
    "directories",
    "load",
    "publish",
    "running",
    "save",
    "scan",
    "start_link",
    "stop",
    "touch_hits",
    "watch",
    "write_tmp",
)

_OK: Final = Atom("ok")

_ABANDONED_NS: Final = TTL_NS
"""How long a written row waits to be published: as long as its reservation."""


class _Written(NamedTuple):
    rows: KvcDirectory
    staged: Staged
    at: int


_written: Final[dict[bytes, _Written]] = {}
"""Rows written and not published, by temporary path: what is passed around is a map that
anybody may have made up."""


def start_link(name: str, *args: Any) -> TierPid:
    """Start a server: ``start_link(name, dir)`` or ``start_link(name, tier, dir)``.

    The directory is created where it is not there, and its rows are put into the index.
    The server lives until :func:`stop`; it is not linked to anybody.

    :param tier: ``disk``, the default, or ``ram_file``.
    :raises ErllamaError: ``{already_started, Pid}``, ``{cannot_create_dir, Dir, Reason}``.
    """
    match args:
        case (where,):
            return index().start_tier(name, "disk", where)
        case (tier, where):
            return index().start_tier(name, tier, where)
        case _:
            raise TypeError("start_link takes a name, a tier (disk) and a directory")


def stop(server: Any) -> Atom:
    """Stop a server.  Its rows leave the index, its files stay.

    :return: ``ok``.
    :raises ModelGone: ``noproc``, here and below.
    """
    index().stop_tier(server)
    return _OK


def save(server: Any, meta: Mapping[str, Any], payload: bytes) -> tuple[bytes, bytes, int]:
    """Save a row; it is in the index afterwards.

    With ``engine`` in its map, as :func:`load` returns it, and that very engine loaded, the
    row is soon in the engine's cache, too, and prompts can begin with it.  Without, it
    stays a file: nobody knows what computed it (see :func:`erllama_py.api.import_rows`).

    :return: (key, header, size).  Those of the row that was there, if one was.
    :raises ErllamaError: ``{missing_key, K}``, ``quota_exceeded``, the system's reason.
    """
    here = index()
    where = here.server(server)
    facts = meta_of(meta)
    saved = where.rows.save(facts, _payload(payload))
    here.saved(where, saved, facts.tokens)
    exchange.offer(saved.path, facts)
    return _answer(saved)


def write_tmp(root: Any, meta: Mapping[str, Any], payload: bytes) -> dict[str, Any]:
    """Write a row under a temporary name, to be published or aborted.

    :param root: the directory, see :func:`dir`.
    :return: a map for :func:`publish`: ``key``, ``tmp``, ``final``, ``prefix``, ``root``.
    """
    _drop_abandoned()
    rows = _rows_at(directory_of(root))
    staged = rows.write_tmp(meta_of(meta), _payload(payload))
    tmp = os.fsencode(staged.tmp)
    _written[tmp] = _Written(rows, staged, index().source.clock())
    return {
        "key": staged.key,
        "tmp": tmp,
        "final": os.fsencode(staged.final),
        "prefix": staged.prefix,
        "root": os.fsencode(rows.dir),
    }


def publish(*args: Any) -> tuple[bytes, bytes, int]:
    """Give a written row its name: ``publish(map)`` or ``publish(root, tmp, final, key)``.

    :return: (key, header, size).  Those of the row that was there, if one was.
    :raises ErllamaError: ``tmp_unreadable``: nothing was written under this name, or it
        is published; else as in :mod:`erllama_py._cache.kvcfile`.
    """
    match args:
        case ({"key": key, "tmp": tmp, "final": final},) | (_, tmp, final, key):
            found = _take(tmp)
        case _:
            raise BadCall("function_clause", "publish takes what write_tmp returned")
    if found is None:
        raise ErllamaError("tmp_unreadable", f"nothing is written as {tmp!r}", "write_tmp it")
    rows, staged, _ = found
    if (staged.key, staged.final) != (key, directory_of(final)):
        rows.abort_tmp(staged)
        raise BadCall("badarg", f"{tmp!r} is not the row that is to be published")
    return _answer(rows.publish(staged))


def abort_tmp(written: Mapping[str, Any]) -> Atom:
    """Drop a written row.

    :return: ``ok``, for one that is gone too.
    """
    found = _take(written.get("tmp"))
    if found is not None:
        found.rows.abort_tmp(found.staged)
    return _OK


def load(server: Any, key: bytes) -> tuple[dict[str, Any], bytes] | Atom:
    """Return the info map and the payload of a row, or ``miss``.

    A row of the engine's that is saved in this tier is put together by its model, which
    waits for a free slot; :func:`erllama_py.api.export_row` says how it may fail.

    :raises ErllamaError: it was damaged, and is gone now, from the index too;
        ``model_not_loaded``: only a model that is not loaded can put it together.
    """
    here = index()
    where = here.server(server)
    path = os.fsencode(where.rows.path_of(key_argument(key)))
    try:
        found = where.rows.load(key)
    except BadKvc:
        here.forget(key, path)
        raise
    if found is not None:
        return info_of(found.facts), bytes(found.payload)
    here.forget(key, path)
    row = here.source.row(key)
    if row is not None and row.tier == where.kind:
        return exported(key)
    return Atom("miss")


def exported(key: bytes) -> tuple[dict[str, Any], bytes] | Atom:
    """Return the info map and the payload of a row of the engine's, or ``miss``.

    :raises ErllamaError: see :func:`load`.
    """
    try:
        meta, payload = exchange.export(key)
    except ErllamaError as error:
        if error.reason == "not_found":  # evicted meanwhile
            return Atom("miss")
        raise
    prefix = kvc.prefix(meta, payload)
    return info_of(kvc.parse_meta(prefix, len(prefix) + len(payload))), payload


def delete(server: Any, key: bytes) -> Atom:
    """Delete a row's file, and the row.

    :return: ``ok``, where there is none too.
    """
    here = index()
    where = here.server(server)
    where.rows.delete(key_argument(key))
    here.forget(key, os.fsencode(where.rows.path_of(key)))
    return _OK


def dir(server: Any) -> bytes:  # noqa: A001 - the original's name
    """Return a server's directory."""
    return os.fsencode(index().server(server).rows.dir)


def directories() -> list[bytes]:
    """Return the directories of the servers that run.  Not in the original."""
    return [os.fsencode(server.rows.dir) for server in index().servers.all()]


def running() -> list[tuple[Atom, TierPid]]:
    """Return (name, pid) of the servers that run.  Not in the original."""
    here = made()  # or else nobody has started one
    return [(server.name, server.pid) for server in here.servers.all()] if here else []


def watch(watcher: ServerWatcher) -> Callable[[], None]:
    """Call ``watcher("up" | "down", name, pid)`` as servers come and go.

    It must be quick.  Returns a function that ends it.  Not in the original.
    """
    return _watch(watcher)


def scan(server: Any) -> list[tuple[bytes, bytes, int]]:
    """Look through a server's directory again; return (key, header, size) of each row.

    What came is put into the index, what went is taken out, what dead writers left and
    damaged rows are removed.
    """
    _drop_abandoned()
    here = index()
    entries = here.rescan(here.server(server))
    return [(one.key, one.header, one.size) for one in entries]


def touch_hits(path: Any, hits: int) -> Atom:
    """Write a hit count into a row's file, if a running server has it.

    :return: ``ok`` in any case.
    """
    where = directory_of(path)
    if type(hits) is not int or hits < 0:
        raise BadCall("function_clause", f"{hits!r} is no number of hits")
    here = index()
    if any(_is_row_of(server, where) for server in here.servers.all()):
        kvcrow.touch_hits(where, hits)
    return _OK


def save_reserved(
    here: Index, where: Server, meta: Meta, payload: bytes, key: bytes, token: object
) -> None:
    """Save a row that the caller has reserved, and announce it.

    :raises ErllamaError: ``expired``, or why it could not be saved; the reservation is
        given up, but for a published file that is found later.
    """
    try:
        staged = where.rows.write_tmp(meta, _payload(payload))
        try:
            here.check_reservation(key, token)
        except ErllamaError:
            where.rows.abort_tmp(staged)
            raise
        saved = where.rows.publish(staged)
    except BaseException:
        here.cancel_reservation(key, token)
        raise
    here.mark_published(key, token, os.fsencode(saved.path))
    here.announce_saved(key, token, saved.size, saved.header, meta.tokens)
    exchange.offer(saved.path, meta)


def _is_row_of(server: Server, path: Path) -> bool:
    return path.parent == server.rows.dir and path.suffix == ".kvc"


def _rows_at(path: Path) -> KvcDirectory:
    for server in index().servers.all():
        if server.rows.dir == path:
            return server.rows
    return KvcDirectory(path)


def _take(tmp: Any) -> _Written | None:
    return _written.pop(os.fsencode(directory_of(tmp)), None)


def _drop_abandoned() -> None:
    """Drop what nobody published in time: its lock is ours, so no scan takes it."""
    oldest = index().source.clock() - _ABANDONED_NS
    for tmp, one in list(_written.items()):
        if one.at < oldest and _written.pop(tmp, None) is not None:
            one.rows.abort_tmp(one.staged)


def _answer(saved: Saved) -> tuple[bytes, bytes, int]:
    return saved.key, saved.header, saved.size


def _payload(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise BadCall("function_clause", f"a payload is binary, not {type(value).__name__}")
    return value
