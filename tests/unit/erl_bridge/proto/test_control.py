"""The table of control messages, both ways."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erl_bridge.etf import Atom, EncodeError, Limits, Pid, Reference, encode
from erl_bridge.proto import LocalProtocolError, RemoteProtocolError
from erl_bridge.proto.control import (
    MESSAGES,
    NO_PAYLOAD,
    Control,
    ControlParser,
    Op,
    control_frame,
    parse_frame,
)
from tests.property.strategies.erl_terms import terms

NODE = Atom("a@h")
PID = Pid(NODE, 1, 2, 3)
REF = Reference(NODE, 3, (1, 2, 3))

SAMPLES: dict[str, Any] = {
    "from_pid": PID,
    "to_pid": Pid(NODE, 9, 9, 9),
    "to_name": Atom("rex"),
    "to": Atom("rex"),
    "from": PID,
    "ref": REF,
    "req_id": REF,
    "alias": REF,
    "group_leader": PID,
    "mfa": (Atom("erpc"), Atom("execute_call"), 4),
    "options": [Atom("monitor")],
    "flags": 2,
    "result": PID,
    "id": 77,
    "unused": Atom(""),
    "token": [],
    "reason": Atom("normal"),
}


def fields_of(op: Op) -> tuple[Any, ...]:
    """Fields of the right kinds."""
    return tuple(SAMPLES[name] for name in MESSAGES[op].fields)


def body_of(op: Op, fields: tuple[Any, ...], payload: Any = NO_PAYLOAD) -> bytes:
    """The body of a frame, after length and kind."""
    return control_frame(op, *fields, payload=payload)[5:]


@pytest.mark.parametrize("op", list(Op), ids=lambda op: op.name)
def test_every_operation_is_read_as_it_was_written(op: Op) -> None:
    """Trace tokens are left out; the rest comes back."""
    layout = MESSAGES[op]
    payload = [1, 2.5] if layout.payload else NO_PAYLOAD
    found = parse_frame(body_of(op, fields_of(op), payload))
    assert found.op is (layout.plain or op)
    expected = [SAMPLES[name] for name in layout.fields if name != "token"]
    assert list(found.fields) == expected
    assert found.payload is NO_PAYLOAD or found.payload == payload
    assert found.damaged == ""


@pytest.mark.parametrize("op", [op for op in Op if MESSAGES[op].plain], ids=lambda op: op.name)
def test_traced_operations_differ_by_their_token_only(op: Op) -> None:
    """Else a trace would change the meaning of a message."""
    layout = MESSAGES[op]
    plain = MESSAGES[layout.plain] if layout.plain else None
    assert plain is not None
    assert tuple(name for name in layout.fields if name != "token") == plain.fields
    assert layout.payload == plain.payload
    assert layout.token is not None
    assert layout.fields[layout.token] == "token"


@pytest.mark.parametrize("op", list(Op), ids=lambda op: op.name)
def test_fields_of_another_kind_are_refused(op: Op) -> None:
    """Each typed field in turn, so that no handler has to look."""
    payload = 1 if MESSAGES[op].payload else NO_PAYLOAD
    for index, name in enumerate(MESSAGES[op].fields):
        if name in ("unused", "token", "reason"):
            continue
        fields = list(fields_of(op))
        fields[index] = 2.5
        with pytest.raises(RemoteProtocolError, match=name):
            parse_frame(body_of(op, tuple(fields), payload))


@pytest.mark.parametrize(
    "term",
    [(99,), (4711, PID), (), (Atom("send"), PID), [2, PID], PID, (True, PID), (1, PID), (9, PID)],
)
def test_what_is_no_control_message(term: Any) -> None:
    """Unknown operations, wrong arities, other terms."""
    with pytest.raises(RemoteProtocolError):
        parse_frame(encode(term))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x83", id="no term"),
        pytest.param(b"\0" + encode(1), id="no version"),
        pytest.param(encode((2, Atom(""), PID)), id="no message"),
        pytest.param(encode((2, Atom(""), PID)) + encode(1) + b"\0", id="more behind it"),
        pytest.param(encode((1, PID, PID)) + encode(1), id="a message too many"),
    ],
)
def test_frames_of_the_wrong_shape(body: bytes) -> None:
    """Protocol errors."""
    with pytest.raises(RemoteProtocolError):
        parse_frame(body)


def test_a_message_that_cannot_be_decoded_is_told_apart() -> None:
    """The frame is whole, so the connection need not die for one bad term."""
    control = encode((2, Atom(""), PID))
    for payload, limits in ((b"\x83\xff", Limits()), (encode([[[1]]]), Limits(max_depth=2))):
        found = parse_frame(control + payload, limits=limits)
        assert found.op is Op.SEND
        assert found.payload is NO_PAYLOAD
        assert found.damaged


def test_what_we_cannot_send() -> None:
    """Our own mistakes are ours."""
    with pytest.raises(LocalProtocolError):
        control_frame(Op.LINK, PID)
    with pytest.raises(LocalProtocolError):
        control_frame(Op.SEND, Atom(""), PID)
    with pytest.raises(LocalProtocolError):
        control_frame(Op.LINK, PID, PID, payload=1)
    with pytest.raises(EncodeError):
        control_frame(Op.SEND, Atom(""), PID, payload="text")


@given(terms)
def test_any_message_arrives(term: Any) -> None:
    """Whatever the payload is."""
    found = parse_frame(body_of(Op.SEND, (Atom(""), PID), term))
    assert encode(found.payload) == encode(term)


@given(st.sampled_from(list(Op)), st.data())
def test_damage_is_parsed_or_refused(op: Op, data: st.DataObject) -> None:
    """Parse it or raise RemoteProtocolError, never anything else."""
    payload = [b"x", 1] if MESSAGES[op].payload else NO_PAYLOAD
    body = bytearray(body_of(op, fields_of(op), payload))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        body += b"\x83"
    try:
        found = parse_frame(bytes(body))
    except RemoteProtocolError:
        return
    assert isinstance(found, Control)


@given(st.lists(st.tuples(st.sampled_from([Op.SEND, Op.SEND_SENDER, Op.LINK]), st.integers(1, 3))))
def test_a_remembered_control_term_is_the_right_one(sent: list[tuple[Op, int]]) -> None:
    """Senders take turns; a parser that remembers reads what a fresh one does."""
    parser = ControlParser()
    for op, serial in sent:
        fields = tuple(
            Pid(NODE, 1, serial, 3) if name.endswith("pid") else SAMPLES[name]
            for name in MESSAGES[op].fields
        )
        body = body_of(op, fields, serial if MESSAGES[op].payload else NO_PAYLOAD)
        assert parser.parse(body) == parse_frame(body)
        assert parser.parse(body).fields == fields


def test_what_is_remembered_still_needs_its_message() -> None:
    """The short way has the same checks as the long one."""
    parser = ControlParser()
    control = encode((2, Atom(""), PID))
    parser.parse(control + encode(1))
    for rest in (b"", encode(1) + b"\0"):
        with pytest.raises(RemoteProtocolError):
            parser.parse(control + rest)
    assert parser.parse(control + b"\x83\xff").damaged
