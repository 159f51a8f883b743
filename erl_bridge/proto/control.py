"""Control messages: the first term of every frame.

Each is a tuple whose first element says what it is.  :data:`MESSAGES` names every
operation a peer may send under the flags we offer, with its fields in wire order and
whether a second term, the payload, follows.  An operation outside the table is a
protocol error; a real node drops the connection for it, and so do we.

The forms with a trace token (``*_TT``) differ only by that one field.  They are decoded
to the plain operation, since nothing here traces: a peer that has sequential tracing
switched on must not lose its connection for it.

What order means on the wire (each seen to cost a connection or a reply):

* SPAWN_REPLY before anything else about the new process.
* UNLINK_ID is answered by UNLINK_ID_ACK with the same number and the pids swapped.
* Only pids that were once announced may exit.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple

from erl_bridge.etf import Atom, DecodeError, Pid, Reference, decode_prefix, encode
from erl_bridge.etf.limits import DEFAULT_LIMITS, Limits
from erl_bridge.proto.errors import LocalProtocolError, RemoteProtocolError
from erl_bridge.proto.frames import frame

__all__ = (
    "MESSAGES",
    "NO_PAYLOAD",
    "SPAWN_LINKED",
    "SPAWN_MONITORED",
    "Control",
    "ControlParser",
    "Layout",
    "Op",
    "control_frame",
    "parse_frame",
)


class Op(IntEnum):
    """Operation numbers, named as in the protocol's documentation."""

    LINK = 1
    SEND = 2
    EXIT = 3
    UNLINK = 4
    NODE_LINK = 5
    REG_SEND = 6
    GROUP_LEADER = 7
    EXIT2 = 8
    SEND_TT = 12
    EXIT_TT = 13
    REG_SEND_TT = 16
    EXIT2_TT = 18
    MONITOR_P = 19
    DEMONITOR_P = 20
    MONITOR_P_EXIT = 21
    SEND_SENDER = 22
    SEND_SENDER_TT = 23
    PAYLOAD_EXIT = 24
    PAYLOAD_EXIT_TT = 25
    PAYLOAD_EXIT2 = 26
    PAYLOAD_EXIT2_TT = 27
    PAYLOAD_MONITOR_P_EXIT = 28
    SPAWN_REQUEST = 29
    SPAWN_REQUEST_TT = 30
    SPAWN_REPLY = 31
    SPAWN_REPLY_TT = 32
    ALIAS_SEND = 33
    ALIAS_SEND_TT = 34
    UNLINK_ID = 35
    UNLINK_ID_ACK = 36


class Layout(NamedTuple):
    """One operation's form.

    ``plain`` is the operation without the trace token, and ``token`` the token's index
    among the fields; both are None where there is none.
    """

    fields: tuple[str, ...]
    payload: bool
    plain: Op | None = None
    token: int | None = None


MESSAGES: Final[dict[int, Layout]] = {
    Op.LINK: Layout(("from_pid", "to_pid"), payload=False),
    Op.SEND: Layout(("unused", "to_pid"), payload=True),
    Op.EXIT: Layout(("from_pid", "to_pid", "reason"), payload=False),
    Op.UNLINK: Layout(("from_pid", "to_pid"), payload=False),
    Op.NODE_LINK: Layout((), payload=False),
    Op.REG_SEND: Layout(("from_pid", "unused", "to_name"), payload=True),
    Op.GROUP_LEADER: Layout(("from_pid", "to_pid"), payload=False),
    Op.EXIT2: Layout(("from_pid", "to_pid", "reason"), payload=False),
    Op.SEND_TT: Layout(("unused", "to_pid", "token"), True, Op.SEND, 2),
    Op.EXIT_TT: Layout(("from_pid", "to_pid", "token", "reason"), False, Op.EXIT, 2),
    Op.REG_SEND_TT: Layout(("from_pid", "unused", "to_name", "token"), True, Op.REG_SEND, 3),
    Op.EXIT2_TT: Layout(("from_pid", "to_pid", "token", "reason"), False, Op.EXIT2, 2),
    Op.MONITOR_P: Layout(("from_pid", "to", "ref"), payload=False),
    Op.DEMONITOR_P: Layout(("from_pid", "to", "ref"), payload=False),
    Op.MONITOR_P_EXIT: Layout(("from", "to_pid", "ref", "reason"), payload=False),
    Op.SEND_SENDER: Layout(("from_pid", "to_pid"), payload=True),
    Op.SEND_SENDER_TT: Layout(("from_pid", "to_pid", "token"), True, Op.SEND_SENDER, 2),
    Op.PAYLOAD_EXIT: Layout(("from_pid", "to_pid"), payload=True),
    Op.PAYLOAD_EXIT_TT: Layout(("from_pid", "to_pid", "token"), True, Op.PAYLOAD_EXIT, 2),
    Op.PAYLOAD_EXIT2: Layout(("from_pid", "to_pid"), payload=True),
    Op.PAYLOAD_EXIT2_TT: Layout(("from_pid", "to_pid", "token"), True, Op.PAYLOAD_EXIT2, 2),
    Op.PAYLOAD_MONITOR_P_EXIT: Layout(("from", "to_pid", "ref"), payload=True),
    Op.SPAWN_REQUEST: Layout(("req_id", "from_pid", "group_leader", "mfa", "options"), True),
    Op.SPAWN_REQUEST_TT: Layout(
        ("req_id", "from_pid", "group_leader", "mfa", "options", "token"),
        True,
        Op.SPAWN_REQUEST,
        5,
    ),
    Op.SPAWN_REPLY: Layout(("req_id", "to_pid", "flags", "result"), payload=False),
    Op.SPAWN_REPLY_TT: Layout(
        ("req_id", "to_pid", "flags", "result", "token"), False, Op.SPAWN_REPLY, 4
    ),
    Op.ALIAS_SEND: Layout(("from_pid", "alias"), payload=True),
    Op.ALIAS_SEND_TT: Layout(("from_pid", "alias", "token"), True, Op.ALIAS_SEND, 2),
    Op.UNLINK_ID: Layout(("id", "from_pid", "to_pid"), payload=False),
    Op.UNLINK_ID_ACK: Layout(("id", "from_pid", "to_pid"), payload=False),
}

