"""Frames, however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erl_bridge.proto import RemoteProtocolError
from erl_bridge.proto.frames import TICK, FrameDecoder, frame

bodies = st.lists(st.one_of(st.none(), st.binary(max_size=40)), max_size=12)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut ``data`` into pieces of these sizes, then the rest."""
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def feed_all(decoder: FrameDecoder, pieces: list[bytes]) -> list[bytes]:
    """Feed pieces one after the other."""
    return [body for piece in pieces for body in decoder.feed(piece)]


@given(bodies, st.lists(st.integers(1, 50), max_size=20))
def test_frames_come_out_as_they_went_in(sent: list[bytes | None], sizes: list[int]) -> None:
    """None stands for a tick."""
    data = b"".join(TICK if body is None else frame(body) for body in sent)
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))], cut(data, sizes)):
        decoder = FrameDecoder()
        assert feed_all(decoder, pieces) == [body for body in sent if body is not None]
        assert decoder.ticks == sent.count(None)


def test_control_and_payload_are_one_body() -> None:
    """The decoder does not look inside."""
    (body,) = FrameDecoder().feed(frame(b"control", b"payload"))
    assert body == b"controlpayload"


def test_a_long_frame_is_refused_before_it_comes() -> None:
    """Its four bytes are enough, in a chunk of their own too."""
    for pieces in ([b"\x08\0\0\1"], [b"\x08", b"\0\0\1"]):
        decoder = FrameDecoder()
        with pytest.raises(RemoteProtocolError, match="max_frame"):
            feed_all(decoder, pieces)


def test_the_limit_is_the_longest_frame_taken() -> None:
    """Length 112-byte included, as on the wire."""
    assert list(FrameDecoder(10).feed(frame(b"x" * 9))) == [b"x" * 9]
    with pytest.raises(RemoteProtocolError):
        list(FrameDecoder(10).feed(frame(b"x" * 10)))


@pytest.mark.parametrize("kind", [131, 68, 0])
def test_other_kinds_of_frame(kind: int) -> None:
    """Whole and split: distribution headers were not negotiated."""
    data = b"\0\0\0\2" + bytes((kind, 0))
    for pieces in ([data], [data[:5], data[5:]]):
        decoder = FrameDecoder()
        with pytest.raises(RemoteProtocolError, match="not negotiated"):
            feed_all(decoder, pieces)


def test_frames_before_a_bad_one_are_delivered() -> None:
    """What the peer said before it broke the protocol was said."""
    found: list[bytes] = []
    with pytest.raises(RemoteProtocolError):
        found.extend(FrameDecoder().feed(frame(b"a") + frame(b"b") + b"\0\0\0\1x"))
    assert found == [b"a", b"b"]
