"""Tier servers: directories of rows under a name."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from erllama_py._cache.kvcfile import KvcDirectory
from erllama_py.errors import BadCall, ErllamaError, ModelGone
from erllama_py.types import Atom, next_serial

__all__ = ("Server", "ServerWatcher", "Servers", "TierPid", "directory_of", "tell", "watch")


class TierPid(msgspec.Struct, frozen=True):
    """Stands for one life of a tier server, as a pid does."""

    serial: int


class Server(msgspec.Struct):
    """A running tier server."""

    name: Atom
    kind: str
    """``disk`` or ``ram_file``."""
    pid: TierPid
    rows: KvcDirectory


ServerWatcher = Callable[[str, Atom, TierPid], None]
"""Called with ("up" | "down", name, pid); must not block or raise."""

_watchers: list[ServerWatcher] = []


def watch(watcher: ServerWatcher) -> Callable[[], None]:
    """Call ``watcher`` at every start and end of a server; return what ends this."""
    _watchers.append(watcher)
    return lambda: _watchers.remove(watcher)


class Servers:
    """By name and by pid.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, Server] = {}

    def start(self, name: Any, kind: Any, make: Callable[[], KvcDirectory]) -> Server:
        """Register a server.

        :raises ErllamaError: ``{already_started, Pid}``.
        :raises BadCall: the name or the kind cannot be.
        """
        if not isinstance(name, str) or kind not in ("disk", "ram_file"):
            raise BadCall("function_clause", f"no tier server {name!r} of kind {kind!r} can be")
        with self._lock:
            known = self._running.get(name)
            if known is not None:
                raise ErllamaError(
                    (Atom("already_started"), known.pid),
                    f"a server named {name} is running, on {known.rows.dir}",
                    "stop it first, or choose another name",
                )
            server = Server(Atom(name), kind, TierPid(next_serial()), make())
            self._running[name] = server
            return server

    def stop(self, which: Any) -> Server:
        """Take a server out.

        :raises ModelGone: ``noproc``.
        """
        server = self.find(which)
        with self._lock:
            self._running.pop(server.name, None)
        return server

    def find(self, which: Any) -> Server:
        """Return a server by name or pid.

        :raises ModelGone: ``noproc``.
        """
        for server in self.all():
            if which in (server.name, server.pid):
                return server
        raise ModelGone("noproc", f"no tier server {which!r} is running", "start_link it first")

    def all(self) -> list[Server]:
        """Return all that run."""
        with self._lock:
            return list(self._running.values())

    def holding(self, key: bytes, path: bytes | None) -> Server | None:
        """Return the server in whose directory this path is the name of this row.

        Only such files are touched: rows come from peers, and may name any path.
        """
        for server in self.all():
            if path is not None and os.fsencode(server.rows.path_of(key)) == path:
                return server
        return None


def tell(what: str, server: Server) -> None:
    """Tell the watchers that a server serves, or that nothing is left of it."""
    for watcher in tuple(_watchers):
        watcher(what, server.name, server.pid)


def directory_of(value: Any) -> Path:
    """Return a directory argument: text, bytes or a charlist.

    :raises BadCall: it is none of these.
    """
    try:
        match value:
            case str() | Path():
                return Path(value)
            case bytes():
                return Path(os.fsdecode(value))
            case list():
                return Path("".join(map(chr, value)))
    except (OverflowError, TypeError, ValueError):
        pass
    raise BadCall("badarg", f"{value!r} is no directory")
