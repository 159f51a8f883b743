"""One connected node, and everything that ends when it goes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from erl_bridge.etf import Atom, Limits, Pid, Reference, encode
from erl_bridge.net.connection import Connection
from erl_bridge.proto.control import NO_PAYLOAD, ControlParser, Op, control_frame
from erl_bridge.proto.frames import frame

if TYPE_CHECKING:
    from erl_bridge.runtime.process import Process

__all__ = ("EMPTY", "Peer")

#: Stands where old protocols had a cookie.
EMPTY = Atom("")

#: Destinations whose control message is kept encoded; streams send to few pids, often.
SEND_CACHE = 1024


class Peer:
    """A node we are connected to.  In the event loop's thread only.

    :ivar monitors: the peer's monitors on processes of ours.
    :ivar links: links between our processes and the peer's.
    :ivar watching: our monitors on the peer's processes.
    :ivar requests: what runs on its behalf.
    :ivar told_full: the log has it that there are too many.
    """

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self.name = connection.name
        self.connection = connection
        self.parser = ControlParser(limits)
        self.monitors: dict[Reference, Process] = {}
        self.links: set[tuple[Process, Pid]] = set()
        self.watching: set[Reference] = set()
        self.requests: set[Request] = set()
        self.told_full = False
        self._send_controls: dict[Pid, bytes] = {}

    @property
    def hidden(self) -> bool:
        """True when the peer, like most tools, does not show in ``nodes()``."""
        peer = self.connection.peer
        return peer is None or peer.hidden

    def signal(self, op: Op, fields: tuple[Any, ...], payload: Any = NO_PAYLOAD) -> bool:
        """Send a control message; False when the connection is gone.

        :raises erl_bridge.etf.EncodeError: the payload has no external form.
        """
        return self.connection.send(control_frame(op, *fields, payload=payload))

    def signal_encoded(self, op: Op, fields: tuple[Any, ...], payload: bytes) -> bool:
        """Send a control message whose payload is encoded already (with version byte)."""
        return self.connection.send(frame(encode((int(op), *fields)), payload))

    def send(self, to: Pid, payload: bytes, sender: Pid | None = None) -> bool:
        """Send an encoded message (with version byte) to a process of the peer."""
        return self.connection.send(frame(self._send_control(to, sender), payload))

    def _send_control(self, to: Pid, sender: Pid | None) -> bytes:
        if sender is not None:
            return encode((int(Op.SEND_SENDER), sender, to))
        control = self._send_controls.get(to)
        if control is None:
            if len(self._send_controls) >= SEND_CACHE:
                self._send_controls.clear()
            control = self._send_controls[to] = encode((int(Op.SEND), EMPTY, to))
        return control


class Request:
    """Something that runs for a peer: counted against its limit, cancelled when it goes.

    :param kept: run on when the peer goes, because nobody waits for an answer (a cast).
    """

    def __init__(self, peer: Peer, *, kept: bool = False) -> None:
        self.peer = peer
        self.kept = kept
        self._task: asyncio.Task[None] | None = None
        peer.requests.add(self)

    def done(self) -> None:
        """Stop counting."""
        self.peer.requests.discard(self)

    def runs_in(self, task: asyncio.Task[None]) -> None:
        """Say what :meth:`cancel` cancels."""
        self._task = task
        task.add_done_callback(lambda _task: self.done())

    def cancel(self) -> None:
        """Stop it; its coroutine sees a cancellation."""
        if self._task is not None:
            self._task.cancel()
