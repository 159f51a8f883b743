"""Frames as bytes: whole ones are taken, parts wait, and what is no frame ends the reading."""

from __future__ import annotations

import msgspec
import pytest

from erllama_py._engine.frames import Closed, Frame, Phase, Segment, Token
from erllama_py._engine.framing import (
    MAX_FRAME,
    BadFrame,
    carries_descriptor,
    encode_frame,
    take_frame,
)


def framed(body: object) -> bytearray:
    data = msgspec.msgpack.encode(body)
    return bytearray(len(data).to_bytes(4, "big") + data)


def test_the_class_is_named_first() -> None:
    assert encode_frame(Phase("idle")) == bytes(framed(["Phase", "idle"]))


def test_frames_are_taken_in_order_as_soon_as_they_are_whole() -> None:
    sent: list[Frame] = [Token(7, b"x", 1), Segment(2, 4096, file=True), Closed(7)]
    buffer, got = bytearray(), []
    for byte in b"".join(map(encode_frame, sent)):
        buffer.append(byte)
        if (frame := take_frame(buffer)) is not None:
            assert not buffer
            got.append(frame)
    assert got == sent


def test_what_follows_a_frame_stays() -> None:
    buffer = bytearray(encode_frame(Phase("idle")) + b"\0\0")
    assert take_frame(buffer) == Phase("idle")
    assert take_frame(buffer) is None
    assert buffer == b"\0\0"


@pytest.mark.parametrize(
    "buffer",
    [
        bytearray((MAX_FRAME + 1).to_bytes(4, "big")),
        framed(["Unheard", 1]),
        framed(["Phase", 3]),
        framed(["Phase"]),
        bytearray(b"\0\0\0\1\xc1"),
    ],
    ids=["too long", "no such class", "another type", "a field is missing", "no MessagePack"],
)
def test_what_is_no_frame_is_refused(buffer: bytearray) -> None:
    with pytest.raises(BadFrame):
        take_frame(buffer)


def test_few_frames_come_with_a_descriptor() -> None:
    assert carries_descriptor(Segment(1, 64))
    assert not carries_descriptor(Phase("idle"))
