"""What the tests of the cache modules start from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from erllama_py._engine.registry import core
from erllama_py.otp import cache_disk_srv
from erllama_py.types import Atom
from tests.cachelab import Lab
from tests.handrows import QUOTA


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A cache of the test's own in this process's core."""
    one, of_core = Lab(QUOTA), core()
    before, of_core._cache = of_core._cache, one.cache
    yield one
    of_core._cache = before
    one.cache.close()


@pytest.fixture
def disk(lab: Lab, tmp_path: Path) -> Atom:
    """A running tier server, on ``tmp_path / "rows"``."""
    name = Atom("my_disk")
    cache_disk_srv.start_link(name, os.fsencode(tmp_path / "rows"))
    return name
