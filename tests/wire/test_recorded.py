"""What real nodes sent, parsed and sent again.  How it was recorded: README.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import pytest

from erl_bridge.etf import Atom, Fun, ImproperList, encode
from erl_bridge.proto.control import MESSAGES, NO_PAYLOAD, Control, Op, control_frame, parse_frame
from erl_bridge.proto.epmd import HIDDEN, Registration, alive_reply, names_reply, port_reply
from erl_bridge.proto.flags import Flag
from erl_bridge.proto.frames import FrameDecoder, frame
from erl_bridge.proto.handshake import Completed, Handshake, LocalNode, PeerNamed, Status
from erl_bridge.runtime.gen import alias_of, parse_call

RECORDED = Path(__file__).parent / "recorded"
COOKIE = b"wire"
RELEASES = ("otp25", "otp28")

#: What an expression makes the real side say, besides the ping some end with.
SAID = {
    "erpc:call": [Op.SPAWN_REQUEST],
    "erpc:call undef": [Op.SPAWN_REQUEST],
    "erpc:call error": [Op.SPAWN_REQUEST],
    "erpc:call of a fun": [Op.SPAWN_REQUEST],
    "rpc:cast": [Op.SPAWN_REQUEST],
    "rpc:block_call": [Op.MONITOR_P, Op.REG_SEND, Op.DEMONITOR_P],
    "gen_server:call": [Op.MONITOR_P, Op.REG_SEND, Op.DEMONITOR_P],
    "gen_server:multi_call": [Op.MONITOR_P, Op.REG_SEND, Op.DEMONITOR_P],
    "send to a name": [Op.REG_SEND],
    "send to a pid": [Op.SPAWN_REQUEST, Op.SEND_SENDER],
    "link and unlink": [Op.LINK, Op.UNLINK_ID],
    "monitor and demonitor": [Op.MONITOR_P, Op.DEMONITOR_P],
    "exit/2": [Op.PAYLOAD_EXIT2],
    "exit of a linked process": [Op.LINK, Op.PAYLOAD_EXIT],
    "group_leader/2": [Op.GROUP_LEADER],
    "spawn_request with options": [Op.SPAWN_REQUEST],
    "spawn_request with a bad option": [Op.SPAWN_REQUEST],
    "a traced message": [Op.SEND_SENDER],
}
PING = [Op.MONITOR_P, Op.REG_SEND, Op.DEMONITOR_P]


@dataclass
class Line:
    """One message: which scenario, which side, its bytes."""

    scenario: str
    theirs: bool
    data: bytes


def load(name: str) -> list[Line]:
    """Read a recording."""
    lines: list[Line] = []
    scenario = ""
    for line in (RECORDED / f"{name}.txt").read_text().splitlines():
        if line.startswith("# "):
            scenario = line[2:]
        else:
            lines.append(Line(scenario, line[0] == ">", bytes.fromhex(line[2:])))
    return lines


@pytest.fixture(params=RELEASES)
def recorded(request: pytest.FixtureRequest) -> list[Line]:
    """Each release's recording."""
    return load(request.param)


def shaken(recorded: list[Line], scenario: str) -> list[Line]:
    """The messages of a handshake."""
    return [line for line in recorded if line.scenario == scenario][:5]


def with_length(line: Line) -> bytes:
    """A handshake message as on the wire."""
    return struct.pack(">H", len(line.data)) + line.data


def bodies(recorded: list[Line], *, theirs: bool | None = None) -> list[tuple[str, bytes]]:
    """Bodies of all frames with their scenario, ticks left out."""
    found = []
    for scenario in dict.fromkeys(line.scenario for line in recorded):
        lines = [line for line in recorded if line.scenario == scenario]
        if scenario.startswith("handshake"):
            lines = lines[5:]
        found += [
            (scenario, line.data[1:])
            for line in lines
            if line.data and theirs in (None, line.theirs)
        ]
    return found


@pytest.mark.parametrize("chunk", [None, 1])
class TestHandshake:
    def test_the_peer_dials(self, recorded: list[Line], chunk: int | None) -> None:
        """The same bytes from the peer give the same bytes from us."""
        name, status, challenge, reply, ack = shaken(recorded, "handshake: the peer dials")
        _, flags, number, creation, size = struct.unpack_from(">cQIIH", challenge.data)
        us = LocalNode(challenge.data[-size:].decode(), creation, Flag(flags), COOKIE)
        side = Handshake.accept(us)
        side._challenge = number
        (named,) = feed(side, with_length(name), chunk)
        assert isinstance(named, PeerNamed)
        assert named.peer.name == "peer@localhost"
        side.decide(Status.OK)
        assert side.data_to_send() == with_length(status) + with_length(challenge)
        (done,) = feed(side, with_length(reply), chunk)
        assert isinstance(done, Completed)
        assert side.data_to_send() == with_length(ack)

    def test_we_dial(self, recorded: list[Line], chunk: int | None) -> None:
        """And the other way round."""
        name, status, challenge, reply, ack = shaken(recorded, "handshake: we dial")
        _, flags, creation, size = struct.unpack_from(">cQIH", name.data)
        us = LocalNode(name.data[-size:].decode(), creation, Flag(flags), COOKIE)
        side = Handshake.connect(us, "peer@localhost")
        (side._challenge,) = struct.unpack_from(">I", reply.data, 1)
        assert side.data_to_send() == with_length(name)
        assert feed(side, with_length(status) + with_length(challenge), chunk) == []
        assert side.data_to_send() == with_length(reply)
        (done,) = feed(side, with_length(ack), chunk)
        assert isinstance(done, Completed)
        assert done.peer.flags & Flag.SPAWN


