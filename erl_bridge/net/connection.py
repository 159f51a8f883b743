"""One connection to a peer: handshake, frames, ticks, and a bounded way out.

Structure here is anyio's (task groups, time limits, events); this one class is an
:class:`asyncio.Protocol` underneath.  A stream object hands every chunk from the event
loop to a reading task and every frame to a writing task, and each hand-over is a turn of
the loop: measured, 100 bytes there and back took 163 µs that way and 105 µs this way, at
a native round trip of 85 µs.  Frames are therefore handled where they arrive, in
:meth:`Connection.data_received`, and written where they are made.

Ways out
    The first frame of a turn is written at once, further ones are collected and written
    together at its end, so that fifty replies cost one system call.  ``send`` never
    blocks: who can wait, waits in :meth:`Connection.drain`, which holds above
    ``write_high`` unsent bytes.  Above ``write_limit``, or with no byte taken for
    ``net_ticktime``, the peer is not reading and the connection ends.

Ticks
    A peer drops us when it hears nothing for *its* net_ticktime, which we do not know; one
    of 4 s wants to hear something every second.  So whatever arrives is answered with a
    tick if we have been silent for :data:`QUIET_SECONDS`: an idle peer ticks every quarter
    of its own time, and so do we then.  Two such nodes do not tick each other in a circle,
    since the answer arrives when the asker has just spoken.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from enum import Enum, auto
from typing import Any, Protocol

import anyio

from erl_bridge.net import fork
from erl_bridge.net.limits import NetLimits
from erl_bridge.proto.errors import HandshakeRefused, ProtocolError, RemoteProtocolError
from erl_bridge.proto.frames import TICK, FrameDecoder
from erl_bridge.proto.handshake import Completed, Event, Handshake, PeerInfo, Status

__all__ = ("Connection", "ConnectionOwner", "Phase")

log = logging.getLogger(__name__)

#: Longest silence of ours after which something a peer sends is answered with a tick.
QUIET_SECONDS = 0.5

#: A closed connection may still flush for so long; then its socket is taken away.
LINGER_SECONDS = 2.0


class Phase(Enum):
    """What a connection is doing."""

    HANDSHAKE = auto()
    UP = auto()
    CLOSED = auto()


class ConnectionOwner(Protocol):
    """Who decides about handshakes and takes frames.  Called in the loop; must not block."""

    def made(self, connection: Connection) -> None:
        """There is a socket: :meth:`Connection.reject` it or keep it.

        :meth:`lost` is called when it is closed.
        """

    def lost(self, connection: Connection) -> None:
        """The socket is closed, after the last byte was flushed."""

    def handshake_event(self, connection: Connection, event: Event) -> None:
        """Decide what a handshake asks for."""

    def opened(self, connection: Connection) -> None:
        """The peer has shown the cookie; frames follow."""

    def frame(self, connection: Connection, body: bytes) -> None:
        """Take one frame.

        :raises ProtocolError: the peer broke the protocol; its connection is closed.
        """

    def closed(self, connection: Connection, reason: str) -> None:
        """The connection is over.  Called once, also after a failed handshake."""


class Connection(asyncio.Protocol):
    """A peer, from the first byte of the handshake to the close.

    :param accepted: the peer dialled us.
    """

    def __init__(
        self,
        owner: ConnectionOwner,
        handshake: Handshake,
        limits: NetLimits,
        *,
        accepted: bool,
    ) -> None:
        self.accepted = accepted
        self.phase = Phase.HANDSHAKE
        self.peer: PeerInfo | None = None
        self.settled = anyio.Event()
        """Set when the connection is up, or closed before it got there."""
        self.lost = anyio.Event()
        """Set when the socket is closed, which is after the last byte was flushed."""
        self.close_reason = ""
        self.refused: str | None = None
        """The status with which a handshake was declined, by either side."""
        self.context: Any = None
        """Whatever the owner keeps with a connection."""
        self.bytes_in = 0
        self.bytes_out = 0
        self._owner = owner
        self._handshake = handshake
        self._limits = limits
        self._decoder = FrameDecoder(limits.max_frame)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._descriptor = -1
        self._timer: asyncio.TimerHandle | None = None
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._flush_scheduled = False
        self._writable: anyio.Event | None = None
        self._heard_at = self._spoke_at = self._taken_at = self._loop.time()
        self._answered_out = self._checked_out = self._taken = 0

    def __repr__(self) -> str:
        return f"<Connection {self.name or '?'} {self.phase.name.lower()}>"

    @property
    def expected(self) -> str:
        """The node that was dialled, "" for an accepted connection."""
        return self._handshake.expected or ""

    @property
    def name(self) -> str:
        """The peer's node name, "" while it is not known."""
        return self.peer.name if self.peer is not None else ""

    @property
    def address(self) -> str:
        """The peer's address and port, "?" before there is a socket."""
        name = self._transport.get_extra_info("peername") if self._transport else None
        return f"{name[0]}:{name[1]}" if name else "?"

    # -- what the owner calls ---------------------------------------------------------

    def decide(self, status: Status) -> None:
        """Answer a handshake's question; a refusal closes the connection."""
        try:
            self._handshake.decide(status)
        except HandshakeRefused as error:
            self._refuse(error)

    def reject(self, reason: str) -> None:
        """Close without a word to the peer, from :meth:`ConnectionOwner.made`."""
        self.phase = Phase.CLOSED
        self.close_reason = reason
        log.warning("a connection was not accepted: %s", reason)

    def give_name(self, name: str, creation: int) -> None:
        """Name a peer that asked for a name."""
        self._handshake.give_name(name, creation)

    def send(self, data: bytes, *, lazy: bool = False) -> bool:
        """Send one frame, or queue it behind the ones already waiting.

        :param lazy: more follows in this turn of the loop: wait for it.
        :return: False when the connection is not up; the frame is dropped then, as a
            message to a dead node is.
        """
        transport = self._transport
        if self.phase is not Phase.UP or transport is None:
            return False
        size = len(data)
        self.bytes_out += size
        if self._writable is not None and not self._room(transport, size):
            return False
        if self._flush_scheduled:
            self._pending.append(data)
            self._pending_size += size
            if self._pending_size > self._limits.write_high:
                self._flush()  # the turn may be a long one, and the limit is of the whole
            return True
        self._flush_scheduled = True
        self._loop.call_soon(self._flush)
        if lazy:
            self._pending.append(data)
            self._pending_size += size
        else:
            transport.write(data)
        return True

    @property
    def backlog(self) -> int:
        """Bytes accepted by :meth:`send` that the system has not taken yet."""
        if self._transport is None:
            return 0
        return self._pending_size + self._transport.get_write_buffer_size()

    async def drain(self) -> None:
        """Wait while more than ``write_high`` bytes are unsent.  Returns at once when closed."""
        while (writable := self._writable) is not None and self.phase is Phase.UP:
            await writable.wait()

    def close(self, reason: str, *, abort: bool = False) -> None:
        """End the connection; what was sent is still flushed unless ``abort``."""
        if self.phase is Phase.CLOSED:
            return
        self._flush()
        self._finish(reason)
        transport = self._transport
        if transport is None:
            return
        if abort:
            transport.abort()
        else:
            transport.close()
            self._timer = self._loop.call_later(LINGER_SECONDS, transport.abort)

    def check(self, now: float) -> None:
        """Tick if nothing else was sent since the last check, drop a peer that is gone.

        Called every quarter of ``net_ticktime``.
        """
        if self.phase is not Phase.UP or self._transport is None:
            return
        limit = self._limits.net_ticktime
        if now - self._heard_at > limit:
            self._drop(f"net_tick_timeout: nothing heard for {limit:g} s")
            return
        unsent = self.backlog
        taken = self.bytes_out - unsent
        if taken != self._taken or not unsent:
            self._taken = taken
            self._taken_at = now
        elif now - self._taken_at > limit:
            self._drop(f"peer does not read: {unsent} bytes untouched for {limit:g} s")
            return
        if self.bytes_out == self._checked_out:
            self.send(TICK)
        self._checked_out = self.bytes_out

    # -- asyncio.Protocol -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the handshake and its clock."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(f"a stream transport is needed, not {type(transport).__name__}")
        self._transport = transport
        sock = transport.get_extra_info("socket")
        # Two small frames in a row (SPAWN_REPLY, then the result) would otherwise wait for
        # the peer's delayed acknowledgement: 40 ms.  asyncio does this by itself only for
        # sockets whose protocol number was spelled out.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._descriptor = fork.hold(sock.fileno())
        self._owner.made(self)
        if self.phase is Phase.CLOSED:
            transport.abort()
            return
        transport.set_write_buffer_limits(self._limits.write_high)
        self._timer = self._loop.call_later(self._limits.handshake_timeout, self._too_slow)
        self._send_handshake()

    def data_received(self, data: bytes) -> None:
        """Feed the handshake or the frame decoder."""
        self.bytes_in += len(data)
        if self.phase is Phase.UP:
            self._receive(data)
        elif self.phase is Phase.HANDSHAKE:
            self._shake(data)

    def eof_received(self) -> bool | None:
        """Let the transport close: a peer that stopped sending is down."""
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner, unless the close was ours."""
        fork.release(self._descriptor)
        if self._timer is not None:
            self._timer.cancel()
        self._finish(f"connection lost: {exc}" if exc else "closed by the peer")
        self._owner.lost(self)
        self.lost.set()

    def pause_writing(self) -> None:
        """Hold :meth:`drain`: the transport's buffer is above its limit."""
        if self._writable is None:
            self._writable = anyio.Event()

    def resume_writing(self) -> None:
        """Release :meth:`drain`."""
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    # -- inside -----------------------------------------------------------------------------

    def _shake(self, data: bytes) -> None:
        try:
            events = self._handshake.receive(data)
            while events and self.phase is Phase.HANDSHAKE:
                for event in events:
                    if isinstance(event, Completed):
                        self._open(event)
                        return
                    self._owner.handshake_event(self, event)
                # A decision may have unlocked what is already buffered.
                events = self._handshake.receive(b"") if self._in_handshake() else []
            self._send_handshake()
        except HandshakeRefused as error:
            self._refuse(error)
        except RemoteProtocolError as error:
            self.close(f"handshake failed: {error}")

    def _in_handshake(self) -> bool:
        return self.phase is Phase.HANDSHAKE

    def _open(self, event: Completed) -> None:
        self._send_handshake()
        if self._timer is not None:
            self._timer.cancel()
        self.peer = event.peer
        self.phase = Phase.UP
        self._heard_at = self._spoke_at = self._taken_at = self._loop.time()
        self._owner.opened(self)
        self.settled.set()
        if event.leftover:
            self._receive(event.leftover)

    def _receive(self, data: bytes) -> None:
        self._heard_at = now = self._loop.time()
        try:
            for body in self._decoder.feed(data):
                self._owner.frame(self, body)
                if self.phase is not Phase.UP:
                    return
        except ProtocolError as error:
            self.close(f"protocol error: {error}", abort=True)
            return
        except Exception:
            # A bug of ours in one frame must cost that peer only, and must be seen.
            log.exception("handling a frame of %s failed", self.name)
            self.close("internal error", abort=True)
            return
        if self.bytes_out != self._answered_out:
            self._answered_out = self.bytes_out
            self._spoke_at = now
        elif now - self._spoke_at >= QUIET_SECONDS:
            self.send(TICK)
            self._answered_out = self.bytes_out
            self._spoke_at = now

    def _room(self, transport: asyncio.Transport, size: int) -> bool:
        unsent = self._pending_size + transport.get_write_buffer_size()
        if unsent + size <= self._limits.write_limit:
            return True
        self._drop(f"peer does not read: {unsent} bytes unsent")
        return False

    def _drop(self, reason: str) -> None:
        """Close a connection that its peer would have kept; say so, since it cannot know why."""
        log.warning("the connection with %s is given up: %s", self.name, reason)
        self.close(reason, abort=True)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if not self._pending or self._transport is None:
            return
        pending = self._pending
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        pending.clear()
        self._pending_size = 0
        if self.phase is Phase.UP:
            self._transport.write(data)

    def _send_handshake(self) -> None:
        data = self._handshake.data_to_send()
        if data and self._transport is not None:
            self._transport.write(data)

    def _refuse(self, error: HandshakeRefused) -> None:
        self._send_handshake()
        self.refused = error.status
        self.close(f"handshake refused: {error}")

    def _too_slow(self) -> None:
        self.close(f"no handshake within {self._limits.handshake_timeout:g} s", abort=True)

    def _finish(self, reason: str) -> None:
        if self.phase is Phase.CLOSED:
            return
        self.phase = Phase.CLOSED
        self.close_reason = reason
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        self._owner.closed(self, reason)
        self.settled.set()
