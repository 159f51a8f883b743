"""The distribution protocol without I/O: bytes in, events out.

========================================  ==========================================
:mod:`~erl_bridge.proto.epmd`             the port mapper, client and server
:mod:`~erl_bridge.proto.handshake`        version 6, both roles
:mod:`~erl_bridge.proto.frames`           length-prefixed frames and ticks
:mod:`~erl_bridge.proto.control`          control messages
:mod:`~erl_bridge.proto.flags`            what nodes say they understand
:mod:`~erl_bridge.proto.names`            node names
========================================  ==========================================
"""

from __future__ import annotations

from erl_bridge.proto.errors import (
    HandshakeRefused,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
)

__all__ = ("HandshakeRefused", "LocalProtocolError", "ProtocolError", "RemoteProtocolError")
