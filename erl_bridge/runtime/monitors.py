"""Our monitors on other processes.

Each is one reference and one callback, called at most once.  A monitor on a node we are
not connected to dials first; one on a process of our own is kept at that process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from erl_bridge.etf import Atom, Pid, Reference
from erl_bridge.proto.control import Op
from erl_bridge.runtime.process import NOCONNECTION, NOPROC, OnDown

if TYPE_CHECKING:
    from erl_bridge.runtime.node import Node
    from erl_bridge.runtime.peer import Peer

__all__ = ("Monitors",)

log = logging.getLogger(__name__)


class _Watch(NamedTuple):
    """``peer`` is None while we dial, and for processes of our own.

    ``item`` is what the callback gets to see, ``to`` what goes over the wire; that is None
    while a spawn has not been answered.
    """

    peer: Peer | None
    to: Pid | Atom | None
    item: Any
    callback: OnDown


class Monitors:
    """All of a node's monitors.  In the event loop's thread only."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._watches: dict[Reference, _Watch] = {}

    def __len__(self) -> int:
        return len(self._watches)

    def add(self, ref: Reference, to: Pid | Atom | tuple[Atom, Atom], callback: OnDown) -> None:
        """Watch a process."""
        name = self._node.home(to)
        if name == self._node.name:
            process = self._node.local(to)
            if process is None:
                _call(callback, ref, to, NOPROC)
            else:
                self._watches[ref] = _Watch(None, process.pid, to, callback)
                process.add_watcher(ref, to, self._local_down)
            return
        target = to[0] if isinstance(to, tuple) else to
        peer = self._node.peer(name)
        self._watches[ref] = _Watch(peer, target, to, callback)
        if peer is None:
            self._node.start_task(self._dial(ref, name))
        else:
            self._ask(ref, peer, target)

    def remove(self, ref: Reference) -> None:
        """Take a monitor back."""
        watch = self.forget(ref)
        if watch is None or watch.to is None:
            return
        if watch.peer is not None:
            watch.peer.signal(Op.DEMONITOR_P, (self._node.process.pid, watch.to, ref))
        elif isinstance(watch.to, Pid) and (process := self._node.find(watch.to)) is not None:
            process.drop_watcher(ref)

    def expect(self, ref: Reference, peer: Peer, callback: OnDown) -> None:
        """Expect a 'DOWN' for a spawn that asks for a monitor itself."""
        self._watches[ref] = _Watch(peer, None, None, callback)
        peer.watching.add(ref)

    def spawned(self, ref: Reference, pid: Pid) -> None:
        """Say which process an expected one turned out to be."""
        watch = self._watches.get(ref)
        if watch is not None:
            self._watches[ref] = watch._replace(to=pid, item=pid)
        # No watch: the call was given up before the answer came.  Its process finds nobody
        # to tell, and ends by itself.

    def down(self, peer: Peer, ref: Reference, reason: Any) -> None:
        """Take a 'DOWN'; only the peer that was asked may send it."""
        watch = self._watches.get(ref)
        if watch is not None and watch.peer is peer:
            self.forget(ref)
            _call(watch.callback, ref, watch.item, reason)

    def peer_gone(self, peer: Peer) -> None:
        """Fire what was on a peer that is not connected any more."""
        for ref in list(peer.watching):
            self.down(peer, ref, NOCONNECTION)

    def forget(self, ref: Reference) -> _Watch | None:
        """Drop a monitor without telling anybody."""
        watch = self._watches.pop(ref, None)
        if watch is not None and watch.peer is not None:
            watch.peer.watching.discard(ref)
        return watch

    async def _dial(self, ref: Reference, name: str) -> None:
        try:
            peer: Peer | None = await self._node.client.connect(name)
        except OSError as error:
            log.debug("a monitor cannot be set: %s", error)
            peer = None
        watch = self._watches.get(ref)
        if watch is None or watch.to is None:
            return
        if peer is None:
            del self._watches[ref]
            _call(watch.callback, ref, watch.item, NOCONNECTION)
        else:
            self._watches[ref] = watch._replace(peer=peer)
            self._ask(ref, peer, watch.to)

    def _ask(self, ref: Reference, peer: Peer, target: Pid | Atom) -> None:
        peer.watching.add(ref)
        peer.signal(Op.MONITOR_P, (self._node.process.pid, target, ref))

    def _local_down(self, ref: Reference, item: Any, reason: Any) -> None:
        watch = self._watches.pop(ref, None)
        if watch is not None:
            _call(watch.callback, ref, item, reason)


def _call(callback: Callable[..., object], *args: Any) -> None:
    try:
        callback(*args)
    except Exception:
        log.exception("the callback %r failed", callback)
