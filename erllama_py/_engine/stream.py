"""A stream of events for whoever iterates over it."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Self

from erllama_py._engine.host import ModelHost
from erllama_py._engine.request import Request
from erllama_py.errors import ErllamaError
from erllama_py.types import Event, Ref

__all__ = ("Stream",)


class Stream(Iterator[Event]):
    """The events of one ``infer``, in the documented order.

    Iteration ends after the terminal event.  Leaving a ``with`` block, or dropping the
    stream before its end, cancels it.
    """

    def __init__(self, host: ModelHost, request: Request, events: queue.SimpleQueue[Event]) -> None:
        self._host = host
        self._request = request
        self._events = events
        self._over = False
        self.ref: Ref = request.ref

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Event:
        if self._over:
            raise StopIteration
        event = self._events.get()
        self._over = event.terminal
        return event

    def get(self, timeout: float) -> Event | None:
        """Return the next event, or ``None`` when ``timeout`` seconds pass without one.

        :raises StopIteration: the stream is over.
        """
        if self._over:
            raise StopIteration
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return None
        self._over = event.terminal
        return event

    def cancel(self) -> None:
        """Stop it; the ``done`` event follows."""
        self._host.cancel(self._request)

    @property
    def error(self) -> ErllamaError | None:
        """After an ``error`` event: the exception that says its reason in words."""
        return self._request.error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._over:
            self.cancel()

    def __del__(self) -> None:
        if not getattr(self, "_over", True):
            self.cancel()