def feed(side: Handshake, data: bytes, chunk: int | None) -> list[object]:
    """Give a side bytes, whole or in pieces."""
    step = chunk or len(data)
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    return [event for piece in pieces for event in side.receive(piece)]


class TestFrames:
    def test_what_each_expression_says(self, recorded: list[Line]) -> None:
        """The operations of the real side, per scenario; a ping may follow."""
        for scenario, expected in SAID.items():
            said = [parse_frame(b).op for s, b in bodies(recorded, theirs=True) if s == scenario]
            found = sorted(said)
            assert found in (sorted(expected), sorted(expected + PING)), scenario

    def test_messages_survive_being_sent_again(self, recorded: list[Line]) -> None:
        """Parsed, written, parsed: the same message."""
        for scenario, body in bodies(recorded):
            control = parse_frame(body)
            assert not control.damaged, scenario
            payload = control.payload if MESSAGES[control.op].payload else NO_PAYLOAD
            again = control_frame(control.op, *control.fields, payload=payload)
            assert parse_frame(again[5:]) == control, scenario

    def test_the_real_side_writes_control_terms_as_we_do(self, recorded: list[Line]) -> None:
        """Byte for byte.  (Messages may differ: it writes lists of small integers as strings.)"""
        for scenario, body in bodies(recorded):
            if scenario != "a traced message":
                control = parse_frame(body)
                assert body.startswith(encode((int(control.op), *control.fields))), scenario

    def test_the_stream_in_single_bytes(self, recorded: list[Line]) -> None:
        """All frames of one side, cut everywhere."""
        sent = [body for _, body in bodies(recorded, theirs=True)]
        stream = b"".join(map(frame, sent))
        decoder = FrameDecoder()
        found = [body for at in range(len(stream)) for body in decoder.feed(stream[at : at + 1])]
        assert found == sent

    def test_a_fun_comes_back_as_it_went(self, recorded: list[Line]) -> None:
        """It is not looked into."""
        (call,) = controls(recorded, "erpc:call of a fun")
        _, module, function, (fun, args) = call.payload
        assert (module, function, args) == (Atom("erlang"), Atom("apply"), [])
        assert isinstance(fun, Fun)
        assert encode(fun, version=False) in encode(call.payload)

    def test_tags_of_calls(self, recorded: list[Line]) -> None:
        """gen_server:call asks by alias; 28 has five words in it, and aliases in multi_call."""
        release28 = any(
            len(c.fields[2].ids) == 5 for c in controls(recorded, "gen_server:call", Op.MONITOR_P)
        )
        (send,) = controls(recorded, "gen_server:call", Op.REG_SEND)
        call = parse_call(send.payload)
        assert call is not None
        alias = alias_of(call[1])
        assert alias is not None
        (multi,) = controls(recorded, "gen_server:multi_call", Op.REG_SEND)
        call = parse_call(multi.payload)
        assert call is not None
        if release28:
            assert isinstance(call[1], ImproperList)
            assert alias_of(call[1]) is not None
        else:
            assert isinstance(call[1], tuple)
            assert alias_of(call[1]) is None

    def test_trace_tokens_are_left_out(self, recorded: list[Line]) -> None:
        """The message is what it would be without."""
        (traced, *_) = controls(recorded, "a traced message", Op.SEND_SENDER)
        assert traced.payload is Atom("traced")
        assert len(traced.fields) == 2


def controls(recorded: list[Line], scenario: str, op: Op | None = None) -> list[Control]:
    """The real side's messages in one scenario."""
    found = [parse_frame(b) for s, b in bodies(recorded, theirs=True) if s == scenario]
    return [control for control in found if op in (None, control.op)]


@pytest.mark.parametrize("name", ["epmd25", "epmd28"])
def test_a_real_epmd(name: str) -> None:
    """Its answers to everything we ask."""
    answers = {line.scenario: line.data for line in load(name)}
    alive = alive_reply(answers["alive"])
    assert alive is not None
    assert alive.accepted
    taken = alive_reply(answers["taken"])
    assert taken is not None
    assert not taken.accepted
    assert port_reply(answers["port"]) == Registration("wire", 4711, HIDDEN, extra=b"x")
    assert port_reply(answers["no port"]) is None
    assert names_reply(answers["names"]) == [("wire", 4711)]
