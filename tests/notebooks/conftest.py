"""One kernel with the model loaded, for the tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.notebooks.kernel import Kernel, kernel


@pytest.fixture(scope="module")
def notebook() -> Iterator[Kernel]:
    """A kernel that has loaded SmolLM2."""
    with kernel() as started:
        started.run("%erllama load smollm2")
        yield started
