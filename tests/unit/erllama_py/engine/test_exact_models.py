"""Warm equals cold where it is hardest: beyond a sliding window, and with recurrent layers.

Through the whole core, by the best way each model allows: blocks, with a window's cells
pruned or all kept; whole rows where a sequence cannot be cut.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from erllama_py._cache.store import Cache
from erllama_py._engine.tokenbytes import unpack_tokens
from tests.models import gemma3_path, hybrid_path, mamba_path
from tests.owncore import OwnCore, own_core

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

MEMORY, FILES = 1 << 30, 1 << 30
CHUNK = 128
WORDS = ("the", "keeper", "of", "lamp", "and", "sea", "wrote", "storm", "night", "ship", "slowly")


# -- a sliding window of 512 ------------------------------------------------------------------


@pytest.mark.parametrize("swa_full", [False, True], ids=["pruned", "swa_full"])
def test_far_beyond_a_window_warm_equals_cold(swa_full: bool, tmp_path: Path) -> None:
    """4 000 tokens are eight windows, of which the pruned half keeps three."""
    config = {
        "model_path": gemma3_path(),
        "context_opts": {"n_ctx": 4608, "swa_full": swa_full, "n_threads": 1},
    }
    cache = Cache(MEMORY, promote=False)
    home = cache.add_tier("disk", "disk", tmp_path, FILES)
    with own_core(cache, home, **config) as core:
        assert core.host.info.blocks
        tokens = long_prompt(core)
        cold = core.cold(tokens, 8)
        first = core.run(tokens, 8)
        assert first.kind == "cold"
        assert first.said() == cold.said()  # alone, though at token

        exact = core.run(tokens, 8)
        assert (exact.kind, exact.prefix_len) == ("exact", len(tokens))
        assert exact.tokens == cold.tokens

        turn = [*tokens, *cold.tokens, *tokens[100:130]]
        other = core.cold(turn, 8)
        at_bit = core.run(turn, 8, bit=True)
        assert at_bit.kind == "partial"
        assert at_bit.prefix_len == len(tokens) // CHUNK * CHUNK
        assert at_bit.said() == other.said()
        assert core.run(turn, 8).tokens == other.tokens

        core.forget_memory()
        for again in (core.run(turn, 8, bit=True), core.run(turn, 8, bit=False)):
            assert (again.kind, again.tier) == ("exact", "disk")
            assert again.said() == other.said()


def long_prompt(core: OwnCore) -> list[int]:
    """Make words into tokens, a few more than 4 000."""
    text = " ".join(random.Random(3).choices(WORDS, k=4005))
    return unpack_tokens(core.host.call("tokenize", text.encode()))[:4005].tolist()


# -- states for layers ------------------------------------------------------------------------


@pytest.mark.parametrize("path", [mamba_path, hybrid_path], ids=["recurrent", "hybrid"])
def test_a_state_is_gone_on_from_exactly_and_after_a_restart(
    path: Callable[[], str], tmp_path: Path
) -> None:
    config = {"model_path": path(), "context_opts": {"n_ctx": 2048, "n_threads": 1}}
    chance = random.Random(5)
    even = [chance.randrange(3, 300) for _ in range(2 * CHUNK)]
    odd = [chance.randrange(3, 300) for _ in range(3 * CHUNK + 45)]
    branch = [*even, *odd[:70]]
    cache = Cache(MEMORY, promote=False)
    home = cache.add_tier("disk", "disk", tmp_path, FILES)
    with own_core(cache, home, **config) as core:
        assert core.host.info.whole_rows
        assert not core.host.info.blocks
        cold = {name: core.cold(prompt, 8) for name, prompt in (("even", even), ("odd", odd))}
        turn = [*odd, *cold["odd"].tokens, *even[:40]]
        cold |= {"turn": core.cold(turn, 8), "branch": core.cold(branch, 8)}
        for bit in (True, False):
            # Each computed by itself: what is at its end is a row of that prompt.
            for name, prompt in (("even", even), ("odd", odd)):
                first, again = (core.run(prompt, 8, bit=bit) for _ in range(2))
                assert first.kind == ("cold" if bit else "exact")
                assert (again.kind, again.prefix_len) == ("exact", len(prompt))
                assert first.said() == again.said() == cold[name].said()

        whole = core.run(branch, 8, bit=True)  # a state at a multiple of the chunk
        assert (whole.kind, whole.prefix_len, whole.exactness) == ("partial", len(even), "bit")
        assert whole.said() == cold["branch"].said()

        after = core.run(turn, 8)  # the state behind a reply
        assert (after.kind, after.prefix_len) == ("partial", len(odd) + 8)
        assert after.tokens == cold["turn"].tokens
        assert core.cache.flush(60)

    cache = Cache(MEMORY)
    home = cache.add_tier("disk", "disk", tmp_path, FILES)
    with own_core(cache, home, **config) as core:
        for name, prompt, bit in (
            ("odd", odd, True),
            ("branch", branch, True),
            ("turn", turn, False),
        ):
            warm = core.run(prompt, 8, bit=bit)
            assert (warm.kind, warm.prefix_len, warm.tier) == ("exact", len(prompt), "disk")
            assert warm.tokens == cold[name].tokens
            assert not bit or warm.said() == cold[name].said()
        other = [*even, *odd[90:130]]
        warm = core.run(other, 8, bit=True)
        assert (warm.kind, warm.prefix_len, warm.tier) == ("partial", len(even), "disk")
        assert warm.said() == core.cold(other, 8).said()
        assert core.cache.counters.snapshot()["corrupt_files"] == 0
