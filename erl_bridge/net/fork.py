"""Sockets do not outlive the node in children the user's code forks.

A forked child has copies of every socket.  A peer, and epmd above all, sees a connection
end only when the last copy is closed: a notebook's worker pool would keep a dead node
registered.  So the child's copies are replaced by the null device.  The numbers stay
taken, because objects in the child still believe in them and would otherwise close
somebody else's file.
"""

from __future__ import annotations

import os

from anyio import TypedAttributeProvider
from anyio.abc import SocketAttribute

__all__ = ("descriptor_of", "hold", "release")

_held: set[int] = set()


def descriptor_of(stream: TypedAttributeProvider) -> int:
    """Return the file descriptor behind a stream or listener."""
    raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610  # not Django's
    return raw.fileno()


def hold(descriptor: int) -> int:
    """Take a socket away from children forked from now on; returns the descriptor."""
    _held.add(descriptor)
    return descriptor


def release(descriptor: int) -> None:
    """Stop doing that.  Call it before the socket is closed: its number may be reused."""
    _held.discard(descriptor)


def _in_child() -> None:
    if not _held:
        return
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in _held:
        os.dup2(null, descriptor)
    os.close(null)
    _held.clear()


os.register_at_fork(after_in_child=_in_child)
