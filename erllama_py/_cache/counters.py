"""The cache's 20 counters, under the names and in the order Erlang code knows.

Seventeen count events and only grow, until :meth:`Counters.reset`.  The three
``bytes_*`` are gauges: what the tiers hold now.  A reset leaves gauges alone, since
nothing would put them right again.
"""

from __future__ import annotations

import threading
from typing import Final

__all__ = ("NAMES", "Counters")

NAMES: Final = (
    "hits_exact",
    "hits_resume",
    "misses",
    "saves_cold",
    "saves_continued",
    "saves_finish",
    "saves_evict",
    "saves_shutdown",
    "evictions",
    "corrupt_files",
    "pack_total_ns",
    "load_total_ns",
    "bytes_ram",
    "bytes_ramfile",
    "bytes_disk",
    "duplicate_dropped",
    "hits_longest_prefix",
    "longest_prefix_probes",
    "longest_prefix_ns",
    "saves_dropped",
)
"""In slot order, slot 1 first."""

GAUGES: Final = frozenset({"bytes_ram", "bytes_ramfile", "bytes_disk"})


class Counters:
    """Thread-safe.  An unknown name is a ``KeyError``: no counter is made by a typo."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values = dict.fromkeys(NAMES, 0)
        self._besides = dict.fromkeys(GAUGES, 0)

    def incr(self, name: str) -> None:
        """Add one."""
        self.add(name, 1)

    def add(self, name: str, amount: int) -> None:
        """Add ``amount``; negative only to move an event from one name to another."""
        with self._lock:
            self._values[name] += amount

    def gauge(self, name: str, value: int) -> None:
        """Set one of the ``bytes_*`` to what is held now."""
        if name not in GAUGES:
            raise KeyError(name)
        with self._lock:
            self._values[name] = value

    def besides(self, name: str, change: int) -> None:
        """Note bytes that come or go in a tier besides what :meth:`gauge` tells."""
        with self._lock:
            self._besides[name] += change

    def snapshot(self) -> dict[str, int]:
        """Return all 20, in slot order, as of one moment."""
        with self._lock:
            return {name: n + self._besides.get(name, 0) for name, n in self._values.items()}

    def reset(self) -> None:
        """Set everything that counts events to zero."""
        with self._lock:
            for name in NAMES:
                if name not in GAUGES:
                    self._values[name] = 0
