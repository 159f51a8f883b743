"""How many saves may run at once, and who has a place.

A place belongs to a holder: any value that stands for a process or a thread.  A holder
has at most one, so taking a second is no second place, and letting go twice is nothing.
Holders that die keep theirs until somebody says so, but for threads of this process,
which are looked at whenever a place is wanted.
"""

from __future__ import annotations

import math
import threading
import time

from erllama_py.errors import BadCall, ErllamaError

__all__ = ("DEFAULT_TIMEOUT_MS", "Places")

DEFAULT_TIMEOUT_MS = 30_000
"""How long a save waits for a place unless told otherwise."""


class Places:
    """Thread-safe.

    :param limit: places; at least 1.
    """

    def __init__(self, limit: int) -> None:
        self._limit = _checked(limit)
        self._free = threading.Condition()
        self._holders: set[object] = set()

    @property
    def current(self) -> int:
        """Places that are taken."""
        with self._free:
            self._bury()
            return len(self._holders)

    @property
    def limit(self) -> int:
        """Places there are; more may be taken for a while after it was lowered."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        with self._free:
            self._limit = _checked(limit)
            self._free.notify_all()

    def acquire(self, holder: object, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> None:
        """Take a place, waiting for one if need be.

        :param timeout_ms: 0 to try once; ``math.inf`` to wait for ever.
        :raises ErllamaError: ``max_concurrent``: none fell free in time.
        """
        deadline = time.monotonic() + timeout_ms / 1000
        with self._free:
            while not self._take(holder):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise ErllamaError(
                        "max_concurrent",
                        f"{self._limit} saves are running, the most there may be",
                        "try again later, or set_max_concurrent",
                    )
                # Threads that die do not say so.
                self._free.wait(min(left, 0.05) if self._has_threads() else _finite(left))

    def release(self, holder: object) -> None:
        """Give a place back.  Without one, nothing."""
        with self._free:
            self._holders.discard(holder)
            self._free.notify()

    def holder_died(self, holder: object) -> None:
        """Take a dead holder's place away."""
        self.release(holder)

    def _take(self, holder: object) -> bool:
        self._bury()
        if holder not in self._holders and len(self._holders) >= self._limit:
            return False
        self._holders.add(holder)
        return True

    def _has_threads(self) -> bool:
        return any(isinstance(one, threading.Thread) for one in self._holders)

    def _bury(self) -> None:
        dead = {o for o in self._holders if isinstance(o, threading.Thread) and not o.is_alive()}
        self._holders -= dead


def _finite(left: float) -> float | None:
    return None if math.isinf(left) else left


def _checked(limit: int) -> int:
    if type(limit) is not int or limit < 1:
        raise BadCall("function_clause", f"{limit!r} places cannot be: give a number from 1")
    return limit
