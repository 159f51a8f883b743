"""Host names of this machine, and the addresses a peer dials for them."""

from __future__ import annotations

import ipaddress
import socket

import anyio

from erl_bridge.proto.names import is_long

__all__ = (
    "LOOPBACK",
    "addresses",
    "full_name",
    "is_loopback",
    "listen_addresses",
    "short_host",
    "with_loopback",
)

LOOPBACK = "127.0.0.1"

#: A node starts without knowing its own address rather than wait for a broken resolver.
RESOLVE_TIMEOUT = 3.0


def short_host() -> str:
    """Return this machine's name up to the first dot, as ``erl -sname`` uses it."""
    return socket.gethostname().partition(".")[0] or "localhost"


def full_name(name: str) -> str:
    """Return ``name`` with a host part: this machine's short one where it has none."""
    return name if "@" in name else f"{name}@{short_host()}"


def is_loopback(address: str) -> bool:
    """Tell whether an IPv4 or IPv6 literal stays on this machine."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def with_loopback(found: list[str]) -> tuple[str, ...]:
    """Return ``found`` with 127.0.0.1 in front unless an address covers it already."""
    if "0.0.0.0" in found:  # noqa: S104  # compared with, not bound to
        return tuple(found)
    return tuple(dict.fromkeys([LOOPBACK, *found]))


async def addresses(host: str) -> list[str]:
    """Return the IPv4 addresses of a host in the resolver's order, empty when unknown.

    IPv4 only: plain ``inet_tcp`` distribution dials nothing else.
    """
    try:
        found = await anyio.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(entry[4][0] for entry in found))


async def listen_addresses(host: str, listen_host: str) -> tuple[list[str], str]:
    """Return where a node named ``...@host`` listens, and a warning or "".

    A peer dials what our host part resolves to.  On Debian that is often 127.0.1.1, which
    a socket bound to 127.0.0.1 does not hear, so loopback means every loopback address the
    name has.  Where the name resolves to a network address only, peers cannot reach a
    loopback listener: that is said, not silently widened.
    """
    if listen_host != LOOPBACK:
        return [listen_host], ""
    found: list[str] = []
    with anyio.move_on_after(RESOLVE_TIMEOUT):
        found = await addresses(host)
    local = [address for address in found if is_loopback(address)]
    warning = ""
    if found and not local:
        kind = "name" if is_long(host) else "short name"
        warning = (
            f"the host {kind} {host!r} resolves to {', '.join(found)}, and this node listens on "
            f"{LOOPBACK} only: peers that dial the name will not reach it. "
            f"Call the node name@{LOOPBACK}, or listen on that address"
        )
    return list(dict.fromkeys([LOOPBACK, *local])), warning
