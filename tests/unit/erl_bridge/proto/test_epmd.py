"""The port mapper's two ends against each other."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erl_bridge.proto import RemoteProtocolError
from erl_bridge.proto.epmd import (
    VISIBLE,
    EpmdDirectory,
    EpmdSession,
    Registration,
    alive_reply,
    alive_request,
    names_reply,
    names_request,
    port_reply,
    port_request,
)

NODE = Registration("a", 4711, VISIBLE, extra=b"xyz")

entries = st.builds(
    Registration,
    name=st.text("abcäß_-1", min_size=1, max_size=20),
    port=st.integers(0, 0xFFFF),
    node_type=st.integers(0, 255),
    protocol=st.integers(0, 255),
    highest=st.integers(6, 0xFFFF),
    lowest=st.integers(0, 0xFFFF),
    extra=st.binary(max_size=10),
)


def ask(directory: EpmdDirectory, request: bytes, chunk: int | None = None) -> bytes:
    """Send a request in a session of its own and return the answer."""
    session = EpmdSession(directory)
    step = chunk or len(request)
    answer = b"".join(
        session.receive(request[at : at + step]) for at in range(0, len(request), step)
    )
    assert session.closed
    session.end()
    return answer


def register(directory: EpmdDirectory, entry: Registration) -> EpmdSession:
    """Open a session that holds a registration."""
    session = EpmdSession(directory)
    reply = alive_reply(session.receive(alive_request(entry)))
    assert reply is not None
    assert reply.accepted
    return session


@given(entries, st.sampled_from([None, 1, 5]))
def test_what_is_registered_is_found(entry: Registration, chunk: int | None) -> None:
    """Every field comes back, however the bytes were cut."""
    directory = EpmdDirectory()
    session = register(directory, entry)
    assert port_reply(ask(directory, port_request(entry.name), chunk)) == entry
    assert names_reply(ask(directory, names_request(), chunk)) == [(entry.name, entry.port)]
    session.end()
    assert port_reply(ask(directory, port_request(entry.name))) is None


class TestRegistration:
    def test_a_name_is_taken_until_its_connection_ends(self) -> None:
        directory = EpmdDirectory()
        first = register(directory, NODE)
        second = EpmdSession(directory)
        reply = alive_reply(second.receive(alive_request(NODE)))
        assert reply is not None
        assert not reply.accepted
        assert second.closed
        second.end()
        assert "a" in directory.nodes, "the loser's end must not take the winner's entry"
        first.end()
        register(directory, NODE)

    def test_each_life_has_a_creation_of_its_own(self) -> None:
        directory = EpmdDirectory()
        seen = set()
        for _ in range(100):
            session = EpmdSession(directory)
            reply = alive_reply(session.receive(alive_request(NODE)))
            assert reply is not None
            seen.add(reply.creation)
            session.end()
        assert len(seen) == 100
        assert min(seen) >= 4

    def test_an_older_node_gets_the_older_answer(self) -> None:
        session = EpmdSession(EpmdDirectory())
        answer = session.receive(alive_request(Registration("old", 1, highest=5, lowest=5)))
        assert answer[0] == 121
        reply = alive_reply(answer)
        assert reply is not None
        assert reply.creation in (1, 2, 3)

    def test_what_follows_a_registration_is_ignored(self) -> None:
        session = register(EpmdDirectory(), NODE)
        assert session.receive(names_request()) == b""
        assert not session.closed

    def test_the_table_has_an_end(self) -> None:
        directory = EpmdDirectory(max_nodes=2)
        register(directory, Registration("a", 1))
        register(directory, Registration("b", 1))
        reply = alive_reply(EpmdSession(directory).receive(alive_request(Registration("c", 1))))
        assert reply is not None
        assert not reply.accepted


def test_dump_is_answered() -> None:
    """With the port first, as ``epmd -names`` expects."""
    directory = EpmdDirectory(port=5000)
    register(directory, NODE)
    answer = ask(directory, struct.pack(">HB", 1, 100))
    assert answer.startswith(struct.pack(">I", 5000) + b"active name     <a> at port 4711")


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(struct.pack(">H", 0), id="empty"),
        pytest.param(struct.pack(">HB", 1, 107), id="kill"),
        pytest.param(struct.pack(">HB", 2, 115) + b"a", id="stop"),
        pytest.param(struct.pack(">HB", 1, 1), id="unknown"),
        pytest.param(struct.pack(">HB", 3, 120) + b"\0\1", id="cut off"),
        pytest.param(alive_request(NODE)[:-1] + b"", id="short"),
        pytest.param(alive_request(Registration("a\nname b", 1)), id="forged line"),
        pytest.param(alive_request(Registration("", 1)), id="no name"),
    ],
)
def test_requests_that_close(request_: bytes) -> None:
    """Nobody can end epmd or forge its list, and nonsense is closed."""
    directory = EpmdDirectory()
    size = len(request_) - 2
    with pytest.raises(RemoteProtocolError):
        EpmdSession(directory).receive(struct.pack(">H", size) + request_[2:])
    assert directory.nodes == {}


@given(st.binary(max_size=80))
def test_noise_is_answered_or_refused(noise: bytes) -> None:
    """Parse it or raise RemoteProtocolError, never anything else."""
    session = EpmdSession(EpmdDirectory())
    with suppress(RemoteProtocolError):
        session.receive(noise)
        session.receive(struct.pack(">H", len(noise) or 1) + (noise or b"n"))
    for parse in (alive_reply, port_reply, names_reply):
        with suppress(RemoteProtocolError):
            parse(noise)


def test_replies_in_pieces() -> None:
    """The answer to a registration says itself when it is whole."""
    answer = struct.pack(">BBI", 118, 0, 9)
    assert [alive_reply(answer[:n]) for n in range(6)] == [None] * 6
    assert alive_reply(answer) is not None
    with pytest.raises(RemoteProtocolError):
        port_reply(b"")
    with pytest.raises(RemoteProtocolError):
        names_reply(b"\0\0")
