"""Why there is no connection."""

from __future__ import annotations

from typing import Any

__all__ = ("EpmdError", "NameTaken", "NotConnected")


class EpmdError(OSError):
    """No port mapper answers, or it answers nonsense."""


class NameTaken(EpmdError):
    """Another living node holds our name."""

    def __init__(self, name: str, port: int) -> None:
        self.node_name = name
        self.port = port
        super().__init__(
            f"a node named {name!r} is already registered with epmd on port {port}: "
            "stop it or choose another name"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.node_name, self.port)


class NotConnected(ConnectionError):
    """There is no connection to a node and none could be made."""

    def __init__(self, node: str, why: str) -> None:
        self.node = node
        self.why = why
        super().__init__(f"no connection to {node}: {why}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.node, self.why)
