"""What the wire layer raises, split by whose fault it is."""

from __future__ import annotations

from typing import Any, Self

__all__ = ("HandshakeRefused", "LocalProtocolError", "ProtocolError", "RemoteProtocolError")


class ProtocolError(Exception):
    """Root of the wire errors.  Only its two sides are raised, never itself."""

    def __new__(cls, *args: Any) -> Self:
        """Refuse to make the root: an error without a side cannot be acted on."""
        if cls is ProtocolError:
            raise TypeError("raise LocalProtocolError or RemoteProtocolError, not ProtocolError")
        return super().__new__(cls, *args)


class LocalProtocolError(ProtocolError):
    """Our own code asked for something the protocol does not allow at this point."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow; its connection has to be closed."""


class HandshakeRefused(RemoteProtocolError):
    """One side declined the connection in the way the protocol provides for.

    :param status: the status word that was sent or received, ``"cookie"`` for a digest
        that does not match, ``"flags"`` for a capability one side misses.
    """

    def __init__(self, status: str, message: str) -> None:
        self.status = status
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, self.args[0])
