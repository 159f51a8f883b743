"""The port mapper's protocol, both ends, without sockets.

A node keeps one connection to epmd open for as long as it lives: the registration ends
with the connection.  Everything else is one request and one answer, after which epmd
closes.  Requests carry a 16-bit length; answers do not, so a client either knows their
size (ALIVE2) or reads to the end of the stream.

=====================  =======================================================
request                answer
=====================  =======================================================
120 ALIVE2             118 result:8 creation:32, or 121 result:8 creation:16
122 PORT_PLEASE2       119 result:8, and when 0 the registration
110 NAMES              port:32, then one text line per node, then the end
100 DUMP               the same with another wording
=====================  =======================================================

Two more requests exist (KILL, STOP); they end epmd or a registration for anyone who can
connect, so :class:`EpmdSession` treats them as unknown.

Integers are big-endian throughout.
"""

from __future__ import annotations

import itertools
import secrets
import struct
from dataclasses import dataclass, field
from typing import Final

from erl_bridge.proto.errors import RemoteProtocolError
from erl_bridge.proto.names import MAX_NAME_BYTES

__all__ = (
    "DEFAULT_PORT",
    "HIDDEN",
    "VISIBLE",
    "AliveReply",
    "EpmdDirectory",
    "EpmdSession",
    "Registration",
    "alive_reply",
    "alive_request",
    "names_reply",
    "names_request",
    "port_reply",
    "port_request",
)

DEFAULT_PORT: Final = 4369

VISIBLE: Final = 77  # 'M'
HIDDEN: Final = 72  # 'H'

#: The only handshake version spoken here; offering older ones invites the old greeting.
HANDSHAKE_VERSION: Final = 6

_ALIVE2 = 120
_ALIVE2_X_RESP = 118
_ALIVE2_RESP = 121
_PORT_PLEASE2 = 122
_PORT2_RESP = 119
_NAMES = 110
_DUMP = 100

# A request is a name, up to 64 KiB of "extra" a node may register, and a few bytes.
_MAX_EXTRA = 0xFFFF
_ALIVE2_HEAD: Final = struct.Struct(">HBBHHH")


@dataclass(frozen=True, slots=True)
class Registration:
    """What epmd knows of a node.  ``name`` is the part before the ``@``."""

    name: str
    port: int
    node_type: int = HIDDEN
    protocol: int = 0  # TCP over IPv4
    highest: int = HANDSHAKE_VERSION
    lowest: int = HANDSHAKE_VERSION
    extra: bytes = b""


@dataclass(frozen=True, slots=True)
class AliveReply:
    """Whether a registration was accepted, and under which creation."""

    accepted: bool
    creation: int


# -- client side ---------------------------------------------------------------


def _request(body: bytes) -> bytes:
    return struct.pack(">H", len(body)) + body


def alive_request(entry: Registration) -> bytes:
    """Return the request that registers a node for as long as the connection lives."""
    return _request(bytes((_ALIVE2,)) + _registration(entry))


def port_request(name: str) -> bytes:
    """Return the request for one node's port."""
    return _request(bytes((_PORT_PLEASE2,)) + name.encode())


def names_request() -> bytes:
    """Return the request for all nodes and their ports."""
    return _request(bytes((_NAMES,)))


def alive_reply(data: bytes) -> AliveReply | None:
    """Parse the answer to :func:`alive_request`; None while more bytes are needed.

    :raises RemoteProtocolError: the answer is not one.
    """
    if not data:
        return None
    if data[0] == _ALIVE2_X_RESP:
        form = ">BI"
    elif data[0] == _ALIVE2_RESP:
        form = ">BH"
    else:
        raise RemoteProtocolError(f"epmd answered a registration with tag {data[0]}")
    size = 1 + struct.calcsize(form)
    if len(data) < size:
        return None
    result, creation = struct.unpack_from(form, data, 1)
    return AliveReply(result == 0, creation)


def port_reply(data: bytes) -> Registration | None:
    """Parse a whole answer to :func:`port_request`; None when the node is not registered.

    :raises RemoteProtocolError: the answer is cut off or not one.
    """
    if len(data) < 2 or data[0] != _PORT2_RESP:
        raise RemoteProtocolError(f"epmd answered a port request with {data[:8]!r}")
    if data[1] != 0:
        return None
    return _parse_registration(data, 2)


def names_reply(data: bytes) -> list[tuple[str, int]]:
    """Parse a whole answer to :func:`names_request` into (name, port) pairs.

    :raises RemoteProtocolError: the answer is cut off or has another wording.
    """
    if len(data) < 4:
        raise RemoteProtocolError("epmd cut its list of names off")
    found = []
    for line in data[4:].decode("utf-8", "replace").splitlines():
        words = line.split()
        if len(words) != 5 or words[0] != "name" or not words[4].isdecimal():
            raise RemoteProtocolError(f"epmd listed a node as {line[:80]!r}")
        found.append((words[1], int(words[4])))
    return found


# -- both sides ----------------------------------------------------------------


def _registration(entry: Registration) -> bytes:
    name = entry.name.encode()
    return b"".join(
        (
            _ALIVE2_HEAD.pack(
                entry.port,
                entry.node_type,
                entry.protocol,
                entry.highest,
                entry.lowest,
                len(name),
            ),
            name,
            struct.pack(">H", len(entry.extra)),
            entry.extra,
        )
    )


