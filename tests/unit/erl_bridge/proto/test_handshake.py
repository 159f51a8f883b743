"""Both sides of the handshake against each other, then against damage."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erl_bridge.proto import HandshakeRefused, LocalProtocolError, RemoteProtocolError
from erl_bridge.proto.flags import MANDATORY, Flag
from erl_bridge.proto.handshake import (
    MAX_MESSAGE,
    TRANSITIONS,
    Completed,
    Handshake,
    PeerNamed,
    State,
    Status,
    digest,
)
from tests.unit.erl_bridge.proto.pair import HIDDEN, Pair, local

whole_and_bytewise = pytest.mark.parametrize(
    "chunk", [None, 1, 3], ids=["whole", "bytes", "threes"]
)


@whole_and_bytewise
class TestTwoSides:
    def test_both_learn_who_the_other_is(self, chunk: int | None) -> None:
        a = local("a@h", creation=11)
        b = local("b@h", creation=22, flags=HIDDEN | Flag.PUBLISHED)
        pair = Pair(a, b, chunk=chunk).run()
        assert pair.errors == {}
        at_b, at_a = pair.completed("b").peer, pair.completed("a").peer
        assert (at_b.name, at_b.creation, at_b.hidden) == ("a@h", 11, True)
        assert (at_a.name, at_a.creation, at_a.hidden) == ("b@h", 22, False)
        assert at_a.flags == b.flags

    def test_ok_simultaneous_goes_on(self, chunk: int | None) -> None:
        pair = Pair(local("a@h"), local("b@h"), answer=Status.OK_SIMULTANEOUS, chunk=chunk).run()
        assert pair.completed("a")
        assert pair.completed("b")

    @pytest.mark.parametrize("status", [Status.NOK, Status.NOT_ALLOWED])
    def test_a_refusal_reaches_both(self, status: Status, chunk: int | None) -> None:
        pair = Pair(local("a@h"), local("b@h"), answer=status, chunk=chunk).run()
        assert {type(error) for error in pair.errors.values()} == {HandshakeRefused}
        assert {error.status for error in pair.errors.values()} == {status.value}  # type: ignore[attr-defined]
        assert {side.state for side in pair.sides.values()} == {State.FAILED}

    def test_alive_and_replaced(self, chunk: int | None) -> None:
        pair = Pair(local("a@h"), local("b@h"), answer=Status.ALIVE, chunk=chunk).run()
        assert pair.completed("a")
        assert pair.completed("b")

    def test_alive_and_kept(self, chunk: int | None) -> None:
        pair = Pair(
            local("a@h"),
            local("b@h"),
            answer=Status.ALIVE,
            still_alive=Status.NOK,
            chunk=chunk,
        ).run()
        assert set(pair.errors) == {"a", "b"}
        assert all("older connection" in str(error) for error in pair.errors.values())

    def test_a_wrong_cookie_is_not_answered(self, chunk: int | None) -> None:
        pair = Pair(local("a@h"), local("b@h", cookie=b"other"), chunk=chunk).run()
        assert isinstance(pair.errors["b"], HandshakeRefused)
        assert pair.errors["b"].status == "cookie"
        assert not pair.sent["b"].endswith(digest(b"other", 0))
        assert pair.sides["a"].state is State.AWAIT_ACK

    def test_a_missing_flag_is_named(self, chunk: int | None) -> None:
        flags = HIDDEN & ~Flag.UNLINK_ID
        pair = Pair(local("a@h", flags=flags), local("b@h"), chunk=chunk).run()
        assert "UNLINK_ID" in str(pair.errors["b"])
        assert isinstance(pair.errors["a"], HandshakeRefused)
        assert pair.errors["a"].status == "not_allowed"

    def test_a_flag_the_accepting_side_lacks_is_named(self, chunk: int | None) -> None:
        pair = Pair(local("a@h"), local("b@h", flags=HIDDEN & ~Flag.V4_NC), chunk=chunk).run()
        assert "V4_NC" in str(pair.errors["a"])

    def test_a_nameless_node_gets_a_name(self, chunk: int | None) -> None:
        a = local("h@h", flags=HIDDEN | Flag.NAME_ME)
        pair = Pair(a, local("b@h"), chunk=chunk)
        # Our connecting side never asks for a name; the real one sends its host only.
        data = _name(b"N", a.flags, 0, b"h")
        pair.sides["a"].data_to_send()
        pair.feed("b", data)
        assert pair.errors == {}
        sent = pair.sides["b"].data_to_send()
        status, challenge = _messages(sent)
        assert status == b"snamed:" + struct.pack(">H", 7) + b"given@h" + struct.pack(">I", 99)
        # The peer sees the name accepted by finding its own flag in our challenge.
        assert struct.unpack_from(">Q", challenge, 1)[0] & Flag.NAME_ME

    def test_another_name_than_dialled(self, chunk: int | None) -> None:
        pair = Pair(local("a@h"), local("b@h"), dial="c@h", chunk=chunk).run()
        assert "dialled 'c@h'" in str(pair.errors["a"])


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("b@h", "nok"),  # ours
        ("a@h.example", "not_allowed"),  # long to short
        ("a", "not_allowed"),
        ("@h", "not_allowed"),
        ("a b@h", "not_allowed"),
        ("a@h@h", "not_allowed"),
        ("a@h\n", "not_allowed"),
    ],
)
def test_names_that_are_refused(name: str, status: str) -> None:
    """The peer is told, and the owner is not asked."""
    side = Handshake.accept(local("b@h"))
    with pytest.raises(HandshakeRefused) as caught:
        side.receive(_name(b"N", HIDDEN, 1, name.encode()))
    assert caught.value.status == status
    assert _messages(side.data_to_send()) == [b"s" + status.encode()]


def test_leftover_bytes_belong_to_the_frames() -> None:
    """A peer may send its first frame right behind the digest."""
    pair = Pair(local("a@h"), local("b@h")).run()
    again = Handshake.accept(local("b@h"))
    again._challenge = pair.sides["b"]._challenge
    (event,) = again.receive(pair.sent["a"][: -2 - 21])
    assert isinstance(event, PeerNamed)
    again.decide(Status.OK)
    (done,) = again.receive(pair.sent["a"][-2 - 21 :] + b"\0\0\0\0p")
    assert isinstance(done, Completed)
    assert done.leftover == b"\0\0\0\0p"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(struct.pack(">H", 0), id="empty message"),
        pytest.param(struct.pack(">H", MAX_MESSAGE + 1), id="too long"),
        pytest.param(struct.pack(">H", 3) + b"GET", id="something else"),
        pytest.param(struct.pack(">H", 6) + b"n\0\5abc", id="old handshake"),
        pytest.param(struct.pack(">H", 15) + b"N" + bytes(12) + b"\0\5", id="name cut off"),
        pytest.param(struct.pack(">H", 16) + b"N" + bytes(12) + b"\0\1\xff", id="not UTF-8"),
    ],
)
def test_broken_names(data: bytes) -> None:
    """Malformed first messages are protocol errors."""
    with pytest.raises(RemoteProtocolError):
        Handshake.accept(local("b@h")).receive(data)


def test_a_length_over_the_limit_is_not_waited_for() -> None:
    """Two bytes are enough to know that a stranger wants too much."""
    with pytest.raises(RemoteProtocolError, match="65535 bytes"):
        Handshake.accept(local("b@h")).receive(b"\xff\xff")


@pytest.mark.parametrize(
    ("ours", "theirs"), [("a@h", "b@h.x"), ("a@h.x", "b@h"), ("a@h", "a@h"), ("a@h", "b")]
)
def test_names_we_do_not_dial(ours: str, theirs: str) -> None:
    """Refused before a byte is sent."""
    with pytest.raises(LocalProtocolError):
        Handshake.connect(local(ours), theirs)


def test_decisions_at_the_wrong_time() -> None:
    """Our own mistakes are ours."""
    side = Handshake.accept(local("b@h"))
    with pytest.raises(LocalProtocolError):
        side.decide(Status.OK)
    with pytest.raises(LocalProtocolError):
        side.give_name("x@h", 1)
    pair = Pair(local("a@h"), local("b@h")).run()
    with pytest.raises(LocalProtocolError):
        pair.sides["a"].receive(b"")


def test_the_cookie_is_not_in_the_repr() -> None:
    """It would end up in logs."""
    assert "secret" not in repr(local("a@h"))


def test_the_digest_is_the_documented_one() -> None:
    """MD5 of the cookie and the challenge in decimal; value from erlang:md5("secret4711")."""
    assert digest(b"secret", 4711).hex() == "491bcf9562d9ebd2b5d0d41170a3de7e"


class TestTable:
    def test_every_state_but_the_last_two_can_be_left(self) -> None:
        assert {state for state, _ in TRANSITIONS} == set(State) - {State.DONE, State.FAILED}

    def test_every_state_is_reached(self) -> None:
        starts = {State.AWAIT_NAME, State.AWAIT_STATUS}
        assert set(TRANSITIONS.values()) | starts == set(State)

    def test_nothing_is_done_without_a_digest(self) -> None:
        before = {state for (state, _), after in TRANSITIONS.items() if after is State.DONE}
        assert before == {State.AWAIT_ACK, State.AWAIT_REPLY}


@given(st.data())
def test_any_bytes_are_parsed_or_refused(data: st.DataObject) -> None:
    """Parse it or raise RemoteProtocolError, never anything else; and never let it in."""
    pair = Pair(local("a@h"), local("b@h"))
    genuine = Pair(local("a@h"), local("b@h")).run().sent[data.draw(st.sampled_from("ab"))]
    damaged = bytearray(genuine)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        damaged += b"\0"
    pair.chunk = data.draw(st.sampled_from([None, 1, 7]))
    side = data.draw(st.sampled_from("ab"))
    pair.feed(side, bytes(damaged))
    # Without our challenge nobody has the digest for it.
    assert pair.sides[side].state is not State.DONE


@given(st.binary(max_size=64), st.sampled_from("ab"))
def test_noise_is_parsed_or_refused(noise: bytes, side: str) -> None:
    """The same for bytes that never were a handshake."""
    pair = Pair(local("a@h"), local("b@h"), chunk=1)
    pair.feed(side, struct.pack(">H", len(noise)) + noise)
    assert pair.sides[side].state is not State.DONE


def test_mandatory_flags_are_offered() -> None:
    """We would refuse ourselves otherwise."""
    assert HIDDEN & MANDATORY == MANDATORY


def _name(tag: bytes, flags: int, creation: int, name: bytes) -> bytes:
    body = tag + struct.pack(">QIH", flags, creation, len(name)) + name
    return struct.pack(">H", len(body)) + body


def _messages(data: bytes) -> list[bytes]:
    found = []
    while data:
        (size,) = struct.unpack_from(">H", data)
        found.append(data[2 : 2 + size])
        data = data[2 + size :]
    return found
