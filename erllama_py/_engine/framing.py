"""Frames as bytes: each is a big-endian length of four bytes, and a MessagePack array.

The array begins with the name of the frame's class; the fields follow in their order.  A
descriptor travels beside its frame, not in it (``channel``).
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from erllama_py._engine.frames import AnyFrame, Frame, Packed, SavedWhole, Segment, Trace

__all__ = ("BadFrame", "carries_descriptor", "encode_frame", "take_frame")

MAX_FRAME: Final = 256 << 20
"""A prompt of a million tokens is 4 MB; anything near this is a broken peer."""

_LENGTH: Final = struct.Struct(">I")
_WITH_DESCRIPTOR: Final = (Segment, SavedWhole, Packed, Trace)

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(AnyFrame)


class BadFrame(Exception):
    """What came is no frame; nothing behind it can be read."""


def carries_descriptor(frame: Frame) -> bool:
    """Whether a descriptor travels beside this frame."""
    return isinstance(frame, _WITH_DESCRIPTOR)


def encode_frame(frame: Frame) -> bytes:
    """Return a frame as bytes."""
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


def take_frame(buffer: bytearray) -> AnyFrame | None:
    """Take the first frame out of what was read; ``None`` while it is not whole.

    :raises BadFrame: it is too long, or none of ours.
    """
    if len(buffer) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(buffer)
    if length > MAX_FRAME:
        raise BadFrame(f"a frame of {length} bytes")
    end = _LENGTH.size + length
    if len(buffer) < end:
        return None
    body = bytes(memoryview(buffer)[_LENGTH.size : end])
    del buffer[:end]
    try:
        frame: AnyFrame = _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise BadFrame(str(error)) from error
    return frame
