"""A directory of containers for each test that asks for one."""

from __future__ import annotations

import pytest

from tests.containers import opened


@pytest.fixture
def path(tmp_path):
    return tmp_path / "kv"


@pytest.fixture
def directory(path):
    made = opened(path)
    yield made
    made.close()
