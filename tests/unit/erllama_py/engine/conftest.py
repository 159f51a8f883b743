"""The models of all tests share one cache: each test starts with an empty one."""

from __future__ import annotations

import pytest

from erllama_py._engine.registry import core
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
