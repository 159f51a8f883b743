"""An epmd of the tests' own for nodes on real sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from erl_bridge import EpmdServer, Node, NodeThread
from tests.unit.erl_bridge.rawpeer import COOKIE, RawPeer, unique_name


@pytest.fixture(scope="session")
def epmd() -> Iterator[EpmdServer]:
    """A running epmd on a free port."""
    server = EpmdServer(0)
    with start_blocking_portal("asyncio") as portal:
        future, _port = portal.start_task(server.serve)
        yield server
        future.cancel()


Start = Callable[..., NodeThread]


@pytest.fixture
def start(epmd: EpmdServer) -> Iterator[Start]:
    """Start nodes that end with the test."""
    started: list[NodeThread] = []

    def run(name: str | None = None, **options: Any) -> NodeThread:
        options = {"cookie": COOKIE, "epmd_port": epmd.port, **options}
        thread = NodeThread(Node(name or unique_name(), **options))
        thread.start()
        started.append(thread)
        return thread

    yield run
    for thread in started:
        thread.stop()


@pytest.fixture
def raw(epmd: EpmdServer) -> Iterator[Callable[..., RawPeer]]:
    """Dial nodes with a peer that does exactly what the test says."""
    made: list[RawPeer] = []

    def dial(thread: NodeThread, **options: Any) -> RawPeer:
        made.append(RawPeer(thread.node.port, thread.node.name, **options))
        return made[-1]

    yield dial
    for peer in made:
        peer.close()
