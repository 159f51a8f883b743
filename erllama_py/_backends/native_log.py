"""Where llama.cpp's log lines go: a bounded memory and, if asked, a Python function.

Unless it is told otherwise the engine writes hundreds of lines to file descriptor 2,
which in a notebook or under the command is the reader's.  :func:`install` puts our
callback in place, once and for the life of the process: the engine keeps the bare
function pointer, so a callback that Python had collected would crash the next line.

The callback runs on whatever thread the engine logs from.  It appends to a deque and
returns; a listener must do as little.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import llama_cpp.llama_cpp as native

__all__ = (
    "LogLine",
    "buffers_since",
    "errors_since",
    "install",
    "mark",
    "set_listener",
    "stderr_captured",
)

DEBUG, INFO, WARNING, ERROR, CONTINUED = 1, 2, 3, 4, 5
"""Levels as the engine numbers them; the binding's own comment has them otherwise."""

_CAPACITY = 512
"""A load writes about 250 lines, so the errors of the last one are always still there."""

_BUFFER = re.compile(r"(\w+) buffer size = +([0-9.]+) MiB")
_WEIGHTS, _COMPUTE = "model", "compute"
_BUFFERS = 256


class LogLine(NamedTuple):
    """One line of the engine's log."""

    number: int
    level: int
    text: str


Listener = Callable[[LogLine], None]


class _State:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lines: deque[LogLine] = deque(maxlen=_CAPACITY)
        self.buffers: deque[LogLine] = deque(maxlen=_BUFFERS)
        """Lines that say the size of a buffer: the debug lines of a load would push them out."""
        self.written = 0
        self.pending = ""
        self.level = INFO
        self.listener: Listener | None = None
        self.callback: Any = None


_state = _State()


def install() -> None:
    """Take over the engine's log.  Idempotent; call before any other native call."""
    with _state.lock:
        if _state.callback is None:
            _state.callback = native.llama_log_callback(_receive)
            native.llama_log_set(_state.callback, None)


def set_listener(listener: Listener | None) -> None:
    """Hand every further line to ``listener`` as well; ``None`` ends that."""
    _state.listener = listener


def mark() -> int:
    """Return a point in the log for :func:`errors_since`."""
    return _state.written


def errors_since(point: int, limit: int = 4) -> list[str]:
    """Return the texts of the last ``limit`` error lines written after ``point``."""
    texts = [
        line.text for line in list(_state.lines) if line.number > point and line.level >= ERROR
    ]
    return texts[-limit:]


def buffers_since(point: int) -> tuple[int, int, int]:
    """Return bytes of the buffers made after ``point``: weights, context, what computes.

    The engine has no function that says so; its log does, one line for each buffer.
    """
    sums = {_WEIGHTS: 0.0, "": 0.0, _COMPUTE: 0.0}
    for line in list(_state.buffers):
        if line.number > point and (found := _BUFFER.search(line.text)):
            kind = found[1] if found[1] in sums else ""  # KV, RS, output: the context's
            sums[kind] += float(found[2])
    weights, context, compute = (round(size * (1 << 20)) for size in sums.values())
    return weights, context, compute


@contextlib.contextmanager
def stderr_captured() -> Iterator[None]:
    """Take what is written to file descriptor 2 meanwhile as error lines of the log.

    The grammar parser prints its one useful message there, past the log.  What other
    threads write in this fraction of a millisecond comes along: a moment in a log, not
    lost.
    """
    try:
        saved = os.dup(2)
    except OSError:  # a daemon may have closed it
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                _write(ERROR, line)


def _receive(level: int, text: bytes, _user_data: object) -> None:
    # An exception here would be printed to the very descriptor we keep clean.
    with contextlib.suppress(Exception):
        if level != CONTINUED:
            if _state.pending:
                _flush()
            _state.level = level
        _state.pending += text.decode(errors="replace")
        if _state.pending.endswith("\n"):
            _flush()


def _flush() -> None:
    whole, _state.pending = _state.pending, ""
    for line in whole.splitlines():
        _write(_state.level, line)


def _write(level: int, text: str) -> None:
    text = text.rstrip()
    if not text.strip("."):  # blank, or the dots that show a load's progress
        return
    _state.written += 1
    line = LogLine(_state.written, level, text)
    _state.lines.append(line)
    if " buffer size " in text:
        _state.buffers.append(line)
    if _state.listener is not None:
        with contextlib.suppress(Exception):
            _state.listener(line)
