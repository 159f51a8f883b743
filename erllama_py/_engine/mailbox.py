"""Work for the engine thread, put in by the control thread."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

__all__ = ("Mailbox",)


class Mailbox:
    """Actions to be run on the engine thread, in order."""

    def __init__(self) -> None:
        self._items: collections.deque[Callable[[], None]] = collections.deque()
        self._wake = threading.Event()

    def put(self, action: Callable[[], None]) -> None:
        """Run ``action`` on the engine thread before its next tick."""
        self._items.append(action)
        self._wake.set()

    def poke(self) -> None:
        """Wake the engine thread: something it polls has changed."""
        self._wake.set()

    def drain(self, wait_s: float | None) -> None:
        """Run what is there; wait for something first, so long or for ever (``None``)."""
        if wait_s is None or wait_s > 0:
            self._wake.wait(wait_s)
        self._wake.clear()
        while self._items:
            self._items.popleft()()
