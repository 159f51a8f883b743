"""How the core's parts send frames to a model process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from erllama_py._engine.frames import Frame

__all__ = ("Wire",)


class Wire(Protocol):
    """The way to one run of a model process; that it has ended is not an error here."""

    def send(self, frame: Frame, fd: int | None = None) -> None:
        """Send a frame, with a descriptor where given."""
