"""Bounds of the network half of a node: what one peer may cost and how long it may stall."""

from __future__ import annotations

from dataclasses import dataclass

from erl_bridge.proto.frames import MAX_FRAME

__all__ = ("NetLimits",)


@dataclass(frozen=True, slots=True)
class NetLimits:
    """Sizes in bytes, times in seconds."""

    max_connections: int = 256
    """Connected peers.  A real node's default is 1024 file descriptors for everything."""

    max_handshakes: int = 64
    """Connections that have not shown the cookie yet; a stranger can open no more."""

    max_frame: int = MAX_FRAME
    """One frame, and so one message."""

    handshake_timeout: float = 7.0
    """From the TCP connection to the last digest; what real nodes use (net_setuptime)."""

    net_ticktime: float = 60.0
    """A peer silent for so long is gone.  Ticks go out every quarter of it."""

    write_high: int = 1024 * 1024
    """Unsent bytes at which senders that can wait do wait (the emulator's dist_buf_busy_limit)."""

    write_limit: int = 256 * 1024 * 1024
    """Unsent bytes at which a peer that does not read is dropped: twice the largest frame."""