#: What a field may be, by its name; what is not listed may be any term.
_KINDS: Final[dict[str, Any]] = {
    "from_pid": Pid,
    "to_pid": Pid,
    "to_name": Atom,
    "to": (Pid, Atom),
    "from": (Pid, Atom),
    "ref": Reference,
    "req_id": Reference,
    "alias": Reference,
    "group_leader": Pid,
    "mfa": tuple,
    "options": list,
    "flags": int,
    "result": (Pid, Atom),
    "id": int,
}

#: Checked once here, so that handlers can rely on it whatever a peer sends.
_ROWS: Final[dict[int, tuple[Op, Layout, tuple[tuple[int, Any], ...]]]] = {
    number: (
        Op(number),
        layout,
        tuple((i, _KINDS[name]) for i, name in enumerate(layout.fields) if name in _KINDS),
    )
    for number, layout in MESSAGES.items()
}

#: Operations whose control term a sender repeats.
_REPEATED: Final = frozenset((Op.SEND, Op.SEND_SENDER, Op.REG_SEND))

#: Flags of SPAWN_REPLY: what was set up together with the new process.
SPAWN_LINKED: Final = 1
SPAWN_MONITORED: Final = 2


class _NoPayload:
    """The type of :data:`NO_PAYLOAD`; any term, None included, may be a payload."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NO_PAYLOAD"


NO_PAYLOAD: Final = _NoPayload()


class Control(NamedTuple):
    """One decoded frame: the operation, its fields in wire order, its payload.

    ``damaged`` says why the payload could not be decoded.  The frame itself was whole,
    so the connection is in step and the message can be answered with an error.
    """

    op: Op
    fields: tuple[Any, ...]
    payload: Any = NO_PAYLOAD
    damaged: str = ""


class ControlParser:
    """Decodes the frames of one connection.

    A process that sends a stream of messages repeats its control term byte for byte, and
    terms delimit themselves: a frame that begins with the same bytes begins with the same
    term.  So the last control term of a message is kept and not decoded again.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._same: bytes | None = None
        self._op = Op.SEND
        self._fields: tuple[Any, ...] = ()

    def parse(self, body: bytes) -> Control:
        """Decode a frame's body (what follows the byte 112).

        :raises RemoteProtocolError: not a control message of the table.
        """
        if self._same is not None and body.startswith(self._same):
            return self._message(self._op, self._fields, body, len(self._same))
        op, fields, offset, has_payload = _control(body, self._limits)
        if not has_payload:
            if offset != len(body):
                raise RemoteProtocolError(f"{op.name} with a message behind it")
            return Control(op, fields)
        if op in _REPEATED:
            self._same = body[:offset]
            self._op = op
            self._fields = fields
        return self._message(op, fields, body, offset)

    def _message(self, op: Op, fields: tuple[Any, ...], body: bytes, offset: int) -> Control:
        if offset == len(body):
            raise RemoteProtocolError(f"{op.name} without its message")
        try:
            payload, end = decode_prefix(body, offset, limits=self._limits)
        except DecodeError as error:
            return Control(op, fields, damaged=str(error))
        if end != len(body):
            raise RemoteProtocolError(f"{op.name} with bytes behind its message")
        return Control(op, fields, payload)


def parse_frame(body: bytes, *, limits: Limits = DEFAULT_LIMITS) -> Control:
    """Decode one frame's body on its own.

    :raises RemoteProtocolError: not a control message of the table.
    """
    return ControlParser(limits).parse(body)


def _control(body: bytes, limits: Limits) -> tuple[Op, tuple[Any, ...], int, bool]:
    try:
        term, offset = decode_prefix(body, limits=limits)
    except DecodeError as error:
        raise RemoteProtocolError(f"malformed control message: {error}") from None
    if type(term) is not tuple or not term or type(term[0]) is not int:
        raise RemoteProtocolError("a control message that is not a tuple with a number first")
    row = _ROWS.get(term[0])
    if row is None:
        raise RemoteProtocolError(f"unknown control message {term[0]}")
    op, layout, checks = row
    fields = term[1:]
    if len(fields) != len(layout.fields):
        raise RemoteProtocolError(f"{op.name} with {len(fields)} fields")
    for index, kind in checks:
        if not isinstance(fields[index], kind):
            raise RemoteProtocolError(f"{op.name} with a wrong {layout.fields[index]}")
    if layout.plain is not None and layout.token is not None:
        op = layout.plain
        fields = fields[: layout.token] + fields[layout.token + 1 :]
    return op, fields, offset, layout.payload


def control_frame(op: Op, *fields: Any, payload: Any = NO_PAYLOAD) -> bytes:
    """Return the whole frame of one control message.

    :raises LocalProtocolError: the fields or the payload do not fit the operation.
    :raises erl_bridge.etf.EncodeError: a term has no external form.
    """
    layout = MESSAGES[op]
    if len(fields) != len(layout.fields) or layout.payload is (payload is NO_PAYLOAD):
        raise LocalProtocolError(f"{op.name} takes {layout.fields}, payload: {layout.payload}")
    control = encode((int(op), *fields))
    return frame(control, encode(payload) if layout.payload else b"")
