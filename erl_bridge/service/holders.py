"""Processes of peers that hold something of the cache: pins, reservations, a writer's place.

The cache lets go of what a process holds when it is told that the process ended.  Here a
holder is monitored from the first thing it holds until the last is given back.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any

import anyio.to_thread

from erl_bridge.etf import Pid, Reference
from erl_bridge.runtime import Node
from erllama_py.otp import cache_meta_srv

__all__ = ("Holders",)


class Holders:
    """Thread-safe."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._holder: dict[Hashable, Pid] = {}
        self._held: dict[Pid, set[Hashable]] = {}
        self._watches: dict[Pid, Reference] = {}

    def hold(self, pid: Pid, what: Hashable) -> None:
        """Note that a process holds something, after it got it.

        One that ended before is found out by the monitor, so nothing stays held.
        """
        with self._lock:
            self._holder[what] = pid
            self._held.setdefault(pid, set()).add(what)
            if pid in self._watches:
                return
            ref = self._watches[pid] = self._node.make_ref()
        self._node.monitor(pid, self._down, ref=ref)

    def drop(self, what: Hashable) -> None:
        """Note that something was given back; unknown things are ignored."""
        with self._lock:
            pid = self._holder.pop(what, None)
            if pid is None:
                return
            self._held[pid].discard(what)
            if self._held[pid]:
                return
            ref = self._forget(pid)
        if ref is not None:
            self._node.demonitor(ref)

    def close(self) -> None:
        """Let go of everything: no peer can give it back any more."""
        with self._lock:
            pids = list(self._held)
            for pid in pids:
                self._forget(pid)
        for pid in pids:
            cache_meta_srv.process_died(pid)

    def _down(self, ref: Reference, pid: Any, _reason: Any) -> None:
        with self._lock:
            if self._watches.get(pid) != ref:
                return
            self._forget(pid)
        # It may have left a file to check, which takes longer than the loop may.
        self._node.start_task(self._let_go(pid))

    async def _let_go(self, pid: Pid) -> None:
        await anyio.to_thread.run_sync(cache_meta_srv.process_died, pid)

    def _forget(self, pid: Pid) -> Reference | None:
        for what in self._held.pop(pid, ()):
            self._holder.pop(what, None)
        return self._watches.pop(pid, None)
