"""Messages on their way out, also to nodes we are not connected to yet.

``Pid ! Message`` connects where it has to and never fails: what cannot be delivered is
dropped.  So a message for an unknown peer starts a dial and waits for it, in order and
bounded; when the dial fails, what waited is dropped.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from erl_bridge.etf import Atom, Pid, decode, encode
from erl_bridge.net.errors import NotConnected
from erl_bridge.proto.control import Op
from erl_bridge.proto.frames import frame
from erl_bridge.runtime.peer import EMPTY

if TYPE_CHECKING:
    from erl_bridge.runtime.node import Node

__all__ = ("Outbound",)

log = logging.getLogger(__name__)

#: Bytes that may wait for one dial, which takes milliseconds or fails in seconds.
QUEUE_BYTES = 16 * 1024 * 1024


class _Queue:
    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.size = 0


class Outbound:
    """Sends messages.  In the event loop's thread only."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._queues: dict[str, _Queue] = {}

    def message(
        self, to: Pid | Atom | tuple[Atom, Atom], payload: bytes, sender: Pid | None
    ) -> None:
        """Send an encoded message (with version byte) to wherever ``to`` is."""
        name = self._node.home(to)
        if name == self._node.name:
            process = self._node.local(to)
            if process is not None:
                process.deliver(decode(payload), None)
            return
        peer = self._node.peer(name)
        if peer is not None and isinstance(to, Pid):
            peer.send(to, payload, sender)
        elif not isinstance(to, Atom):
            self._send(name, self._frame(to, payload, sender))

    def up(self, name: str) -> None:
        """Send what waited for a node that is connected now."""
        queue = self._queues.pop(name, None)
        peer = self._node.peer(name)
        if queue is not None and peer is not None:
            for waiting in queue.frames:
                peer.connection.send(waiting)

    def _frame(self, to: Pid | tuple[Atom, Atom], payload: bytes, sender: Pid | None) -> bytes:
        sender = sender or self._node.process.pid
        if isinstance(to, Pid):
            return frame(encode((int(Op.SEND_SENDER), sender, to)), payload)
        return frame(encode((int(Op.REG_SEND), sender, EMPTY, to[0])), payload)

    def _send(self, name: str, data: bytes) -> None:
        peer = self._node.peer(name)
        if peer is not None:
            peer.connection.send(data)
            return
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Queue()
            self._node.start_task(self._dial(name))
        if queue.size + len(data) > QUEUE_BYTES:
            log.warning("a message to %s is dropped: too many wait for the connection", name)
            return
        queue.frames.append(data)
        queue.size += len(data)

    async def _dial(self, name: str) -> None:
        try:
            await self._node.endpoint.connect(name)
        except NotConnected as error:
            log.info("messages to %s are dropped: %s", name, error.why)
        finally:
            self._queues.pop(name, None)
