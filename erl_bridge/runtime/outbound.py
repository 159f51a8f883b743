"""Frames for nodes we are not connected to yet.

``Pid ! Message`` connects where it has to and never fails: what cannot be delivered is
dropped.  So a frame for an unknown peer starts a dial and waits for it, in order and
bounded; when the dial fails the frames go, and those who asked are told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from erl_bridge.net.errors import NotConnected

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
        self.on_fail: list[Callable[[], object]] = []


class Outbound:
    """Waiting frames, per node.  In the event loop's thread only."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._queues: dict[str, _Queue] = {}

    def send(self, name: str, frame: bytes, on_fail: Callable[[], object] | None = None) -> None:
        """Send a frame to a node, now or when it is connected.

        :param on_fail: called when it cannot be connected.
        """
        peer = self._node.peer(name)
        if peer is not None:
            peer.connection.send(frame)
            return
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Queue()
            self._node.start_task(self._dial(name))
        if queue.size + len(frame) > QUEUE_BYTES:
            log.warning("a message to %s is dropped: too many wait for the connection", name)
            if on_fail is not None:
                on_fail()
            return
        queue.frames.append(frame)
        queue.size += len(frame)
        if on_fail is not None:
            queue.on_fail.append(on_fail)

    def up(self, name: str) -> None:
        """Send what waited for a node that is connected now."""
        queue = self._queues.pop(name, None)
        peer = self._node.peer(name)
        if queue is not None and peer is not None:
            for frame in queue.frames:
                peer.connection.send(frame)

    async def _dial(self, name: str) -> None:
        try:
            await self._node.endpoint.connect(name)
        except NotConnected as error:
            log.info("messages to %s are dropped: %s", name, error.why)
        finally:
            queue = self._queues.pop(name, None)
            if queue is not None:
                for callback in queue.on_fail:
                    callback()
