"""Where a node listens, by its own name."""

from __future__ import annotations

import socket
from typing import Any

import anyio
import pytest

from erl_bridge.net import hosts


def resolve_to(monkeypatch: pytest.MonkeyPatch, *found: str) -> None:
    """Make every host name resolve to these addresses."""

    async def getaddrinfo(*_args: Any, **_options: Any) -> list[Any]:
        if not found:
            raise socket.gaierror(-2, "unknown")
        return [(2, 1, 6, "", (address, 0)) for address in found]

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)


def listen_addresses(host: str, listen_host: str = "127.0.0.1") -> tuple[list[str], str]:
    """Run the coroutine."""
    return anyio.run(hosts.listen_addresses, host, listen_host)


def test_debians_own_address_is_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers dial 127.0.1.1, which 127.0.0.1 does not hear."""
    resolve_to(monkeypatch, "127.0.1.1", "127.0.1.1")
    assert listen_addresses("box") == (["127.0.0.1", "127.0.1.1"], "")


def test_a_network_address_is_not_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do about it."""
    resolve_to(monkeypatch, "192.0.2.7")
    found, warning = listen_addresses("box")
    assert found == ["127.0.0.1"]
    assert "192.0.2.7" in warning
    assert "name@127.0.0.1" in warning


def test_an_unknown_name_is_no_reason_to_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nobody can dial it by name anyway."""
    resolve_to(monkeypatch)
    assert listen_addresses("box") == (["127.0.0.1"], "")


def test_what_was_asked_for_is_what_is_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """No guessing then."""
    resolve_to(monkeypatch, "127.0.1.1")
    assert listen_addresses("box", "192.0.2.7") == (["192.0.2.7"], "")


def test_epmd_is_always_where_local_nodes_register() -> None:
    """They dial 127.0.0.1."""
    assert hosts.with_loopback(["192.0.2.7"]) == ("127.0.0.1", "192.0.2.7")
    assert hosts.with_loopback(["127.0.0.1"]) == ("127.0.0.1",)
    assert hosts.with_loopback(["0.0.0.0"]) == ("0.0.0.0",)


def test_names_get_this_machines_short_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """As -sname does."""
    monkeypatch.setattr(socket, "gethostname", lambda: "box.example.org")
    assert hosts.full_name("a") == "a@box"
    assert hosts.full_name("a@b.c") == "a@b.c"


@pytest.mark.parametrize(
    ("address", "local"), [("127.9.9.9", True), ("::1", True), ("8.8.8.8", False), ("x", False)]
)
def test_loopback(address: str, local: bool) -> None:
    """Literals only."""
    assert hosts.is_loopback(address) is local
