"""One context a model for all of these tests: each begins with every sequence empty."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from erllama_py._backends import open_backend
from erllama_py._backends.base import Backend, BackendConfig, ContextOptions
from tests.models import gemma3_path, smollm2_path

SLOTS = 4


def config(path: str, n_ctx: int, slots: int = SLOTS, n_batch: int = 512) -> BackendConfig:
    """One thread: with the cores shared, two that wait for each other take far longer."""
    context = ContextOptions(n_ctx=n_ctx, n_seq_max=slots, n_batch=n_batch)
    return BackendConfig("llama", model_path=path, context=context)


@pytest.fixture(scope="session")
def loaded_smollm2() -> Iterator[Backend]:
    backend = open_backend(config(smollm2_path(), 1024))
    yield backend
    backend.close()


@pytest.fixture(scope="session")
def loaded_gemma3() -> Iterator[Backend]:
    backend = open_backend(config(gemma3_path(), 512))
    yield backend
    backend.close()


@pytest.fixture(scope="session")
def loaded_narrow_gemma3() -> Iterator[Backend]:
    """Two sequences and steps of 128: the windowed half holds 1280 cells and is reused."""
    backend = open_backend(config(gemma3_path(), 2048, slots=1, n_batch=128))
    yield backend
    backend.close()


def emptied(backend: Backend) -> Backend:
    for seq in range(backend.info.n_seq_max):
        backend.clear(seq)
    return backend


@pytest.fixture
def smollm2(loaded_smollm2: Backend) -> Backend:
    return emptied(loaded_smollm2)


@pytest.fixture
def gemma3(loaded_gemma3: Backend) -> Backend:
    return emptied(loaded_gemma3)


@pytest.fixture
def narrow_gemma3(loaded_narrow_gemma3: Backend) -> Backend:
    return emptied(loaded_narrow_gemma3)


@pytest.fixture(params=["smollm2", "gemma3"])
def llama(request: pytest.FixtureRequest) -> Backend:
    """Either model: full attention, and a sliding window of 512."""
    backend: Backend = request.getfixturevalue(request.param)
    return backend
