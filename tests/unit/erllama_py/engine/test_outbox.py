"""Frames leave in the order in which they were put, alone or together."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from erllama_py._engine.channel import Channel, Outbox
from erllama_py._engine.frames import Closed, Frame, Phase, Token
from erllama_py._engine.framing import encode_frame


@pytest.fixture
def ends() -> Iterator[tuple[Outbox, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    channel = Channel(ours)
    outbox = Outbox(channel)
    yield outbox, theirs
    outbox.close()
    channel.close()
    theirs.close()


def said(sock: socket.socket, frames: list[Frame]) -> bool:
    """Whether these frames are what comes next."""
    wanted = b"".join(map(encode_frame, frames))
    got = b""
    while len(got) < len(wanted):
        got += sock.recv(len(wanted) - len(got))
    return got == wanted


def nothing(sock: socket.socket) -> bool:
    """Whether nothing was sent so far."""
    with pytest.raises(BlockingIOError):
        sock.recv(1, socket.MSG_DONTWAIT)
    return True


def test_a_frame_is_there_when_put_returns(ends: tuple[Outbox, socket.socket]) -> None:
    outbox, peer = ends
    outbox.put(Phase("idle"))
    frame = encode_frame(Phase("idle"))
    assert peer.recv(1 << 16, socket.MSG_DONTWAIT) == frame


def test_frames_put_together_leave_at_the_end_with_one_write() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps writes apart
    channel = Channel(ours)
    outbox = Outbox(channel)
    tokens: list[Frame] = [Token(number, b"x", number) for number in range(8)]
    with outbox.together():
        for token in tokens:
            outbox.put(token)
        assert nothing(theirs)
    assert theirs.recv(1 << 16, socket.MSG_DONTWAIT) == b"".join(map(encode_frame, tokens))
    assert nothing(theirs)
    outbox.close()
    channel.close()
    theirs.close()


def test_what_was_put_before_a_deferred_frame_is_sent_before_it(
    ends: tuple[Outbox, socket.socket],
) -> None:
    outbox, peer = ends
    token, phase, closed = Token(1, b"x", 2), Phase("generating"), Closed(1, 0, 0)
    with outbox.together():
        outbox.put(token)
        outbox.defer(lambda: phase)
        outbox.put(closed)
    assert said(peer, [token, phase, closed])


def test_after_a_failure_inside_frames_go_on(ends: tuple[Outbox, socket.socket]) -> None:
    outbox, peer = ends
    with contextlib.suppress(ZeroDivisionError), outbox.together():
        outbox.put(Phase("idle"))
        raise ZeroDivisionError
    outbox.put(Phase("generating"))
    assert said(peer, [Phase("idle"), Phase("generating")])


def test_a_peer_that_is_gone_stops_nobody(ends: tuple[Outbox, socket.socket]) -> None:
    outbox, peer = ends
    peer.close()
    with outbox.together():
        outbox.put(Phase("idle"))
        outbox.put(Phase("generating"))
    outbox.put(Phase("idle"))
