"""The models of all tests share one cache: each test starts with an empty one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from erllama_py._engine import worker
from erllama_py._engine.registry import core
from erllama_py._engine.scheduler import Scheduler
from erllama_py.testing import stub_model
from tests.sessionlab import Loaded
from tests.waiting import wait_for


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    """Evict everything and zero the counters."""
    cache = core().cache

    def empty() -> bool:
        # A request that has just replied still holds its rows until its slot is free.
        cache.gc()
        blocks = cache.snapshot(limit=0)["blocks"]
        return not blocks["payloads"]

    wait_for(empty)
    cache.counters.reset()


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Load stubs with their schedulers within reach; all are unloaded in the end."""
    made: list[Scheduler] = []

    def scheduler(*args: Any, **options: Any) -> Scheduler:
        made.append(Scheduler(*args, **options))
        return made[-1]

    monkeypatch.setattr(worker, "Scheduler", scheduler)

    with contextlib.ExitStack() as stack:

        def make(slots: int = 1, n_ctx: int = 4096, **config: Any) -> Loaded:
            manager = stub_model(context_opts={"n_ctx": n_ctx, "n_seq_max": slots}, **config)
            model = stack.enter_context(manager)
            return Loaded(model, made[-1])

        yield make
