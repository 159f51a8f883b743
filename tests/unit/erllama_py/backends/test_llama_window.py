"""A sliding window of 512, far beyond it: what blocks hold when the live cells are gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from erllama_py._backends import open_backend
from erllama_py._backends.base import BLOCK, Backend, BackendConfig, ContextOptions, Row
from tests.backends import CHUNK, logits, pack, prefill, prompt, unpack
from tests.models import gemma3_path

pytestmark = pytest.mark.model

N_SWA = 512
LENGTHS = {"pruned": 32 * CHUNK + BLOCK, "swa_full": 21 * CHUNK + BLOCK}
"""Ends with half a slice; the second shows the difference, for half of the time."""


class Run(NamedTuple):
    """A long prompt computed once, its blocks captured as they were."""

    backend: Backend
    tokens: list[int]
    blocks: dict[int, bytes]
    ends: dict[int, bytes]
    """The logits at the end of each slice."""
    live_cuts: list[bool]
    """What truncate answered, of the live sequence, to 60 tokens less and then to 1000."""
    lost: bool
    """Whether the live sequence's first block could no longer be packed."""


def opened(**options: Any) -> Backend:
    context = ContextOptions(**{"n_ctx": 4608, "n_seq_max": 1, **options})
    return open_backend(BackendConfig("llama", model_path=gemma3_path(), context=context))


@pytest.fixture(scope="module", params=list(LENGTHS))
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    backend = opened(swa_full=request.param == "swa_full")
    length = LENGTHS[request.param]
    tokens = prompt(backend, length)
    blocks, ends = {}, {}
    for at in range(0, length, CHUNK):
        end = min(at + CHUNK, length)
        ends[end] = prefill(backend, tokens, at, end)
        for start in range(at, end, BLOCK):
            blocks[start] = pack(backend, start, start + BLOCK)
    lost = backend.packed_size(0, 0, BLOCK) == 0
    cuts = [backend.truncate(0, length - 60), backend.truncate(0, 1000)]
    yield Run(backend, tokens, blocks, ends, cuts, lost)
    backend.close()


def pruned(run: Run) -> bool:
    return run.backend.info.identity["window_cells"] != "all"


def restored(run: Run, length: int) -> Backend:
    run.backend.clear(0)
    unpack(run.backend, run.blocks, length)
    assert run.backend.length(0) == length
    return run.backend


@pytest.mark.parametrize("length", [1024, 2560, -BLOCK])
def test_restored_blocks_continue_bit_for_bit_beyond_the_window(run: Run, length: int) -> None:
    length %= len(run.tokens)
    backend = restored(run, length)
    end = min(length + CHUNK, len(run.tokens))
    assert prefill(backend, run.tokens, length, end) == run.ends[end]


def test_everything_restores_and_packs_to_the_same_bytes(run: Run) -> None:
    length = len(run.tokens)
    backend = restored(run, length)
    for start in (length - N_SWA, length - BLOCK):
        assert pack(backend, start, start + BLOCK) == run.blocks[start]


def test_a_live_sequence_says_which_cuts_it_can_bear(run: Run) -> None:
    assert run.lost == pruned(run)
    assert run.live_cuts == [True, not pruned(run)]


@pytest.mark.parametrize("length", [2559, 2450])
def test_a_cut_near_the_end_continues_like_a_live_cut(run: Run, length: int) -> None:
    """Of a sequence whose last blocks were computed here, and not restored."""
    backend = restored(run, 2560 - CHUNK)
    assert prefill(backend, run.tokens, 2560 - CHUNK, 2560) == run.ends[2560]
    assert backend.truncate(0, length)
    live = prefill(backend, run.tokens, length, 2570)
    restored(run, 2560)
    assert backend.truncate(0, length)
    assert prefill(backend, run.tokens, length, 2570) == live


@pytest.mark.parametrize("length", [1530, 1030, 700, 3])
def test_a_cut_into_lost_cells_is_answered_false(run: Run, length: int) -> None:
    """The restore itself reuses cells: 2560 tokens keep their last 1536 of the window's half."""
    backend = restored(run, 2560)
    assert backend.truncate(0, length) == (not pruned(run))
    backend.clear(0)
    assert backend.length(0) == 0
    backend = restored(run, 512)
    assert backend.length(0) == 512


def test_blocks_captured_while_decoding_past_the_window_restore_right() -> None:
    """Every cell of the last window was decoded, and cells were reused on the way."""
    backend = opened(n_ctx=2048)
    start, end = 1024, 1024 + N_SWA + 2 * BLOCK
    assert int(backend.info.identity["window_cells"]) < end
    tokens = prompt(backend, end + 10)
    blocks = {}
    for at in range(0, start, CHUNK):
        prefill(backend, tokens, at, at + CHUNK)
        for block in (at, at + BLOCK):
            blocks[block] = pack(backend, block, block + BLOCK)
    for pos in range(start, end):
        backend.step([Row(0, pos, tokens[pos : pos + 1], logits=False)])
        if (pos + 1) % BLOCK == 0:
            blocks[pos + 1 - BLOCK] = pack(backend, pos + 1 - BLOCK, pos + 1)
    live = decoded(backend, tokens, end)
    for length in (end, end - BLOCK):
        backend.clear(0)
        unpack(backend, blocks, length)
        for pos in range(length, end):
            backend.step([Row(0, pos, tokens[pos : pos + 1], logits=False)])
        assert decoded(backend, tokens, end) == live
    backend.close()


def decoded(backend: Backend, tokens: list[int], start: int) -> list[bytes]:
    """Decode what is left of the tokens one by one; return the logits of each."""
    found = []
    for pos in range(start, len(tokens)):
        backend.step([Row(0, pos, tokens[pos : pos + 1], logits=True)])
        found.append(logits(backend))
    return found


def test_cells_of_the_window_are_in_the_identity_where_they_are_reused() -> None:
    """Reused, they stand in another order, and sums in another order have other bits."""
    for options, cells in (
        ({"n_ctx": 2048}, "1536"),
        ({"n_ctx": 4096, "n_ubatch": 256}, "1280"),
        ({"n_ctx": 2048, "n_seq_max": 2}, "all"),
        ({"n_ctx": 4096, "swa_full": True}, "all"),
    ):
        backend = opened(**options)
        assert backend.info.identity["window_cells"] == cells
        backend.close()


def test_the_window_keeps_as_many_cells_as_the_identity_says() -> None:
    backend: Any = opened(n_ctx=2048, n_ubatch=128, n_batch=128)
    prefill(backend, prompt(backend, 1536), 0, 1536)
    lowest, highest = backend._memory._span(0)
    assert highest - lowest + 1 == int(backend.info.identity["window_cells"]) == 1280
    backend.close()
