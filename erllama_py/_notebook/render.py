"""Showing a reply while it grows, and leaving one output that stands alone.

Three surfaces:

* *Live*, in a kernel: one display that is updated in place.  Every update carries the
  whole text, so updates are rationed: by time, since a server drops messages beyond some
  hundreds a second, and by size, since the sum over a long reply would be quadratic.
* *Final*, where nobody watches or updates are not understood (tests of notebooks compare
  the first display and ignore updates): one display at the end.
* *Terminal*: text is written as it comes; nothing can be updated there.

Live and final leave the same bundle of types and the same metadata in the notebook.
All writing happens in the cell's own thread: what other threads print goes to whatever
cell is newest.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any, Final, Protocol

from IPython.display import publish_display_data

from erllama_py._notebook.args import BadUsage
from erllama_py._notebook.reply import Reply, bundle
from erllama_py._notebook.text import clean

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ("MODES", "Surface", "in_kernel", "note", "surface")

MODES: Final = ("auto", "live", "final")
VARIABLE: Final = "ERLLAMA_RENDER"

UPDATE_S: Final = 0.08
"""Between updates: 12 a second look fluent, and 30 messages a second are the most that a
remote front end should have to take."""

BYTES_PER_S: Final = 100_000
"""Of updates together: a tenth of what makes a notebook server drop messages."""

WAIT_SHOWN_S: Final = 0.4
"""A prompt that takes longer to read than this is worth a word."""


class Surface(Protocol):
    """Where a reply appears."""

    def waiting(self, reply: Reply) -> None:
        """The prompt is being read; called again and again until a token comes."""

    def grown(self, reply: Reply, *, complete: bool) -> None:
        """There is more text, or after ``complete`` there will be no more."""


def surface(shell: InteractiveShell, mode: str) -> Surface:
    """Choose where replies of this shell appear.

    :param mode: one of :data:`MODES`; ``auto`` is decided by the environment variable
        ``ERLLAMA_RENDER``, else by the shell.
    :raises BadUsage: the variable holds something else.
    """
    if mode == "auto":
        mode = os.environ.get(VARIABLE, "").strip() or mode
        if mode not in MODES:
            raise BadUsage(f"{VARIABLE} cannot be {mode!r}", f"give one of {', '.join(MODES)}")
    # %%capture keeps every update it sees as an output of its own.
    captured = type(shell.display_pub).__name__ == "CapturingDisplayPublisher"
    if mode == "final" or captured:
        return _Final()
    if in_kernel(shell) or mode == "live":
        return _Live()
    return _Terminal() if sys.stdout is sys.__stdout__ else _Final()


def in_kernel(shell: InteractiveShell) -> bool:
    """Whether a front end shows what this shell displays: a notebook, not a terminal."""
    return getattr(shell, "kernel", None) is not None


def note(text: str, markdown: str = "") -> None:
    """Show something that is not a reply."""
    data = {"text/plain": text}
    if markdown:
        data["text/markdown"] = markdown
    _publish(data)


class _Final:
    """One display, at the end."""

    def waiting(self, reply: Reply) -> None:
        """Nothing yet."""

    def grown(self, reply: Reply, *, complete: bool) -> None:
        """Show it when it is whole."""
        if complete and reply.shown:
            _publish(reply.bundle(reply.format), reply.metadata)


class _Live:
    """One display, updated in place."""

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex
        self._shown: str | None = None
        self._due = 0.0
        self._started = time.monotonic()

    def waiting(self, reply: Reply) -> None:
        if self._shown is None and time.monotonic() - self._started > WAIT_SHOWN_S:
            text = f"reading the prompt, {reply.prompt_tokens} tokens …"
            if reply.thinking:
                text = "thinking …"
            self._put({"text/plain": text, "text/markdown": f"*{text}*"}, {}, "")

    def grown(self, reply: Reply, *, complete: bool) -> None:
        shown = reply.shown
        if complete and not shown and self._shown is None:
            return
        if not complete and (time.monotonic() < self._due or shown == self._shown):
            return
        # Half of a JSON value is no JSON: types change at the end only.
        form = reply.format if complete or reply.format != "json" else "text"
        self._put(reply.bundle(form), reply.metadata if complete else {}, shown)
        self._due = time.monotonic() + max(UPDATE_S, 2 * len(shown) / BYTES_PER_S)

    def _put(self, data: dict[str, Any], metadata: dict[str, Any], text: str) -> None:
        first = self._shown is None
        _publish(data, metadata, transient={"display_id": self._id}, update=not first)
        self._shown = text


class _Terminal:
    """Text on stdout."""

    def __init__(self) -> None:
        self._written = 0
        self._due = 0.0

    def waiting(self, reply: Reply) -> None:
        """Nothing that could be taken back."""

    def grown(self, reply: Reply, *, complete: bool) -> None:
        if not complete and time.monotonic() < self._due:
            return
        if reply.format == "json":
            if complete and reply.text:
                sys.stdout.write(bundle(reply.text, "json")["text/plain"] + "\n")
            return
        shown = reply.shown
        fresh = clean(shown[self._written :])
        self._written = len(shown)
        if complete and shown and not shown.endswith("\n"):
            fresh += "\n"
        sys.stdout.write(fresh)
        sys.stdout.flush()
        self._due = time.monotonic() + UPDATE_S / 2


def _publish(data: dict[str, Any], metadata: dict[str, Any] | None = None, **options: Any) -> None:
    publish_display_data(data, metadata, **options)  # type: ignore[no-untyped-call]  # IPython's
