"""What each control message of a peer does.

One handler per operation, in one table; the operations that are not in it do not pass
:class:`erl_bridge.proto.control.ControlParser`.  Field types are checked there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from erl_bridge.etf import Atom, Pid, encode
from erl_bridge.proto.control import NO_PAYLOAD, Control, Op
from erl_bridge.runtime.process import NOPROC, Process
from erl_bridge.runtime.spawn import SpawnServer

if TYPE_CHECKING:
    from erl_bridge.runtime.node import Node
    from erl_bridge.runtime.peer import Peer

__all__ = ("Dispatch",)

log = logging.getLogger(__name__)


class Dispatch:
    """Carries out control messages.  In the event loop's thread only."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._spawns = SpawnServer(node, node.limits.max_requests_per_peer)

    def frame(self, peer: Peer, body: bytes) -> None:
        """Carry out one frame.

        :raises erl_bridge.proto.errors.RemoteProtocolError: it is not one a peer may send.
        """
        control = peer.parser.parse(body)
        _HANDLERS[control.op](self, peer, control)

    # -- messages ------------------------------------------------------------------------------

    def _send(self, peer: Peer, control: Control) -> None:
        self._deliver(peer, control, self._node.find(control.fields[1]), None)

    def _reg_send(self, peer: Peer, control: Control) -> None:
        sender, _, name = control.fields
        self._deliver(peer, control, self._node.whereis(name.name), sender)

    def _alias_send(self, peer: Peer, control: Control) -> None:
        # We make no aliases, so this answers something of a former life of our node.
        log.debug("%s replied to the alias %r, which is not ours", peer.name, control.fields[1])

    def _deliver(
        self, peer: Peer, control: Control, process: Process | None, sender: Pid | None
    ) -> None:
        if process is None:
            log.debug("a message of %s for nobody: %s", peer.name, control.fields)
        elif control.payload is not NO_PAYLOAD:
            process.deliver(control.payload, peer)
        else:
            log.warning("a message of %s to %r is dropped: %s", peer.name, process, control.damaged)
            if sender is not None:
                # If it was a call, its caller monitors us and would wait for ever.
                reason = (Atom("undecodable"), control.damaged.encode())
                process.fire_monitors_of(sender, encode(reason))

    # -- links and exits -----------------------------------------------------------------------

    def _link(self, peer: Peer, control: Control) -> None:
        pid, to = control.fields
        process = self._node.find(to)
        if process is None:
            peer.signal(Op.PAYLOAD_EXIT, (to, pid), NOPROC)
        else:
            process.linked(peer, pid)

    def _unlink(self, _peer: Peer, control: Control) -> None:
        pid, to = control.fields
        process = self._node.find(to)
        if process is not None:
            process.unlinked(pid)

    def _unlink_id(self, peer: Peer, control: Control) -> None:
        unlink_id, pid, to = control.fields
        process = self._node.find(to)
        if process is not None:
            process.unlinked(pid)
        # Also for a process that is gone: the peer keeps the link half open until it hears.
        peer.signal(Op.UNLINK_ID_ACK, (unlink_id, to, pid))

    def _exit(self, _peer: Peer, control: Control) -> None:
        process = self._node.find(control.fields[1])
        if process is not None:
            process.exit_signal(control.fields[0], _reason(control, 2))

    def _exit2(self, _peer: Peer, control: Control) -> None:
        process = self._node.find(control.fields[1])
        if process is not None:
            process.exit_request(control.fields[0], _reason(control, 2))

    # -- monitors -------------------------------------------------------------------------------

    def _monitor(self, peer: Peer, control: Control) -> None:
        pid, to, ref = control.fields
        process = self._node.find(to) if isinstance(to, Pid) else self._node.whereis(to.name)
        if process is None:
            peer.signal(Op.PAYLOAD_MONITOR_P_EXIT, (to, pid, ref), NOPROC)
        else:
            process.add_monitor(peer, pid, to, ref)

    def _demonitor(self, peer: Peer, control: Control) -> None:
        ref = control.fields[2]
        process = peer.monitors.get(ref)
        if process is not None:
            process.drop_monitor(ref)

    def _down(self, peer: Peer, control: Control) -> None:
        self._node.monitors.down(peer, control.fields[2], _reason(control, 3))

    # -- spawns ----------------------------------------------------------------------------------

    def _spawn_request(self, peer: Peer, control: Control) -> None:
        self._spawns.request(peer, control)

    def _spawn_reply(self, _peer: Peer, control: Control) -> None:
        req_id, _to, _flags, result = control.fields
        self._node.client.spawned(req_id, result)

    def _ignore(self, _peer: Peer, _control: Control) -> None:
        """Take what asks nothing of us (group leaders, acknowledgements)."""


def _reason(control: Control, index: int) -> Any:
    if control.payload is not NO_PAYLOAD:
        return control.payload
    if control.damaged:
        return (Atom("undecodable"), control.damaged.encode())
    return control.fields[index]


_HANDLERS: Final[dict[Op, Callable[[Dispatch, Peer, Control], None]]] = {
    Op.LINK: Dispatch._link,
    Op.SEND: Dispatch._send,
    Op.EXIT: Dispatch._exit,
    Op.UNLINK: Dispatch._unlink,
    Op.NODE_LINK: Dispatch._ignore,
    Op.REG_SEND: Dispatch._reg_send,
    Op.GROUP_LEADER: Dispatch._ignore,
    Op.EXIT2: Dispatch._exit2,
    Op.MONITOR_P: Dispatch._monitor,
    Op.DEMONITOR_P: Dispatch._demonitor,
    Op.MONITOR_P_EXIT: Dispatch._down,
    Op.SEND_SENDER: Dispatch._send,
    Op.PAYLOAD_EXIT: Dispatch._exit,
    Op.PAYLOAD_EXIT2: Dispatch._exit2,
    Op.PAYLOAD_MONITOR_P_EXIT: Dispatch._down,
    Op.SPAWN_REQUEST: Dispatch._spawn_request,
    Op.SPAWN_REPLY: Dispatch._spawn_reply,
    Op.ALIAS_SEND: Dispatch._alias_send,
    Op.UNLINK_ID: Dispatch._unlink_id,
    Op.UNLINK_ID_ACK: Dispatch._ignore,
}
