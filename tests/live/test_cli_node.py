"""``erllama node``: what it prints can be pasted, and Ctrl-C leaves nothing."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_for


def children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(status.parent.name))
    return found


@pytest.fixture
def command_node() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A node with SmolLM2, and all it printed until it was ready."""
    name = f"cli_{secrets.token_hex(3)}"
    command = [sys.executable, "-m", "erllama_py.cli", "node", "--name", name]
    process = subprocess.Popen(
        [*command, "--cookie", "pasted", "--load", "smollm2", "--slots", "1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if line.startswith("Ctrl-C"):
            break
    yield process, printed
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.live
@pytest.mark.model
@pytest.mark.parametrize("shell", ["erl", "iex"])
def test_the_printed_lines_work_as_they_are(
    command_node: tuple[subprocess.Popen[str], str], shell: str
) -> None:
    _, printed = command_node
    command, call = re.findall(rf"^  ({shell} .*)\n    (.*)$", printed, re.MULTILINE)[0]
    done = subprocess.run(
        command,
        shell=True,
        input=f"{call}\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TERM": "dumb"},
    )
    assert "reply" in done.stdout, done.stdout + done.stderr
    assert "finish_reason" in done.stdout


@pytest.mark.live
@pytest.mark.model
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_no_model_process_stays(
    command_node: tuple[subprocess.Popen[str], str], ending: signal.Signals
) -> None:
    process, _ = command_node
    (model,) = children(process.pid)
    process.send_signal(ending)
    status = process.wait(timeout=10)
    assert status == (-ending if ending is signal.SIGKILL else 0)
    wait_for(lambda: not Path(f"/proc/{model}").exists(), seconds=2)
