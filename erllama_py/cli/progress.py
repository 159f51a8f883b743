"""One line on standard error while something takes long; on a terminal only.

It appears after a second, so that what is quick stays quiet, and it is gone when what it
told of is over: nothing of it is ever among a command's output.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Self, TextIO

__all__ = ("Progress",)

_AFTER_S = 1.0
_EVERY_S = 0.5
_CLEAR = "\r\x1b[2K"


class Progress:
    """Shows what is going on for the length of a ``with`` block, or until :meth:`end`.

    :param say: the line's text; asked again each time, on a thread of ours.
    """

    def __init__(
        self, say: Callable[[], str], *, stream: TextIO | None = None, after_s: float = _AFTER_S
    ) -> None:
        self._say = say
        self._stream = sys.stderr if stream is None else stream
        self._after_s = after_s
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def end(self) -> None:
        """Take the line away, if it is there."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        started = time.monotonic()
        shown = False
        wait = self._after_s
        while not self._over.wait(wait):
            self._stream.write(f"{_CLEAR}{self._say()} … {time.monotonic() - started:.0f} s")
            self._stream.flush()
            shown, wait = True, _EVERY_S
        if shown:
            self._stream.write(_CLEAR)
            self._stream.flush()
