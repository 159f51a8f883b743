"""Frames: what follows the handshake on the same connection.

::

    length:32  112  131 control-term  [131 message-term]
    0:32                                                   a tick

Goals: no copy of a frame beyond the one out of the receive buffer, no cost that grows
with the square of a frame's pieces, and no memory for a frame that will not be taken.
So a chunk that holds whole frames is cut without touching the buffer, a partial frame
is collected in one growing buffer, and a length over the limit is an error as soon as
its four bytes are there, before the peer can send the rest.

The limit is needed because nothing else bounds a message: without FRAGMENTS (see
:mod:`erl_bridge.proto.flags`) a term of 100 MB arrives as one frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from erl_bridge.proto.errors import RemoteProtocolError

__all__ = ("MAX_FRAME", "PASS_THROUGH", "TICK", "FrameDecoder", "frame")

#: Default limit of one frame, in bytes: a prompt of 30 million tokens, a large KV row.
MAX_FRAME: Final = 128 * 1024 * 1024

#: First byte of a frame that uses neither the atom cache nor fragments.
PASS_THROUGH: Final = 112

#: A frame of length zero: "still here".
TICK: Final = b"\0\0\0\0"

_LENGTH: Final = struct.Struct(">I")


def frame(control: bytes, payload: bytes = b"") -> bytes:
    """Return one frame for encoded terms, each with its version byte."""
    return b"".join(
        (_LENGTH.pack(1 + len(control) + len(payload)), b"p", control, payload),
    )


class FrameDecoder:
    """Cuts a byte stream into frames.

    :param max_frame: longest frame taken, in bytes.
    """

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self.max_frame = max_frame
        self.ticks = 0
        """How many ticks were seen."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes and yield the body of each complete frame, after the byte 112.

        The iterator must be used up before the next call.

        :raises RemoteProtocolError: a frame is too long or of another kind.  The stream
            has lost its place then: close.
        """
        buffer = self._buffer
        source: bytes | bytearray = data
        if buffer:
            buffer += data
            source = buffer
        offset = 0
        end = len(source)
        while end - offset >= 4:
            (size,) = _LENGTH.unpack_from(source, offset)
            self._check(size)
            start = offset + 4
            if end - start < size:
                break
            offset = start + size
            if size == 0:
                self.ticks += 1
                continue
            self._check_kind(source[start])
            if source is data:
                yield data[start + 1 : offset]
            else:  # a slice would be a copy that has to be copied again
                with memoryview(source) as view:
                    body = bytes(view[start + 1 : offset])
                yield body
        if source is buffer:
            del buffer[:offset]
        elif offset < end:
            buffer += data[offset:] if offset else data

    def _check(self, size: int) -> None:
        if size > self.max_frame:
            raise RemoteProtocolError(
                f"a frame of {size} bytes; the limit is {self.max_frame} (max_frame)"
            )

    def _check_kind(self, kind: int) -> None:
        if kind != PASS_THROUGH:
            raise RemoteProtocolError(f"a frame of kind {kind}, which was not negotiated")
