"""Plain IPython in a terminal."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator

import pexpect
import pytest

pytestmark = pytest.mark.model

PROMPT = r"In \[\d+\]: $"


class Terminal:
    """IPython behind a pseudo-terminal."""

    def __init__(self) -> None:
        options = ["-m", "IPython", "--simple-prompt", "--no-banner", "--no-confirm-exit"]
        env = os.environ | {"TERM": "dumb", "NO_COLOR": "1"}
        self.child = pexpect.spawn(
            sys.executable, [*options, "--colors=NoColor"], encoding="utf-8", timeout=90, env=env
        )
        self.child.expect(PROMPT)

    def send(self, *lines: str) -> None:
        """Type a cell; it takes two empty lines to send off a cell magic."""
        for line in lines if len(lines) == 1 else (*lines, "", ""):
            self.child.sendline(line)

    def run(self, *lines: str) -> str:
        """Type a cell and return what appears."""
        self.send(*lines)
        self.child.expect(PROMPT)
        return str(self.child.before).replace("\r\n", "\n")


@pytest.fixture(scope="module")
def terminal() -> Iterator[Terminal]:
    """A terminal with the model loaded."""
    opened = Terminal()
    opened.run("%load_ext erllama_py")
    assert "smollm2 is ready" in opened.run("%erllama load smollm2")
    yield opened
    opened.child.sendline("exit")
    opened.child.expect(pexpect.EOF)
    opened.child.close()


def test_the_reply_is_written_as_it_comes(terminal: Terminal) -> None:
    terminal.send("%%erllama --max 150 --raw -o story", "Once upon a time")
    seen = [terminal.child.read_nonblocking(200, timeout=90) for _ in range(12)]
    terminal.child.expect(PROMPT)
    text = "".join(seen) + str(terminal.child.before)
    assert re.search(r"\d+ tokens at \d+/s", text)
    assert text.count("cold: ") == 1
    assert len([piece for piece in seen if piece.strip()]) > 4
    assert terminal.run("story.text in story._repr_mimebundle_()[0]['text/plain']").count("True")


def test_ctrl_c_keeps_the_partial_reply_and_the_session(terminal: Terminal) -> None:
    terminal.send("%%erllama --max 3000 --raw", "A long story about a small boat:")
    time.sleep(1.0)
    terminal.child.expect(r"boat:(?s:.)*\w+ \w+ \w+ \w+")
    terminal.child.sendintr()
    terminal.child.expect(PROMPT)
    text = str(terminal.child.before)
    assert re.search(r"interrupted after \d+ token", text)
    assert "KeyboardInterrupt: the cell was interrupted" in text
    assert "Traceback" not in text
    assert "4 tokens" in terminal.run("%%erllama --max 4", "What is two plus two?")


def test_errors_are_two_lines(terminal: Terminal) -> None:
    text = terminal.run("%erllama use nobody")
    assert "ErllamaError: no model 'nobody' is loaded\n  hint: " in text
    assert "Traceback" not in text


def test_the_cache_is_a_table(terminal: Terminal) -> None:
    text = terminal.run("%erllama cache --live")
    assert "RAM: " in text
    assert "A live view needs a notebook" in text
