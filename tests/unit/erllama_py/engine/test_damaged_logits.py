"""A row whose logits are damaged: they are computed again, as exactly as was promised."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from erllama_py._cache.store import Cache
from tests.models import smollm2_path
from tests.owncore import OwnCore, own_core

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

CHUNK = 128


@pytest.fixture(scope="module")
def core() -> Iterator[OwnCore]:
    threads = {"n_threads": 1, "n_threads_batch": 2}
    config = {"model_path": smollm2_path(), "context_opts": {"n_ctx": 1024, **threads}}
    with own_core(Cache(1 << 30), **config) as core:
        yield core


def damage(core: OwnCore, tokens: list[int]) -> None:
    """Change a byte of the logits of the row of exactly these tokens."""
    namespace = core.host.cache.namespace
    assert namespace is not None
    (row,) = (one for one in namespace.space.rows.values() if one.length == len(tokens))
    assert row.logits is not None
    core.cache.view(row.logits.extent)[5] ^= 1


def prompt(length: int) -> list[int]:
    chance = random.Random(length)
    return [chance.randrange(300, 20_000) for _ in range(length)]


@pytest.mark.parametrize("length", [100, 200, 330])
def test_at_bit_the_last_cut_is_computed_again_and_not_only_the_last_token(
    core: OwnCore, length: int
) -> None:
    cold = core.cold(prompt(length), 3)
    core.run(prompt(length), 3, bit=True)
    damage(core, prompt(length))
    warm = core.run(prompt(length), 3, bit=True)
    assert warm.said() == cold.said()
    assert warm.prefix_len == length // CHUNK * CHUNK
    assert warm.exactness == ("bit" if length > CHUNK else None)


def test_at_token_the_last_token_is_decoded_again_and_that_is_not_called_bit(
    core: OwnCore,
) -> None:
    core.run(prompt(300), 3, bit=True)
    assert core.run(prompt(300), 3).exactness == "bit"
    damage(core, prompt(300))
    warm = core.run(prompt(300), 3)
    assert (warm.kind, warm.prefix_len, warm.exactness) == ("exact", 300, "token")


@pytest.mark.parametrize("bit", [False, True])
def test_they_are_counted_once_and_the_row_gets_new_ones(core: OwnCore, bit: bool) -> None:
    before = core.cache.counters.snapshot()["corrupt_files"]
    core.run(prompt(270), 3, bit=True)
    damage(core, prompt(270))
    core.run(prompt(270), 3, bit=bit)
    again = core.run(prompt(270), 3, bit=bit)
    assert (again.kind, again.prefix_len) == ("exact", 270)
    assert core.cache.counters.snapshot()["corrupt_files"] == before + 1
