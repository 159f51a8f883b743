"""Something a model does for a caller who may stop waiting before it has begun."""

from __future__ import annotations

import threading
from collections.abc import Callable

from erllama_py import api
from erllama_py.types import Ref

__all__ = ("Work",)


class Work:
    """A request, or another call that takes long.  Any thread.

    :ivar ref: what ``api.cancel`` takes, once it has begun.
    """

    def __init__(self) -> None:
        self.ref: Ref | None = None
        self._lock = threading.Lock()
        self._cancelled = False

    def start(self, begin: Callable[[], Ref]) -> None:
        """Have it begin; what was cancelled before ends at once."""
        ref = begin()
        with self._lock:
            self.ref = ref
            cancelled = self._cancelled
        if cancelled:
            api.cancel(ref)

    def cancel(self) -> None:
        """Stop it, now or as soon as it has begun; what is over is left alone."""
        with self._lock:
            self._cancelled = True
            ref = self.ref
        if ref is not None:
            api.cancel(ref)
