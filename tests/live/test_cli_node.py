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

import anyio
import pytest

from erl_bridge.net.epmd_client import registered_names
from tests.live.erlnode import COOKIE, ErlNode
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
    # In two seconds, where nobody else computes; here others may.
    wait_for(lambda: not Path(f"/proc/{model}").exists(), seconds=20)


@pytest.mark.live
def test_what_peers_do_wrong_is_told(erl25: str, epmd_port: int) -> None:
    """Who has another cookie, and with --verbose why a call was refused."""
    name = f"cli_{secrets.token_hex(3)}"
    command = [sys.executable, "-m", "erllama_py.cli", "node", "--name", name, "--cookie", COOKIE]
    process = subprocess.Popen(
        [*command, "--verbose"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        wait_for(lambda: name in dict(_registered(epmd_port)), seconds=30)
        for cookie in ("another", COOKIE):
            peer = ErlNode(erl25, cookie=cookie)
            node = f"{name}@{peer.name.partition('@')[2]}"
            peer.eval(f"rpc:call('{node}', erllama, load_model, [<<\"a\">>, #{{model_path => 5}}])")
            peer.stop()
            line = next(line for line in process.stderr if "WARNING" in line)
            expected = (
                "does not have our cookie" if cookie != COOKIE else "load_model/2 was refused: "
            )
            assert expected in line
            assert peer.name in line or cookie == COOKIE
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()


def _registered(port: int) -> list[tuple[str, int]]:
    return anyio.run(registered_names, "127.0.0.1", port)
