"""The distribution handshake, version 6, both roles, without sockets.

Two nodes prove to each other that they hold the same cookie and agree on what they may
send.  A connects, B accepts; every message has a 16-bit length before it:

====  =========  =====================================================================
A     name       ``N`` flags:64 creation:32 size:16 name
B     status     ``s`` and a word: see :class:`Status`
A     answer     ``s`` ``true`` or ``false``, only after the status ``alive``
B     challenge  ``N`` flags:64 challenge:32 creation:32 size:16 name
A     reply      ``r`` challenge:32 digest:16
B     ack        ``a`` digest:16
====  =========  =====================================================================

A digest is MD5 over the cookie and the other side's challenge in decimal.  The one of
the side that connects comes first, so B never proves anything to a stranger.

The word B answers with is the whole of connection arbitration.  Two nodes may dial each
other at the same moment, or one may not have noticed yet that the other died:

``ok``                no other connection is known
``ok_simultaneous``   B is dialling A too, and gives that up: A's name is the greater
``nok``               B is dialling A too, and A must give up: B's name is the greater
``alive``             B believes it is connected to A; A says whether to go on
``not_allowed``       B refuses
``named:``            A had no name; B gives it one (size:16 name creation:32 follow)

Whether B is dialling or connected is not known here: after :class:`PeerNamed` the owner
calls :meth:`Handshake.decide`.

States and the only ways between them are :data:`TRANSITIONS`; a message without an entry
for the current state is the peer's protocol error.  Whatever bytes come in, in whatever
pieces: :meth:`Handshake.receive` returns events or raises
:class:`~erl_bridge.proto.errors.RemoteProtocolError`, nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from erl_bridge.proto import flags as dflags
from erl_bridge.proto.errors import HandshakeRefused, LocalProtocolError, RemoteProtocolError
from erl_bridge.proto.flags import Flag
from erl_bridge.proto.handshake_table import TRANSITIONS, State, Status, Step
from erl_bridge.proto.names import check_node_name, same_kind

__all__ = (
    "TRANSITIONS",
    "Completed",
    "Event",
    "Handshake",
    "LocalNode",
    "NameRequested",
    "PeerInfo",
    "PeerNamed",
    "State",
    "Status",
    "StillAlive",
    "digest",
)

#: The longest message is a name of 1020 bytes and its head; strangers get no larger buffer.
MAX_MESSAGE: Final = 2048

_NAME_HEAD: Final = struct.Struct(">cQIH")
_CHALLENGE_HEAD: Final = struct.Struct(">cQIIH")
_REPLY: Final = struct.Struct(">cI16s")
_ACK: Final = struct.Struct(">c16s")


@dataclass(frozen=True, slots=True)
class LocalNode:
    """What we say about ourselves."""

    name: str
    creation: int
    flags: Flag
    cookie: bytes

    def __repr__(self) -> str:
        # The cookie is the whole of the security here: it must not reach a log.
        return f"LocalNode({self.name!r}, creation={self.creation})"


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """What the peer said about itself."""

    name: str
    creation: int
    flags: Flag

    @property
    def hidden(self) -> bool:
        """True when the peer does not publish itself to its peers."""
        return not self.flags & Flag.PUBLISHED


@dataclass(frozen=True, slots=True)
class PeerNamed:
    """Accepting side: the peer said who it is.  Answer with :meth:`Handshake.decide`."""

    peer: PeerInfo


@dataclass(frozen=True, slots=True)
class NameRequested:
    """Accepting side: a peer without a name.  Answer with :meth:`Handshake.give_name`."""

    host: str
    flags: Flag


@dataclass(frozen=True, slots=True)
class StillAlive:
    """Connecting side: the peer believes in an older connection.  Answer with ``decide``.

    ``OK`` replaces it, ``NOK`` keeps it and ends this handshake.
    """


@dataclass(frozen=True, slots=True)
class Completed:
    """Both sides hold the cookie.  ``leftover`` are the first bytes of the frames."""

    peer: PeerInfo
    leftover: bytes


Event = PeerNamed | NameRequested | StillAlive | Completed


def digest(cookie: bytes, challenge: int) -> bytes:
    """Return the proof of knowing ``cookie`` for one challenge."""
    # MD5 is what the protocol says; on FIPS builds it has to be asked for as not security.
    return hashlib.md5(cookie + str(challenge).encode(), usedforsecurity=False).digest()


class Handshake:
    """One handshake.  Make it with :meth:`connect` or :meth:`accept`.

    Feed it with :meth:`receive`, send what :meth:`data_to_send` returns after every call
    (also after one that raised: a refusal has to reach the peer before the close).
    """

    def __init__(self, us: LocalNode, state: State, expected: str | None) -> None:
        self.state = state
        self._us = us
        self.expected = expected
        self._peer: PeerInfo | None = None
        self._buffer = bytearray()
        self._out = bytearray()
        self._challenge = secrets.randbits(32)

    @classmethod
    def connect(cls, us: LocalNode, peer: str) -> Handshake:
        """Start as the connecting side; our name is ready to be sent.

        :raises LocalProtocolError: the names cannot belong to nodes that may talk.
        """
        try:
            check_node_name(peer)
            kind_matches = same_kind(us.name, peer)
        except ValueError as error:
            raise LocalProtocolError(str(error)) from None
        if not kind_matches:
            raise LocalProtocolError(
                f"{us.name!r} and {peer!r} cannot connect: one has a short name, one a long"
            )
        if us.name == peer:
            raise LocalProtocolError("a node does not connect to itself")
        self = cls(us, State.AWAIT_STATUS, peer)
        name = us.name.encode()
        self._send(_NAME_HEAD.pack(b"N", us.flags, us.creation, len(name)) + name)
        return self

    @classmethod
    def accept(cls, us: LocalNode) -> Handshake:
        """Start as the accepting side."""
        return cls(us, State.AWAIT_NAME, None)

    def data_to_send(self) -> bytes:
        """Return the bytes to send now and forget them."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes of the peer.

        :return: what happened.  Nothing more is parsed until a pending decision is made;
            call again with ``b""`` after it.
        :raises HandshakeRefused: one side declined.
        :raises RemoteProtocolError: the peer broke the protocol.
        """
        if self.state in (State.DONE, State.FAILED):
            raise LocalProtocolError(f"the handshake is over: {self.state.name}")
        self._buffer += data
        events: list[Event] = []
        try:
            while (reader := _READERS.get(self.state)) is not None:
                message = self._next_message()
                if message is None:
                    break
                event = reader(self, message)
                if event is not None:
                    events.append(event)
        except RemoteProtocolError:
            self.state = State.FAILED
            raise
        return events

    def decide(self, status: Status) -> None:
        """Answer :class:`PeerNamed` with a status, or :class:`StillAlive` with OK or NOK.

        :raises HandshakeRefused: the decision ends the handshake; send, then close.
        :raises LocalProtocolError: nothing is to be decided now.
        """
        if self.state is State.DECIDE_ALIVE:
            go_on = status is Status.OK
            self._move(Step.GO_ON if go_on else Step.REFUSE)
            self._send(b"strue" if go_on else b"sfalse")
            if not go_on:
                raise HandshakeRefused("alive", "an older connection to the peer is kept")
            return
        if self.state is not State.DECIDE_STATUS or status is Status.NAMED:
            raise LocalProtocolError(f"{status} cannot be decided in state {self.state.name}")
        if status is Status.ALIVE:
            self._move(Step.ASK_ALIVE)
            self._send(b"salive")
        elif status in (Status.OK, Status.OK_SIMULTANEOUS):
            self._move(Step.GO_ON)
            self._send(b"s" + status.value.encode())
            self._send_challenge()
        else:
            self._refuse(status, f"we refused {self._peer_name()} with {status.value}")

    def give_name(self, name: str, creation: int) -> None:
        """Answer :class:`NameRequested`: the peer is called ``name`` from now on."""
        if self.state is not State.DECIDE_STATUS or self._peer is None:
            raise LocalProtocolError(f"no name is asked for in state {self.state.name}")
        self._peer = PeerInfo(name, creation, self._peer.flags)
        encoded = name.encode()
        self._move(Step.GO_ON)
        self._send(
            b"s"
            + Status.NAMED.value.encode()
            + struct.pack(">H", len(encoded))
            + encoded
            + struct.pack(">I", creation)
        )
        self._send_challenge()

    # -- readers, one per state that waits for the peer ----------------------------

    def _read_name(self, message: bytes) -> Event:
        if message[:1] == b"n":
            raise RemoteProtocolError("the peer speaks the handshake of OTP 22 and earlier")
        theirs, creation, name = _parse_name(_NAME_HEAD, message)
        self._move(Step.GOT_NAME)
        self._peer = PeerInfo(name, creation, theirs)
        self._check_flags(theirs)
        if theirs & Flag.NAME_ME:
            return NameRequested(name, theirs)
        try:
            check_node_name(name)
        except ValueError as error:
            self._refuse(Status.NOT_ALLOWED, str(error))
        if not same_kind(self._us.name, name):
            self._refuse(
                Status.NOT_ALLOWED,
                f"{name!r} cannot connect to {self._us.name!r}: one has a short name, one a long",
            )
        if name == self._us.name:
            self._refuse(Status.NOK, f"another node calls itself {name!r}, which is our name")
        return PeerNamed(self._peer)

    def _read_status(self, message: bytes) -> Event | None:
        if message[:1] != b"s":
            raise RemoteProtocolError(f"expected a status, got {message[:16]!r}")
        word = message[1:]
        if word in (b"ok", b"ok_simultaneous"):
            self._move(Step.GOT_OK)
            return None
        if word == b"alive":
            self._move(Step.GOT_ALIVE)
            return StillAlive()
        self._move(Step.GOT_REFUSAL)
        reason = _REFUSALS.get(word)
        if reason is None:
            raise RemoteProtocolError(f"unknown handshake status {word[:32]!r}")
        raise HandshakeRefused(word.decode(), f"{self.expected} answered {word.decode()}: {reason}")

    def _read_challenge(self, message: bytes) -> None:
        theirs, challenge, creation, name = _parse_challenge(message)
        self._move(Step.GOT_CHALLENGE)
        if name != self.expected:
            raise RemoteProtocolError(f"dialled {self.expected!r}, and {name!r} answered")
        self._peer = PeerInfo(name, creation, theirs)
        self._check_flags(theirs)
        proof = digest(self._us.cookie, challenge)
        self._send(_REPLY.pack(b"r", self._challenge, proof))

    def _read_ack(self, message: bytes) -> Event:
        if len(message) != _ACK.size or message[:1] != b"a":
            raise RemoteProtocolError(f"expected an acknowledgement, got {message[:1]!r}")
        self._move(Step.GOT_ACK)
        self._check_digest(message[1:])
        return self._complete()

    def _read_answer(self, message: bytes) -> None:
        if message == b"strue":
            self._move(Step.GOT_TRUE)
            self._send_challenge()
            return
        if message != b"sfalse":
            raise RemoteProtocolError(f"expected true or false, got {message[:16]!r}")
        self._move(Step.GOT_REFUSAL)
        raise HandshakeRefused("alive", f"{self._peer_name()} keeps its older connection")

    def _read_reply(self, message: bytes) -> Event:
        if len(message) != _REPLY.size or message[:1] != b"r":
            raise RemoteProtocolError(f"expected a challenge reply, got {message[:1]!r}")
        _, challenge, proof = _REPLY.unpack(message)
        self._move(Step.GOT_REPLY)
        self._check_digest(proof)
        self._send(_ACK.pack(b"a", digest(self._us.cookie, challenge)))
        return self._complete()

    # -- parts ----------------------------------------------------------------------

    def _next_message(self) -> bytes | None:
        if len(self._buffer) < 2:
            return None
        size = int.from_bytes(self._buffer[:2], "big")
        if not 1 <= size <= MAX_MESSAGE:
            raise RemoteProtocolError(f"a handshake message of {size} bytes")
        if len(self._buffer) < 2 + size:
            return None
        message = bytes(self._buffer[2 : 2 + size])
        del self._buffer[: 2 + size]
        return message

    def _move(self, step: Step) -> None:
        after = TRANSITIONS.get((self.state, step))
        if after is None:
            raise LocalProtocolError(f"{step.name} is not possible in state {self.state.name}")
        self.state = after

    def _send(self, message: bytes) -> None:
        self._out += struct.pack(">H", len(message)) + message

    def _send_challenge(self) -> None:
        name = self._us.name.encode()
        flags = self._us.flags
        if self._peer is not None:
            # A nameless peer goes by what both sides set, so it must find its flag here.
            flags |= self._peer.flags & Flag.NAME_ME
        head = _CHALLENGE_HEAD.pack(b"N", flags, self._challenge, self._us.creation, len(name))
        self._send(head + name)

    def _check_flags(self, theirs: Flag) -> None:
        missing = dflags.missing(theirs)
        if not missing:
            return
        names = ", ".join(flag.name or hex(flag) for flag in missing)
        message = f"{self._peer_name()} lacks capabilities of OTP 25 and later: {names}"
        if self.state is State.DECIDE_STATUS:
            self._refuse(Status.NOT_ALLOWED, message)
        raise HandshakeRefused("flags", message)

    def _check_digest(self, proof: bytes) -> None:
        expected = digest(self._us.cookie, self._challenge)
        # Constant time: the position of the first wrong byte must not show.
        if not hmac.compare_digest(proof, expected):
            raise HandshakeRefused("cookie", f"{self._peer_name()} does not have our cookie")

    def _refuse(self, status: Status, message: str) -> None:
        self._move(Step.REFUSE)
        self._send(b"s" + status.value.encode())
        raise HandshakeRefused(status.value, message)

    def _complete(self) -> Event:
        if self._peer is None:
            raise LocalProtocolError("a handshake completed without a peer")
        leftover = bytes(self._buffer)
        self._buffer.clear()
        return Completed(self._peer, leftover)

    def _peer_name(self) -> str:
        return repr(self._peer.name) if self._peer is not None else "the peer"


_READERS: Final[dict[State, Callable[[Handshake, bytes], Event | None]]] = {
    State.AWAIT_NAME: Handshake._read_name,
    State.AWAIT_STATUS: Handshake._read_status,
    State.AWAIT_CHALLENGE: Handshake._read_challenge,
    State.AWAIT_ACK: Handshake._read_ack,
    State.AWAIT_ANSWER: Handshake._read_answer,
    State.AWAIT_REPLY: Handshake._read_reply,
}

_REFUSALS: Final = {
    b"nok": "both sides dialled, and its own attempt goes on",
    b"not_allowed": "it does not accept this node",
}


def _parse_name(head: struct.Struct, message: bytes) -> tuple[Flag, int, str]:
    if len(message) < head.size or message[:1] != b"N":
        raise RemoteProtocolError(f"expected a node name, got {message[:16]!r}")
    _, flags, creation, size = head.unpack_from(message)
    return Flag(flags), creation, _text(message[head.size :], size)


def _parse_challenge(message: bytes) -> tuple[Flag, int, int, str]:
    head = _CHALLENGE_HEAD
    if len(message) < head.size or message[:1] != b"N":
        raise RemoteProtocolError(f"expected a challenge, got {message[:16]!r}")
    _, flags, challenge, creation, size = head.unpack_from(message)
    return Flag(flags), challenge, creation, _text(message[head.size :], size)


def _text(data: bytes, size: int) -> str:
    # Longer than announced is legal: the documentation reserves the rest for the future.
    if len(data) < size:
        raise RemoteProtocolError("a node name is cut off")
    try:
        return data[:size].decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError("a node name is not UTF-8") from None
