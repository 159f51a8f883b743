"""The stub models of all tests share one cache: each test starts with an empty one."""

from __future__ import annotations

import pytest

from erllama_py._engine.registry import core


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    """Evict everything and zero the counters."""
    core().cache.gc()
    core().cache.counters.reset()
