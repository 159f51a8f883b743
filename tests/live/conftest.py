"""Real nodes for the live tests: OTP 25 of the system, OTP 28 of a wheel, Elixir.

Everything registers with an epmd of the tests' own on a port of its own, so that nothing
disturbs, or is disturbed by, one that runs on the machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from erl_bridge import EpmdServer
from tests.live.erlnode import COOKIE, ErlNode, executable, unique_name
from tests.live.served import Call, Served


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this directory talks to real nodes."""
    for item in items:
        if "tests/live" in item.path.as_posix():
            item.add_marker(pytest.mark.live)


@pytest.fixture(scope="session", autouse=True)
def epmd_port() -> Iterator[int]:
    """Serve our epmd on a free port and point everything at it."""
    server = EpmdServer(0)
    before = os.environ.get("ERL_EPMD_PORT")

    async def serve(*, task_status: anyio.abc.TaskStatus[int]) -> None:
        await server.serve(task_status=task_status)

    with start_blocking_portal("asyncio") as portal:
        future, port = portal.start_task(serve)
        os.environ["ERL_EPMD_PORT"] = str(port)
        yield port
        future.cancel()
    if before is None:
        del os.environ["ERL_EPMD_PORT"]
    else:
        os.environ["ERL_EPMD_PORT"] = before


@pytest.fixture(scope="session")
def erl25() -> str:
    """The system's erl."""
    erl = shutil.which("erl")
    assert erl is not None, "Erlang is not installed"
    return erl


@pytest.fixture(scope="session")
def erl28(otp28: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The erl of the OTP 28 wheel."""
    return executable(otp28.parent, tmp_path_factory.mktemp("otp28"))


@pytest.fixture(scope="session")
def elixir() -> str:
    """The system's elixir."""
    found = shutil.which("elixir")
    assert found is not None, "Elixir is not installed"
    return found


@pytest.fixture(scope="module", params=["erl25", "erl28"])
def otp(request: pytest.FixtureRequest) -> str:
    """The executables, one after the other: a module's tests run with each."""
    path: str = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module")
def peer(otp: str) -> Iterator[ErlNode]:
    """A running node, shared by a module's tests."""
    node = ErlNode(otp)
    yield node
    node.stop()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A node of ours, shared by a module's tests."""
    node = Served()
    yield node
    node.stop()


@pytest.fixture
def call(peer: ErlNode, served: Served) -> Call:
    """Evaluate an expression at the peer; N stands for our node's name."""

    def run(expression: str, timeout: float = 30) -> str:
        return peer.eval(re.sub(r"\bN\b", f"'{served.name}'", expression), timeout)

    return run


@pytest.fixture(autouse=True)
def nothing_left_over(request: pytest.FixtureRequest) -> None:
    """What one test's messages left must not be taken for the next one's."""
    if "served" in request.fixturenames:
        seen = request.getfixturevalue("served").seen
        while not seen.empty():
            seen.get()


@pytest.fixture
def erl_node(otp: str) -> Iterator[Callable[..., ErlNode]]:
    """Start further nodes of the same release, stopped with the test."""
    started: list[ErlNode] = []

    def start(name: str | None = None, **options: object) -> ErlNode:
        node = ErlNode(otp, name, **options)  # type: ignore[arg-type]  # handed through
        started.append(node)
        return node

    yield start
    for node in started:
        node.stop()


@pytest.fixture(scope="session")
def erl(erl25: str) -> Callable[..., str]:
    """Evaluate one expression in a node of its own; returns the printed term."""

    def run(expression: str, *, erl: str = erl25, cookie: str = COOKIE) -> str:
        code = f'io:format("~0tp", [begin {expression} end]), halt().'
        command = [erl, "-noshell", "-start_epmd", "false", "-sname", unique_name("one")]
        result = subprocess.run(
            [*command, "-setcookie", cookie, "-eval", code],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run
