"""The pids and registered names of tier servers.

A peer starts a server over ``rpc``; in the original it is then linked to a process that
ends with the call, and dies of it.  Here it belongs to the core and to nobody else: it
ends when it is asked to, by ``exit(Pid, Reason)``.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import anyio.to_thread

from erl_bridge.etf import Atom, Pid
from erl_bridge.runtime import GenHandler, Node, Process
from erllama_py.errors import ErllamaError
from erllama_py.otp import cache_disk_srv
from erllama_py.otp.cache_disk_srv import TierPid

__all__ = ("TierProcesses",)

_NORMAL: Final = Atom("normal")
_SHUTDOWN: Final = Atom("shutdown")
_KILL: Final = Atom("kill")
_KILLED: Final = Atom("killed")


class TierProcesses:
    """One process of the node for each tier server that a peer has heard of.

    :param handler_of: what the process serves as ``gen_server`` calls.
    """

    def __init__(self, node: Node, handler_of: Callable[[TierPid], GenHandler]) -> None:
        self._node = node
        self._handler_of = handler_of
        self._lock = threading.Lock()
        self._by_tier: dict[TierPid, Process] = {}
        self._by_pid: dict[Pid, TierPid] = {}
        self._charlists: set[bytes] = set()
        self._reasons: dict[TierPid, Any] = {}
        """Of servers that a peer has asked to end."""
        self._forget: Callable[[], None] | None = None

    def start(self) -> None:
        """Register the names of the servers that run, and of those that will."""
        self._forget = cache_disk_srv.watch(self._watch)
        for name, tier in cache_disk_srv.running():
            self._node.run_in_loop(self._register, name, tier)

    def _watch(self, what: str, name: str, tier: TierPid) -> None:
        with self._lock:
            process = self._by_tier.get(tier)
        with contextlib.suppress(RuntimeError):  # the node ends at this moment
            if what == "up":
                self._node.run_in_loop(self._register, name, tier)
            elif process is not None:
                process.exit(self._reasons.pop(tier, _SHUTDOWN))

    def _register(self, name: str, tier: TierPid) -> None:
        """Give a server its name, where nobody else has it; in the loop."""
        with contextlib.suppress(ValueError):
            process = self._process(tier)
            if process.name is None:
                self._node.register_name(name, process)

    def tier_of(self, pid: Pid) -> TierPid | None:
        """Return the tier server a pid stands for, ended ones included."""
        return self._by_pid.get(pid)

    def pid_of(self, tier: TierPid) -> Pid:
        """Return the pid that stands for a tier server."""
        return self._process(tier).pid

    def started(self, name: Atom, tier: TierPid, path: str, *, charlist: bool) -> Pid:
        """Give a server that has just been started its name.

        :param charlist: whether its directory was given as one; its paths are then shown
            as such.
        """
        process = self._process(tier)
        if charlist:
            self._charlists.add(os.fsencode(path))
        with contextlib.suppress(ValueError):  # taken in the same moment: it has a pid still
            self._node.unregister_name(name.name)
            self._node.register_name(name.name, process)
        return process.pid

    def stop(self, tier: TierPid, reason: Any) -> None:
        """End a server, soon, with this reason; in the loop."""
        self._node.start_task(self._stopped(tier, self._process(tier), reason))

    def other(self, name: Atom) -> Pid | None:
        """Return the pid under a name that is no tier server's."""
        process = self._node.whereis(name.name)
        return process.pid if process and process.pid not in self._by_pid else None

    def path(self, path: bytes) -> Any:
        """Return the term of a path: as its server's directory was given."""
        text = os.fsdecode(path)
        parent = os.fsencode(Path(text).parent)
        if path not in self._charlists and parent not in self._charlists:
            return path
        return [ord(char) for char in text]

    def close(self) -> None:
        """End the processes; the servers live on."""
        if self._forget is not None:
            self._forget()
            self._forget = None
        with self._lock:
            processes = list(self._by_tier.values())
            self._by_tier.clear()
            self._by_pid.clear()
        for process in processes:
            process.exit(_SHUTDOWN)

    def _process(self, tier: TierPid) -> Process:
        with self._lock:
            process = self._by_tier.get(tier)
            if process is None:
                process = self._by_tier[tier] = self._spawn(tier)
                self._by_pid[process.pid] = tier
            return process

    def _spawn(self, tier: TierPid) -> Process:
        def asked(_pid: Pid, reason: Any) -> None:
            if reason is not _NORMAL:  # which does nothing to others, as in Erlang
                self.stop(tier, _KILLED if reason is _KILL else reason)

        return self._node.spawn_process(on_exit_request=asked, handler=self._handler_of(tier))

    async def _stopped(self, tier: TierPid, process: Process, reason: Any) -> None:
        self._reasons[tier] = reason
        with contextlib.suppress(ErllamaError):  # stopped already
            await anyio.to_thread.run_sync(cache_disk_srv.stop, tier)
        self._reasons.pop(tier, None)
        process.exit(reason)
