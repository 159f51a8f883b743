"""Processes of ours: what a peer's pid, link and monitor refer to.

A process here has no loop of its own.  It is an identity with callbacks: messages and
signals that reach it call them, in the event loop's thread, so they must be quick and
must not block.  What a callback raises is logged and goes no further.

Signals
    A *link* goes both ways: when one side exits the other gets an exit signal; here
    ``on_exit`` hears of it and the process goes on (real ones die, unless they trap
    exits; ours stand for things that must outlive their users).  A *monitor* goes one
    way and is told only.  ``exit/2`` of a peer is a request: ``on_exit_request`` decides.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from erl_bridge.etf import Atom, Pid, Reference, encode
from erl_bridge.proto.control import Op

if TYPE_CHECKING:
    from erl_bridge.runtime.gen import GenServer
    from erl_bridge.runtime.node import Node
    from erl_bridge.runtime.peer import Peer

__all__ = ("NOCONNECTION", "NOPROC", "NORMAL", "Process")

log = logging.getLogger(__name__)

NORMAL = Atom("normal")
NOPROC = Atom("noproc")
NOCONNECTION = Atom("noconnection")

OnMessage = Callable[[Any], object]
OnSignal = Callable[[Pid, Any], object]
OnDown = Callable[[Reference, Any, Any], object]

_unlink_ids = itertools.count(1)


class Process:
    """One process.  Made by :meth:`erl_bridge.runtime.node.Node.spawn_process`."""

    def __init__(
        self,
        node: Node,
        pid: Pid,
        on_message: OnMessage | None = None,
        on_exit: OnSignal | None = None,
        on_exit_request: OnSignal | None = None,
    ) -> None:
        self.pid = pid
        self.name: str | None = None
        """The name it is registered under, if any."""
        self.alive = True
        self.server: GenServer | None = None
        self.on_message = on_message
        self.on_exit = on_exit
        self.on_exit_request = on_exit_request
        self._node = node
        self._monitors: dict[Reference, tuple[Peer, Pid, Pid | Atom]] = {}
        self._left: dict[Reference, Callable[[], object]] = {}
        """What to call when one of the monitors is taken back."""
        self._watchers: dict[Reference, tuple[Any, OnDown]] = {}
        self._links: dict[Pid, Peer] = {}

    def __repr__(self) -> str:
        return f"<Process {self.name or ''}<{self.pid.id}.{self.pid.serial}>>"

    # -- for its owner; any thread -------------------------------------------------------

    def exit(self, reason: Any = NORMAL) -> None:
        """End the process: its monitors get 'DOWN', its links an exit signal.

        Messages sent before, from the same thread, arrive before.

        :raises erl_bridge.etf.EncodeError: the reason has no external form; it lives on.
        """
        self._node.run_in_loop(self._exit, reason, encode(reason))

    def link(self, pid: Pid) -> None:
        """Link with a peer's process; ``on_exit`` hears of its end."""
        self._node.run_in_loop(self._link, pid)

    def unlink(self, pid: Pid) -> None:
        """Take a link back; ``on_exit`` is not called for it any more."""
        self._node.run_in_loop(self._unlink, pid)

    def send_exit(self, pid: Pid, reason: Any) -> None:
        """Do ``exit(Pid, Reason)`` on a peer's process."""
        self._node.run_in_loop(self._send_exit, pid, encode(reason))

    # -- what peers do to it; in the loop ----------------------------------------------------

    def deliver(self, message: Any, peer: Peer | None) -> None:
        """Hand over a message; ``peer`` is None for one from our own side."""
        if self.server is not None and peer is not None:
            self.server.deliver(message, peer)
        elif self.on_message is not None:
            _guarded(self.on_message, message)
        else:
            log.debug("%r has no use for a message", self)

    def add_monitor(self, peer: Peer, watcher: Pid, item: Pid | Atom, ref: Reference) -> None:
        """Note that a peer's process wants to know when this one ends."""
        self._monitors[ref] = (peer, watcher, item)
        peer.monitors[ref] = self

    def drop_monitor(self, ref: Reference) -> None:
        """Forget a monitor, because it was taken back or its node is gone."""
        entry = self._monitors.pop(ref, None)
        if entry is None:
            return
        entry[0].monitors.pop(ref, None)
        if callback := self._left.pop(ref, None):
            _guarded(callback)

    def watched(self, ref: Reference) -> bool:
        """Whether a peer has this monitor on it."""
        return ref in self._monitors

    def on_left(self, ref: Reference, callback: Callable[[], object]) -> None:
        """Call back when a monitor is taken back: who set it does not wait any more.

        At once where there is no such monitor (any more).  Not called where the monitor
        fires.
        """
        if ref in self._monitors:
            self._left[ref] = callback
        else:
            _guarded(callback)

    def fire_monitor(self, ref: Reference, reason: bytes) -> bool:
        """Tell one monitor that the process is down, though it lives on.

        ``reason`` is encoded.  False when there is no such monitor.

        For one caller's failure in a server that serves others: the caller exits just as
        if the server had died, which is what its code is written for.
        """
        entry = self._monitors.pop(ref, None)
        if entry is None:
            return False
        self._left.pop(ref, None)
        peer, watcher, item = entry
        peer.monitors.pop(ref, None)
        peer.signal_encoded(Op.PAYLOAD_MONITOR_P_EXIT, (item, watcher, ref), reason)
        return True

    def newest_monitor_of(self, watcher: Pid) -> Reference | None:
        """Return the monitor that a process of a peer has set last."""
        own = (ref for ref, entry in reversed(self._monitors.items()) if entry[1] == watcher)
        return next(own, None)

    def fire_monitors_of(self, watcher: Pid, reason: bytes) -> None:
        """Do the same for every monitor of one process of a peer."""
        for ref, entry in list(self._monitors.items()):
            if entry[1] == watcher:
                self.fire_monitor(ref, reason)

    def add_watcher(self, ref: Reference, item: Any, callback: OnDown) -> None:
        """Note a monitor of our own side."""
        self._watchers[ref] = (item, callback)

    def drop_watcher(self, ref: Reference) -> None:
        """Forget a monitor of our own side."""
        self._watchers.pop(ref, None)

    def linked(self, peer: Peer, pid: Pid) -> None:
        """Note a link a peer made."""
        self._links[pid] = peer
        peer.links.add((self, pid))

    def unlinked(self, pid: Pid) -> None:
        """Forget a link a peer took back."""
        peer = self._links.pop(pid, None)
        if peer is not None:
            peer.links.discard((self, pid))

    def exit_signal(self, pid: Pid, reason: Any) -> None:
        """Hear that a linked process ended; from one that is not linked it means nothing."""
        if pid not in self._links:
            return
        self.unlinked(pid)
        if self.on_exit is not None:
            _guarded(self.on_exit, pid, reason)

    def exit_request(self, pid: Pid, reason: Any) -> None:
        """Hear an ``exit/2``."""
        if self.on_exit_request is not None:
            _guarded(self.on_exit_request, pid, reason)

    # -- inside -----------------------------------------------------------------------------

    def _exit(self, reason: Any, encoded: bytes) -> None:
        if not self.alive:
            return
        self.alive = False
        self._node.forget_process(self)
        for ref, (peer, watcher, item) in list(self._monitors.items()):
            peer.monitors.pop(ref, None)
            peer.signal_encoded(Op.PAYLOAD_MONITOR_P_EXIT, (item, watcher, ref), encoded)
        self._monitors.clear()
        self._left.clear()
        for pid, peer in list(self._links.items()):
            peer.links.discard((self, pid))
            peer.signal_encoded(Op.PAYLOAD_EXIT, (self.pid, pid), encoded)
        self._links.clear()
        watchers = list(self._watchers.items())
        self._watchers.clear()
        for ref, (item, callback) in watchers:
            _guarded(callback, ref, item, reason)

    def _send_exit(self, pid: Pid, encoded: bytes) -> None:
        peer = self._node.peer(pid.node.name)
        if peer is not None:
            peer.signal_encoded(Op.PAYLOAD_EXIT2, (self.pid, pid), encoded)

    def _link(self, pid: Pid) -> None:
        if pid in self._links or not self.alive:
            return
        peer = self._node.peer(pid.node.name)
        if peer is None:
            # A real node would dial; a link to a process we have never heard from is not
            # worth a queue of its own.
            if self.on_exit is not None:
                _guarded(self.on_exit, pid, NOCONNECTION)
            return
        self.linked(peer, pid)
        peer.signal(Op.LINK, (self.pid, pid))

    def _unlink(self, pid: Pid) -> None:
        peer = self._links.get(pid)
        if peer is None:
            return
        self.unlinked(pid)
        peer.signal(Op.UNLINK_ID, (next(_unlink_ids), self.pid, pid))


def _guarded(callback: Callable[..., object], *args: Any) -> None:
    try:
        callback(*args)
    except Exception:
        log.exception("the callback %r failed", callback)
