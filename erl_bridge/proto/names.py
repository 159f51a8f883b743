"""Node names: ``local@host``, with short or long host parts.

Nodes come in two kinds that cannot talk to each other: with short names (the host part
has no dot) and with long ones (it has).  A node's kind follows from its own name.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ("MAX_NAME_BYTES", "check_node_name", "is_long", "same_kind", "split_node")

#: 255 characters of up to four bytes, the emulator's limit for an atom.
MAX_NAME_BYTES: Final = 255 * 4

# What the emulator takes before the @; epmd stores it, and the boot scripts split on the rest.
_LOCAL: Final = re.compile(r"[A-Za-z0-9_\-]+")
# Host names, IPv4 and (long) IPv6 literals; letters of any script, as net_kernel allows.
_HOST: Final = re.compile(r"[\w.:%\-]+")


def split_node(name: str) -> tuple[str, str]:
    """Split ``local@host``.

    :raises ValueError: there is not exactly one ``@`` with something on both sides.
    """
    local, at, host = name.partition("@")
    if not (local and at and host) or "@" in host:
        raise ValueError(f"{name!r} is not a node name: expected name@host")
    return local, host


def check_node_name(name: str) -> tuple[str, str]:
    """Split a node name after checking that a real node would accept it as one.

    :raises ValueError: a part is missing, too long, or has characters no node may have.
    """
    local, host = split_node(name)
    if not _LOCAL.fullmatch(local):
        raise ValueError(
            f"{local!r} in node name {name!r}: only letters, digits, '_' and '-' are allowed"
        )
    if not _HOST.fullmatch(host):
        raise ValueError(f"{host!r} in node name {name!r} is not a host name")
    if len(name) > 255:
        raise ValueError(f"the node name has {len(name)} characters; 255 are allowed")
    return local, host


def is_long(host: str) -> bool:
    """Tell whether a host part makes the node one with long names."""
    return "." in host or ":" in host


def same_kind(ours: str, theirs: str) -> bool:
    """Tell whether two node names are both short or both long."""
    return is_long(split_node(ours)[1]) == is_long(split_node(theirs)[1])
