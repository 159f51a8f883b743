"""The loader thread: what plans name is read and verified here, ahead of the engine.

Reading a long chain from a disk, or hashing hundreds of megabytes, takes long.  The
control thread has cancellations to pass on, and the engine thread has streams to serve,
so neither does it.  Plans are served in the order they came.

What is read from files lies in private memory until the engine has unpacked it.  The
loader stays at most :data:`AHEAD_BYTES` ahead, all plans together, but for one piece of
each plan: a plan that waits for a slot can never hold up the one that has it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from erllama_py._engine.restore import Restore
from erllama_py._engine.sharedkv import SharedKv

__all__ = ("AHEAD_BYTES", "Loader")

AHEAD_BYTES = 64 << 20
"""Bytes read from files and not yet unpacked: some 3000 tokens of a 135M model."""


class Loader:
    """Serves plans on a thread of its own, which runs :meth:`run`.

    :param wake: called when the engine has something new to look at.
    """

    def __init__(self, kv: SharedKv, wake: Callable[[], None]) -> None:
        self._kv = kv
        self._wake = wake
        self._changed = threading.Condition()
        self._plans: list[Restore] = []
        self._closed = False

    def add(self, restore: Restore) -> None:
        """Serve a plan until it is dropped."""
        with self._changed:
            self._plans.append(restore)
            self._changed.notify()

    def nudge(self) -> None:
        """Look again: the engine has unpacked something, or dropped a plan."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def run(self) -> None:
        """Load pieces until closed."""
        while restore := self._next():
            restore.load_next()
            self._wake()

    def _next(self) -> Restore | None:
        with self._changed:
            while not self._closed:
                self._let_go()
                if restore := self._choose():
                    return restore
                self._changed.wait()
        return None

    def _let_go(self) -> None:
        for restore in [one for one in self._plans if one.dropped]:
            self._plans.remove(restore)
            self._kv.let_go(restore.segments)

    def _choose(self) -> Restore | None:
        room = sum(one.ahead for one in self._plans) < AHEAD_BYTES
        return next((one for one in self._plans if one.loading and (room or not one.ahead)), None)
