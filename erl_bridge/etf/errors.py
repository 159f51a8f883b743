"""What the codec raises: one root, and two sides that are never mixed up."""

from __future__ import annotations

__all__ = ("DecodeError", "EncodeError", "EtfError")


class EtfError(Exception):
    """Root of the codec's exceptions; only its two sides are ever raised."""


class DecodeError(EtfError):
    """The bytes are cut off, malformed, beyond a limit, or not ours to read: the peer's fault.

    :param what: what is wrong, in words.
    :param offset: byte offset into the buffer the caller handed in (for compressed terms:
        into the inflated bytes), at or shortly after the start of the offending item.
    """

    def __init__(self, what: str, offset: int) -> None:
        self.what = what
        self.offset = offset
        super().__init__(f"{what} (at byte {offset})")

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, int]]:
        return type(self), (self.what, self.offset)


class EncodeError(EtfError):
    """The value has no external form, or one no Erlang node accepts: our caller's fault."""
