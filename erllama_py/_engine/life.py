"""One run of a model process, and the calls that wait for its answers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
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
    """A call waiting for its answer.

    :param on_over: takes the answer, or what was the matter, on the thread that hears it:
        it must not block and must not raise.
    """

    def __init__(self, on_over: Callable[[Any], None] | None = None) -> None:
        self.done = threading.Event()
        self.value: Any = None
        self.error: ErllamaError | None = None
        self._on_over = on_over

    def settle(self, value: Any = None, error: ErllamaError | None = None) -> None:
        """Note the outcome; once."""
        self.value, self.error = value, error
        self.done.set()
        if self._on_over is not None:
            self._on_over(value if error is None else error)

    def result(self) -> Any:
        """Return the answer, or raise what was the matter."""
        self.done.wait()
        if self.error:
            raise self.error
        return self.value
