"""Node names."""

from __future__ import annotations

import pytest

from erl_bridge.proto.names import check_node_name, is_long, same_kind, split_node


def test_parts() -> None:
    """Name and host."""
    assert split_node("a-b_1@host.example") == ("a-b_1", "host.example")


@pytest.mark.parametrize("name", ["", "a", "@", "a@", "@h", "a@b@c"])
def test_not_a_node_name(name: str) -> None:
    """The message says what was expected."""
    with pytest.raises(ValueError, match="expected name@host"):
        check_node_name(name)


@pytest.mark.parametrize("name", ["a b@h", "ä@h", "a@h h", "a@h\n", "a.b@h", "a" * 254 + "@h"])
def test_names_no_node_may_have(name: str) -> None:
    """Characters that real nodes refuse, and lengths."""
    with pytest.raises(ValueError, match="node name"):
        check_node_name(name)


@pytest.mark.parametrize("name", ["a@h", "A_b-1@127.0.0.1", "a@::1", "a@hôte", "x" * 253 + "@h"])
def test_names_of_nodes(name: str) -> None:
    """Accepted as they are."""
    assert "@".join(check_node_name(name)) == name


def test_kinds() -> None:
    """A dot in the host makes the name long."""
    assert is_long("a.b")
    assert is_long("::1")
    assert not is_long("ab")
    assert same_kind("a@b", "c@d")
    assert not same_kind("a@b", "c@d.e")
