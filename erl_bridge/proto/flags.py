"""Capability flags: what a node says in its handshake that it understands.

A node may send only what the other side's flags allow, so a flag left out of
:data:`OFFERED` removes a whole feature from the wire.  Two are left out on purpose:

``DIST_HDR_ATOM_CACHE``
    Once negotiated, every frame must start with a distribution header and keep an atom
    cache in step on both sides; a plain frame kills the connection.  Without it frames are
    ``112, term, term`` and carry no state.
``FRAGMENTS``
    Needs the distribution header.  Without it every message is one frame, however large,
    which is why :mod:`erl_bridge.proto.frames` has a limit.

``SPAWN`` is in no mandatory set and yet vital: ``rpc`` and ``erpc`` of OTP 25 and later
fail with ``notsup`` against a node that does not offer it.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final

__all__ = ("MANDATORY", "OFFERED", "Flag", "missing", "offered")


class Flag(IntFlag):
    """One bit each, named as in the emulator's documentation."""

    PUBLISHED = 0x1
    """The node is visible: it shows in ``nodes()`` and takes part in ``global``."""
    ATOM_CACHE = 0x2
    EXTENDED_REFERENCES = 0x4
    DIST_MONITOR = 0x8
    FUN_TAGS = 0x10
    DIST_MONITOR_NAME = 0x20
    HIDDEN_ATOM_CACHE = 0x40
    NEW_FUN_TAGS = 0x80
    EXTENDED_PIDS_PORTS = 0x100
    EXPORT_PTR_TAG = 0x200
    BIT_BINARIES = 0x400
    NEW_FLOATS = 0x800
    UNICODE_IO = 0x1000
    DIST_HDR_ATOM_CACHE = 0x2000
    SMALL_ATOM_TAGS = 0x4000
    UTF8_ATOMS = 0x10000
    MAP_TAG = 0x20000
    BIG_CREATION = 0x40000
    SEND_SENDER = 0x80000
    BIG_SEQTRACE_LABELS = 0x100000
    EXIT_PAYLOAD = 0x400000
    FRAGMENTS = 0x800000
    HANDSHAKE_23 = 0x1000000
    UNLINK_ID = 0x2000000
    MANDATORY_25_DIGEST = 0x4000000
    """Stands for everything OTP 25 made mandatory, so that the list can stay short."""
    SPAWN = 1 << 32
    NAME_ME = 1 << 33
    """The connecting side has no name and asks the accepting side for one."""
    V4_NC = 1 << 34
    ALIAS = 1 << 35
    LOCAL_EXT = 1 << 36
    ALTACT_SIG = 1 << 37


#: Every one of these dropped alone makes ping fail (OTP 25, and 28 for the last two).
MANDATORY: Final = (
    Flag.EXTENDED_REFERENCES
    | Flag.FUN_TAGS
    | Flag.NEW_FUN_TAGS
    | Flag.EXTENDED_PIDS_PORTS
    | Flag.EXPORT_PTR_TAG
    | Flag.BIT_BINARIES
    | Flag.NEW_FLOATS
    | Flag.UTF8_ATOMS
    | Flag.MAP_TAG
    | Flag.BIG_CREATION
    | Flag.HANDSHAKE_23
    | Flag.UNLINK_ID
    | Flag.V4_NC
)

#: What the digest flag stands for; a peer that sends it may leave these out.
_DIGEST: Final = MANDATORY & ~(Flag.UNLINK_ID | Flag.V4_NC)

#: What a hidden node of ours offers.
OFFERED: Final = (
    MANDATORY
    | Flag.DIST_MONITOR
    | Flag.DIST_MONITOR_NAME
    | Flag.UNICODE_IO
    | Flag.SEND_SENDER
    | Flag.EXIT_PAYLOAD
    | Flag.MANDATORY_25_DIGEST
    | Flag.SPAWN
    | Flag.ALIAS
)


def offered(*, hidden: bool) -> Flag:
    """Return the flags we send in a handshake."""
    return OFFERED if hidden else OFFERED | Flag.PUBLISHED


def missing(theirs: int) -> Flag:
    """Return the mandatory flags that a peer does not offer, none if all is well."""
    if theirs & Flag.MANDATORY_25_DIGEST:
        theirs |= _DIGEST
    return MANDATORY & ~Flag(theirs & MANDATORY)
