"""The line on standard error: late, only on a terminal, and gone afterwards."""

from __future__ import annotations

import io

from erllama_py.cli.progress import Progress
from tests.waiting import wait_for


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_says_what_goes_on_and_is_cleared() -> None:
    terminal = Terminal()
    with Progress(lambda: "loading x", stream=terminal, after_s=0.0):
        wait_for(lambda: "loading x … 0 s" in terminal.getvalue())
    assert terminal.getvalue().endswith("\r\x1b[2K")


def test_what_is_quick_shows_nothing() -> None:
    terminal = Terminal()
    with Progress(lambda: "loading x", stream=terminal):
        pass
    assert terminal.getvalue() == ""


def test_a_file_gets_nothing() -> None:
    file = io.StringIO()
    progress = Progress(lambda: "loading x", stream=file, after_s=0.0)
    with progress:
        assert progress._thread is None
    assert file.getvalue() == ""
