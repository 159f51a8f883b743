"""One run of a model process, and the calls that wait for its answers."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from erllama_py._engine.channel import Channel, ChannelClosed
from erllama_py._engine.frames import Frame
from erllama_py._engine.process import Running
from erllama_py.errors import ErllamaError
from erllama_py.types import ModelPid, next_serial

__all__ = ("Life", "Pending")


class Life:
    """One run of the model process."""

    def __init__(self, process: Running, channel: Channel) -> None:
        self.pid = ModelPid(next_serial())
        self.process = process
        self.channel = channel
        self.loaded = threading.Event()
        self.failure: ErllamaError | None = None
        self.calls: dict[int, Pending] = {}

    def send(self, frame: Frame, fd: int | None = None) -> None:
        """Send a frame; a dead process is the reader's to notice.

        Not even there is it an error: what it sent before it died is still to be read.
        """
        with contextlib.suppress(ChannelClosed):
            self.channel.send(frame, fd)


class Pending:
    """A call waiting for its answer."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.value: Any = None
        self.error: ErllamaError | None = None

    def result(self) -> Any:
        """Return the answer, or raise what was the matter."""
        self.done.wait()
        if self.error:
            raise self.error
        return self.value
