"""Exactness ``bit``: warm equals cold, logits and greedy tokens, bit for bit.

Each prompt's cold run is made once, in a model process that caches nothing of it.  Warm
runs are then compared with it in every way of being warm: exact repeats, extensions
with and without the reply, heads shared with an earlier prompt up to any token; from
memory, from files on tmpfs, from disk, and from disk in another process with another
cache after a restart.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from erllama_py._cache.store import Cache
from tests.models import gemma3_path, smollm2_path
from tests.owncore import OwnCore, Reply, own_core

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]

PROMPTS = 100
BRANCHES = 8
LONG = 576
REPLY = 4
MEMORY = 2 << 30
FILES = 4 << 30


class Case(NamedTuple):
    """A prompt, and what it has to say."""

    prompt: list[int]
    cold: Reply


@pytest.fixture(scope="module", params=[smollm2_path, gemma3_path], ids=["smollm2", "gemma3-swa"])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A model whose requests are all at ``bit``."""
    return {
        "model_path": request.param(),
        "context_opts": {"n_ctx": 2048, "n_threads": 1, "n_threads_batch": 2},
        "exactness": "bit",
    }


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """A new directory in memory."""
    with tempfile.TemporaryDirectory(prefix="erllama-test-", dir="/dev/shm") as path:
        yield Path(path)


class Cases(NamedTuple):
    """Asked in turn, each related to one before or to none; then branches of those."""

    turns: list[Case]
    branches: tuple[list[Case], list[Case]]
    """Two lots: in each place, the first time they are asked is the only one."""


@pytest.fixture(scope="module")
def cases(config: dict[str, Any]) -> Cases:
    """Prompts with their cold runs."""
    chance = random.Random(241)
    turns: list[Case] = []
    with own_core(Cache(0), **config) as core:

        def case(prompt: list[int]) -> Case:
            return Case(prompt, core.cold(prompt, REPLY))

        while len(turns) < PROMPTS:
            turns.append(case(next_prompt(chance, turns)))
        stems = [turn.prompt for turn in turns if len(turn.prompt) >= 250]
        branches = [case(next_branch(chance, stems)) for _ in range(2 * BRANCHES)]
    return Cases(turns, (branches[:BRANCHES], branches[BRANCHES:]))


def next_prompt(chance: random.Random, earlier: list[Case]) -> list[int]:
    """Make a prompt of 20 tokens or more, related to an earlier one or to none.

    Most are short; every 25th, and so what builds on it, is longer than a window.
    """
    length = LONG if len(earlier) % 25 == 24 else round(20 * 40 ** chance.random() ** 4)
    fresh = [chance.randrange(300, 20_000) for _ in range(length)]
    if not earlier or length == LONG:
        return fresh
    model = max(chance.choice(earlier), chance.choice(earlier), key=lambda one: len(one.prompt))
    match chance.randrange(4):
        case 0:
            prompt = model.prompt
        case 1:
            prompt = model.prompt + model.cold.tokens + fresh[:24]
        case 2:
            prompt = model.prompt[: chance.randrange(1, len(model.prompt) + 1)] + fresh[:40]
        case _:
            prompt = fresh
    return (prompt + fresh)[: max(20, len(prompt))]


def next_branch(chance: random.Random, stems: list[list[int]]) -> list[int]:
    """Make a prompt that leaves another behind the first chunk, at any token."""
    stem = stems[chance.randrange(len(stems))]
    return stem[: chance.randrange(140, 250)] + [chance.randrange(300, 20_000) for _ in range(20)]


def check_all(core: OwnCore, cases: list[Case]) -> Counter[tuple[str, str]]:
    """Compare every case; return how many hits there were by kind and tier."""
    hits: Counter[tuple[str, str]] = Counter()
    for case in cases:
        warm = core.run(case.prompt, REPLY)
        assert warm.said() == case.cold.said(), (warm, len(case.prompt))
        assert warm.exactness == (None if warm.kind == "cold" else "bit")
        hits[warm.kind, warm.tier or "none"] += 1
    assert core.cache.counters.snapshot()["corrupt_files"] == 0
    return hits


def check_in_memory(core: OwnCore, cases: Cases) -> None:
    """Compare every case as it comes, and leave it all in files only.

    A comparison means something only if the warm side was warm in every way.
    """
    hits = check_all(core, cases.turns)
    assert {tier for _, tier in hits} == {"ram", "none"}
    assert hits["exact", "ram"] >= 20
    assert hits["partial", "ram"] >= 5
    assert hits["cold", "none"] >= 20
    core.forget_memory()


def check_in_files(core: OwnCore, cases: Cases, lot: int, tier: str) -> None:
    """Compare every case again, and a lot of branches before.

    Nearly all cases are exact now: of a branch's rows, the newest four keep their logits.
    What promotion brought into memory is found there the next time.
    """
    hits = check_all(core, cases.branches[lot])
    assert hits["partial", tier] >= 3
    assert hits["partial", tier] + hits["partial", "ram"] >= BRANCHES * 0.75
    hits = check_all(core, cases.turns)
    assert hits["exact", tier] >= PROMPTS * 0.6
    assert hits["exact", tier] + hits["exact", "ram"] >= PROMPTS * 0.9


def test_from_memory_and_from_files_on_tmpfs(
    config: dict[str, Any], cases: Cases, tmpfs: Path
) -> None:
    cache = Cache(MEMORY, promote=False)
    home = cache.add_tier("ram_file", "tmpfs", tmpfs, FILES)
    with own_core(cache, home, **config) as core:
        check_in_memory(core, cases)
        check_in_files(core, cases, 0, "ram_file")


def test_from_disk_and_from_disk_after_a_restart(
    config: dict[str, Any], cases: Cases, tmp_path: Path
) -> None:
    cache = Cache(MEMORY, promote=False)
    home = cache.add_tier("disk", "disk", tmp_path, FILES)
    with own_core(cache, home, **config) as core:
        check_in_memory(core, cases)
        check_in_files(core, cases, 0, "disk")
    cache = Cache(MEMORY)
    home = cache.add_tier("disk", "disk", tmp_path, FILES)
    with own_core(cache, home, **config) as core:
        check_in_files(core, cases, 1, "disk")
        # What was restored from there has been read into memory.
        assert core.cache.flush(60)
        assert check_all(core, cases.turns)["exact", "ram"] >= PROMPTS * 0.9
