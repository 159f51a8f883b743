"""A peer on a plain socket that says what a test tells it, byte by byte if need be."""

from __future__ import annotations

import itertools
import os
import socket
from typing import Any

from erl_bridge.etf import Atom, Limits, Pid, Reference
from erl_bridge.proto.control import NO_PAYLOAD, Control, Op, control_frame, parse_frame
from erl_bridge.proto.flags import Flag, offered
from erl_bridge.proto.frames import FrameDecoder
from erl_bridge.proto.handshake import Completed, Handshake, LocalNode, Status, StillAlive

COOKIE = "unit"

_serial = itertools.count(1)


def unique_name(stem: str = "u") -> str:
    """Return a node name no other test uses."""
    return f"{stem}_{os.getpid()}_{next(_serial)}"


class RawPeer:
    """One connection to a node.

    :param handshake: do the handshake; without it only the TCP connection is there.
    """

    def __init__(
        self,
        port: int,
        node: str,
        *,
        name: str | None = None,
        handshake: bool = True,
        cookie: str = COOKIE,
        flags: Flag | None = None,
        if_alive: Status = Status.OK,
    ) -> None:
        host = node.partition("@")[2]
        self.name = name or f"{unique_name('raw')}@{host}"
        self.node = node
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self._decoder = FrameDecoder()
        self._frames: list[bytes] = []
        if flags is None:
            flags = offered(hidden=True)
        self.us = LocalNode(self.name, 5, flags, cookie.encode())
        if handshake:
            try:
                self.shake(if_alive)
            except BaseException:
                self.close()
                raise

    def shake(self, if_alive: Status = Status.OK) -> None:
        """Do the connecting side's handshake."""
        side = Handshake.connect(self.us, self.node)
        self.socket.sendall(side.data_to_send())
        while True:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("closed during the handshake")
            events = side.receive(data)
            for event in events:
                if isinstance(event, StillAlive):
                    side.decide(if_alive)
                    events += side.receive(b"")
            self.socket.sendall(side.data_to_send())
            for event in events:
                if isinstance(event, Completed):
                    self._frames += self._decoder.feed(event.leftover)
                    return

    def pid(self, number: int = 1) -> Pid:
        """A process of this peer."""
        return Pid(Atom(self.name), number, 0, 5)

    def ref(self, number: int = 1) -> Reference:
        """A reference of this peer."""
        return Reference(Atom(self.name), 5, (number, 0, 0))

    def send(self, op: Op, *fields: Any, payload: Any = NO_PAYLOAD) -> None:
        """Send a control message."""
        self.socket.sendall(control_frame(op, *fields, payload=payload))

    def call(self, module: str, function: str, args: list[Any], *, number: int = 1) -> None:
        """Do what erpc:call does, up to the waiting."""
        self.send(
            Op.SPAWN_REQUEST,
            self.ref(number),
            self.pid(),
            self.pid(),
            (Atom("erpc"), Atom("execute_call"), 4),
            [Atom("monitor")],
            payload=[self.ref(number), Atom(module), Atom(function), args],
        )

    def receive(self, timeout: float = 10) -> Control:
        """Return the next control message."""
        self.socket.settimeout(timeout)
        while not self._frames:
            data = self.socket.recv(1 << 20)
            if not data:
                raise ConnectionError("closed by the node")
            self._frames += self._decoder.feed(data)
        return parse_frame(self._frames.pop(0), limits=Limits())

    def result(self) -> Any:
        """Return what a call came to, after its SPAWN_REPLY."""
        reply = self.receive()
        assert reply.op is Op.SPAWN_REPLY
        if isinstance(reply.fields[3], Atom):
            return reply.fields[3]
        down = self.receive()
        assert down.op is Op.PAYLOAD_MONITOR_P_EXIT
        return down.payload[1:]

    def ticks(self) -> int:
        """How many ticks have come."""
        return self._decoder.ticks

    def closed(self, timeout: float = 10) -> bool:
        """Read on to the end of the connection."""
        self.socket.settimeout(timeout)
        try:
            while data := self.socket.recv(1 << 20):
                self._frames += self._decoder.feed(data)
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Hang up."""
        self.socket.close()
