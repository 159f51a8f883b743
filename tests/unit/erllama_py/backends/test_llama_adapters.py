"""Adapters in the engine: their weights count while they are used, and not after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from erllama_py._backends.base import Backend, BackendError, Row
from tests.adapters import write_lora

pytestmark = pytest.mark.model


def logits(backend: Backend, tokens: list[int]) -> bytes:
    """Compute a prompt in an empty context; return its last logits."""
    backend.clear(0)
    backend.step([Row(0, 0, tokens, logits=True)])
    out = bytearray(backend.info.logits_bytes)
    backend.copy_logits(0, memoryview(out))
    backend.clear(0)
    return bytes(out)


@pytest.fixture
def of_set(smollm2: Backend, tmp_path: Path):
    """Logits of a prompt with a set of the adapters 1, 2 and 3."""
    for number in (1, 2, 3):
        path = write_lora(tmp_path / f"{number}.gguf", number)
        smollm2.load_adapter(number, str(path), tried=number == 1)
    prompt = smollm2.tokenize(b"Once upon a time", special=True, parse_special=False)

    def compute(*adapters: tuple[int, float]) -> bytes:
        smollm2.use_adapters(adapters)
        return logits(smollm2, prompt)

    yield compute
    smollm2.use_adapters([])
    for number in (1, 2, 3):
        smollm2.free_adapter(number)


def test_a_set_is_used_as_a_whole_and_left_without_a_trace(of_set: Callable[..., bytes]) -> None:
    base = of_set()
    one = of_set((1, 1.0))
    half = of_set((1, 0.5))
    both = of_set((1, 1.0), (2, -0.75))
    assert len({base, one, half, both}) == 4
    assert of_set((1, 1.0)) == one
    assert of_set((1, 0.0)) == base
    assert of_set((1, 1.0), (2, 0.0)) == one
    assert of_set() == base


def test_two_are_added_up_in_one_order_and_the_same_file_twice_counts_twice(
    of_set: Callable[..., bytes], smollm2: Backend, tmp_path: Path
) -> None:
    assert of_set((1, 1.0), (2, 0.5)) == of_set((1, 1.0), (2, 0.5))
    smollm2.load_adapter(4, str(tmp_path / "1.gguf"), tried=True)
    twice = of_set((1, 0.5), (4, 0.5))
    assert twice not in (of_set(), of_set((1, 0.5)))
    smollm2.use_adapters([])
    smollm2.free_adapter(4)


def test_what_does_not_load_leaves_nothing(
    of_set: Callable[..., bytes], smollm2: Backend, tmp_path: Path
) -> None:
    base = of_set()
    other = write_lora(tmp_path / "other.gguf", architecture="gemma3")
    with pytest.raises(BackendError) as caught:
        smollm2.load_adapter(5, str(other), tried=True)
    assert caught.value.reason == "load_failed"
    assert "arch" in caught.value.detail
    with pytest.raises(BackendError, match="load_failed"):
        smollm2.load_adapter(5, str(tmp_path / "none.gguf"), tried=True)
    assert of_set() == base