def _parse_registration(data: bytes, offset: int) -> Registration:
    try:
        port, kind, protocol, highest, lowest, size = _ALIVE2_HEAD.unpack_from(data, offset)
        offset += _ALIVE2_HEAD.size
        name = data[offset : offset + size].decode()
        offset += size
        (extra_size,) = struct.unpack_from(">H", data, offset)
        offset += 2
        extra = data[offset : offset + extra_size]
    except (struct.error, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"malformed epmd registration: {error}") from None
    if len(data) != offset + extra_size or not name:
        raise RemoteProtocolError("malformed epmd registration: lengths do not add up")
    if not name.isprintable() or " " in name:  # it would forge lines in the list of names
        raise RemoteProtocolError(f"malformed epmd registration: the name {name!r}")
    return Registration(name, port, kind, protocol, highest, lowest, extra)


# -- server side ---------------------------------------------------------------


@dataclass(slots=True)
class EpmdDirectory:
    """Who is registered: shared by all sessions of one server.

    A restarted node must not be taken for its former self, so each registration gets a
    creation the name has not had; random at first, since the directory itself forgets
    everything when it is restarted.
    """

    port: int = DEFAULT_PORT
    max_nodes: int = 4096
    nodes: dict[str, Registration] = field(default_factory=dict)
    _creations: itertools.count[int] = field(
        default_factory=lambda: itertools.count(secrets.randbits(30))
    )

    def register(self, entry: Registration) -> AliveReply:
        """Add a node, or refuse because the name is taken or the table is full."""
        # 1..3 were the only creations before 2019; nodes treat them as "any".
        creation = 4 + next(self._creations) % (0xFFFFFFFF - 4)
        if entry.name in self.nodes or len(self.nodes) >= self.max_nodes:
            return AliveReply(accepted=False, creation=creation)
        self.nodes[entry.name] = entry
        return AliveReply(accepted=True, creation=creation)

    def unregister(self, name: str) -> None:
        """Forget a node whose connection ended."""
        self.nodes.pop(name, None)


class EpmdSession:
    """One client's connection to the server: bytes in, bytes out.

    :meth:`receive` takes whatever arrived and returns what to send.  When :attr:`closed`
    is true the server flushes and closes.  :meth:`end` must be called when the
    connection is gone, however it went.
    """

    def __init__(self, directory: EpmdDirectory) -> None:
        self._directory = directory
        self._buffer = bytearray()
        self._registered: str | None = None
        self.closed = False

    @property
    def registered(self) -> str | None:
        """The name this connection holds."""
        return self._registered

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the client and return the answer to send, possibly empty.

        :raises RemoteProtocolError: the request is malformed or unknown: close.
        """
        if self._registered is not None:
            # Nothing may follow a registration; real epmd reads and ignores it too.
            return b""
        if self.closed:
            return b""
        self._buffer += data
        if len(self._buffer) < 2:
            return b""
        size = int.from_bytes(self._buffer[:2], "big")
        if not 1 <= size <= MAX_NAME_BYTES + _MAX_EXTRA:
            raise RemoteProtocolError(f"an epmd request of {size} bytes")
        if len(self._buffer) < 2 + size:
            return b""
        return self._answer(bytes(self._buffer[2 : 2 + size]))

    def end(self) -> None:
        """Undo the registration this connection held."""
        self.closed = True
        if self._registered is not None:
            self._directory.unregister(self._registered)
            self._registered = None

    def _answer(self, body: bytes) -> bytes:
        answer = _ANSWERS.get(body[0])
        if answer is None:
            raise RemoteProtocolError(f"unknown epmd request {body[0]}")
        return answer(self, body)

    def _alive(self, body: bytes) -> bytes:
        entry = _parse_registration(body, 1)
        if len(entry.name.encode()) > MAX_NAME_BYTES:
            raise RemoteProtocolError("the node name is too long")
        reply = self._directory.register(entry)
        if reply.accepted:
            self._registered = entry.name
        else:
            self.closed = True
        result = 0 if reply.accepted else 1
        if entry.highest >= HANDSHAKE_VERSION:
            return struct.pack(">BBI", _ALIVE2_X_RESP, result, reply.creation)
        # Older nodes read two bits of creation.
        return struct.pack(">BBH", _ALIVE2_RESP, result, reply.creation % 3 + 1)

    def _port(self, body: bytes) -> bytes:
        self.closed = True
        entry = self._directory.nodes.get(body[1:].decode("utf-8", "replace"))
        if entry is None:
            return bytes((_PORT2_RESP, 1))
        return bytes((_PORT2_RESP, 0)) + _registration(entry)

    def _names(self, _body: bytes) -> bytes:
        return self._list("name {0.name} at port {0.port}\n")

    def _dump(self, _body: bytes) -> bytes:
        return self._list("active name     <{0.name}> at port {0.port}, fd = 0\n")

    def _list(self, line: str) -> bytes:
        self.closed = True
        lines = "".join(line.format(entry) for entry in self._directory.nodes.values())
        return struct.pack(">I", self._directory.port) + lines.encode()


_ANSWERS = {
    _ALIVE2: EpmdSession._alive,
    _PORT_PLEASE2: EpmdSession._port,
    _NAMES: EpmdSession._names,
    _DUMP: EpmdSession._dump,
}
