"""Waiting for a row that a running request is still writing.

A row is *writing* from :meth:`Waiters.expect` until its request publishes or abandons
it, or until another request publishes the same tokens.  Who resumes from its key may
wait for that moment, up to a time of their choosing.

All but :func:`wake` are called with the cache's lock held.  Callbacks run without it,
each exactly once, on the thread that publishes, abandons or times out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

__all__ = ("Waiter", "Waiters", "wake")

_log = logging.getLogger(__name__)


class Waiter:
    """One callback.  Whoever takes it out of its list, under the lock, calls it."""

    __slots__ = ("callback", "timer")

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.timer: threading.Timer | None = None


class Waiters:
    """The rows of one namespace that are being written, and who waits for them."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._writers: dict[bytes, int] = {}
        self._waiting: dict[bytes, list[Waiter]] = {}

    def writing(self, key: bytes) -> bool:
        """Whether some request has announced this row."""
        return key in self._writers

    def expect(self, key: bytes) -> None:
        """Announce a row.  Counted."""
        self._writers[key] = self._writers.get(key, 0) + 1

    def published(self, key: bytes) -> list[Waiter]:
        """Note that a row is there, whoever wrote it; return whom to :func:`wake`."""
        return self._waiting.pop(key, [])

    def given_up(self, key: bytes) -> list[Waiter]:
        """Take one announcement back; return whom to :func:`wake`."""
        self._writers[key] -= 1
        if self._writers[key]:
            return []
        del self._writers[key]
        return self._waiting.pop(key, [])

    def wait(self, key: bytes, timeout_s: float, callback: Callable[[], None]) -> None:
        """Park a callback."""
        waiter = Waiter(callback)
        waiter.timer = threading.Timer(
            min(timeout_s, threading.TIMEOUT_MAX), self._time_out, (key, waiter)
        )
        waiter.timer.daemon = True
        self._waiting.setdefault(key, []).append(waiter)
        waiter.timer.start()

    def _time_out(self, key: bytes, waiter: Waiter) -> None:
        with self._lock:
            waiting = self._waiting.get(key, [])
            if waiter not in waiting:
                return
            waiting.remove(waiter)
            if not waiting:
                del self._waiting[key]
        wake([waiter])


def wake(waiters: Iterable[Waiter]) -> None:
    """Call the callbacks.  One that fails does not stop the others."""
    for waiter in waiters:
        if waiter.timer is not None:
            waiter.timer.cancel()
        try:
            waiter.callback()
        except Exception:  # noqa: BLE001 - not ours, and logged
            _log.exception("a callback waiting for a row failed")
