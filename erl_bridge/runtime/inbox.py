"""Calls into the event loop's thread from any other, in order and without waiting.

A token stream comes from an engine's thread at thousands of messages a second, and the
loop's own way in costs a system call each.  Here calls are queued, and the loop is woken
once for all that are there.  Calls of one thread run in the order they were made.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ("Inbox",)

log = logging.getLogger(__name__)

#: Calls run in one turn of the loop; then sockets get their turn.
BATCH = 256


class Inbox:
    """A queue of calls that empties itself in the loop it was made in."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._queue: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False
        self._closed = False

    @property
    def here(self) -> bool:
        """True in the loop's own thread, while it takes calls."""
        # A closed inbox's thread may be gone, and its number another thread's.
        return not self._closed and threading.get_ident() == self._thread

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, function: Callable[..., object], *args: Any) -> None:
        """Run ``function`` in the loop, soon.  After :meth:`close` nothing happens."""
        if self._closed:
            return
        self._queue.append((function, args))
        # The drain clears the flag before it looks at the queue, so a call queued behind
        # its back always sees the flag cleared and wakes it again.
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # the loop closed between the check above and here
                self._closed = True

    def close(self) -> None:
        """Run what is queued and take no more.  In the loop's thread."""
        for _ in range(len(self._queue) // BATCH + 1):
            self._drain()
        self._closed = True

    def _drain(self) -> None:
        self._woken = False
        queue = self._queue
        for _ in range(min(len(queue), BATCH)):
            function, args = queue.popleft()
            try:
                function(*args)
            except Exception:
                log.exception("a call from another thread failed: %r", function)
        if queue and not self._closed and not self._woken:
            self._woken = True
            self._loop.call_soon(self._drain)
