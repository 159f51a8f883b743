"""A node with a cache of its own, for the tests of the original's other modules."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from erl_bridge.etf import Atom
from erl_bridge.service import ErllamaNode
from erllama_py._cache.store import Cache
from erllama_py._engine.registry import core
from erllama_py.otp import cache_disk_srv, cache_meta_srv, cache_writer
from erllama_py.testing import stub_model
from tests.unit.erl_bridge.service.othermodules import MODEL, OK, call
from tests.waiting import wait_for

QUOTA = 1 << 24


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def node(root: Path) -> Iterator[ErllamaNode]:
    """A node with an epmd of its own, a cache of its own, and a stub model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cache, of_core = Cache(QUOTA), core()
    before, of_core._cache = of_core._cache, cache
    served = ErllamaNode("others", cookie="c", epmd_port=port, roots=[root])
    with served, stub_model(MODEL.decode(), context_opts={"n_ctx": 512}):
        yield served
    of_core._cache = before
    cache.close()


@pytest.fixture
def nothing_cached(node: ErllamaNode) -> None:
    """Whatever ran before; what a request holds stays for a moment after its reply."""
    wait_for(lambda: bool(cache_meta_srv.gc()) and cache_meta_srv.dump() == [])
    wait_for(lambda: cache_writer.current() == 0)


@pytest.fixture
def caller(node: ErllamaNode) -> Iterator[Any]:
    """A process that ends with the test: what it holds is then let go of."""
    process = node.node.spawn_process()
    yield process
    process.exit()


@pytest.fixture
def disk(node: ErllamaNode, root: Path, request: pytest.FixtureRequest) -> Iterator[Atom]:
    """A tier server, by its name; its rows go with it."""
    name = Atom(f"disk_{abs(hash(request.node.name))}")
    assert call(node, "cache_disk_srv:start_link", name, os.fsencode(root / name.name))[0] is OK
    yield name
    cache_meta_srv.gc()
    cache_disk_srv.stop(name.name)
