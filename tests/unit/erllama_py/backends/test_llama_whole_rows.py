"""Recurrent and hybrid models: sequences packed whole, restored at their exact length."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as native
import pytest

from erllama_py._backends import llama as llama_module
from erllama_py._backends import open_backend
from erllama_py._backends.base import (
    Backend,
    BackendConfig,
    BackendError,
    ContextOptions,
    NoSlot,
    RestoreFailed,
    Row,
    StepFailed,
)
from erllama_py._backends.selftest import Verdict
from tests.backends import CHUNK, logits, prefill, prompt
from tests.models import hybrid_path, mamba_path

pytestmark = pytest.mark.model

PATHS = {"recurrent": mamba_path, "hybrid": hybrid_path}


def opened(kind: str, **options: Any) -> Backend:
    context = ContextOptions(**{"n_ctx": 1024, "n_seq_max": 4, **options})
    return open_backend(BackendConfig("llama", model_path=PATHS[kind](), context=context))


@pytest.fixture(params=list(PATHS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backend(kind: str) -> Iterator[Backend]:
    backend = opened(kind)
    yield backend
    backend.close()


def packed(backend: Backend, length: int, seq: int = 0) -> bytes:
    out = bytearray(backend.packed_size(seq, 0, length))
    assert backend.pack(seq, 0, length, memoryview(out)) == len(out) > 0
    return bytes(out)


def test_a_load_tests_whole_rows_and_leaves_the_context_empty(kind: str, backend: Backend) -> None:
    info = backend.info
    assert (info.blocks, info.block_bytes, info.whole_rows) == (False, 0, True)
    assert info.blocks_why_not.startswith(f"{kind} models keep")
    assert [backend.length(seq) for seq in range(4)] == [0, 0, 0, 0]


def test_no_state_is_reserved_for_a_scratch_sequence(backend: Any) -> None:
    assert native.llama_n_seq_max(backend._context) == backend.info.n_seq_max == 4
    rows = [Row(seq, 0, [seq + 5], logits=True) for seq in range(4)]
    backend.step(rows)
    assert len({logits(backend, row) for row in range(4)}) == 4


@pytest.mark.parametrize("length", [1, 63, 128, 300])
def test_a_restored_row_continues_bit_for_bit(backend: Backend, length: int) -> None:
    tokens = prompt(backend, length + 150)
    prefill(backend, tokens, 0, length)
    row = packed(backend, length)
    straight = prefill(backend, tokens, length, len(tokens))
    end = packed(backend, len(tokens))
    backend.clear(0)
    prefill(backend, tokens[::-1], 0, 200)  # the engine does not wipe what it clears
    backend.clear(0)
    backend.unpack(2, 0, length, memoryview(row).toreadonly())
    assert backend.length(2) == length
    assert packed(backend, length, seq=2) == row
    assert prefill(backend, tokens, length, len(tokens), seq=2) == straight
    assert packed(backend, len(tokens), seq=2) == end


def test_a_row_captured_while_decoding_continues_bit_for_bit(backend: Backend) -> None:
    tokens = prompt(backend, 120)
    prefill(backend, tokens, 0, 40)
    rows = {}
    for at in range(40, 120):
        rows[at] = packed(backend, at)
        backend.step([Row(0, at, tokens[at : at + 1], logits=True)])
    straight = logits(backend)
    for at in (40, 41, 77, 119):
        backend.clear(0)
        backend.unpack(0, 0, at, memoryview(rows[at]))
        for pos in range(at, 120):
            backend.step([Row(0, pos, tokens[pos : pos + 1], logits=True)])
        assert logits(backend) == straight


def test_only_the_whole_sequence_is_packed(backend: Backend) -> None:
    prefill(backend, prompt(backend, 50), 0, 50)
    size = backend.packed_size(0, 0, 50)
    out = memoryview(bytearray(size))
    for seq, start, end in ((0, 0, 49), (0, 0, 51), (0, 1, 50), (0, 0, 0), (1, 0, 50)):
        assert backend.packed_size(seq, start, end) == 0
        assert backend.pack(seq, start, end, out) == 0
    assert backend.pack(0, 0, 50, out[1:]) == 0
    with pytest.raises(BackendError, match="read-only"):
        backend.pack(0, 0, 50, out.toreadonly())
    assert backend.pack(0, 0, 50, out) == size


def test_a_sequence_is_cut_to_nothing_or_not_at_all(backend: Backend) -> None:
    """And a cut that was refused leaves it as it was."""
    prefill(backend, prompt(backend, 50), 0, 50)
    row = packed(backend, 50)
    for length in (51, 49, 25, 1):
        assert not backend.truncate(0, length)
    assert backend.truncate(0, 50)
    assert packed(backend, 50) == row
    assert backend.truncate(0, 0)
    assert backend.length(0) == 0
    assert backend.truncate(1, 0)
    prefill(backend, prompt(backend, 50), 0, 50)
    assert packed(backend, 50) == row


def test_a_row_goes_only_where_it_belongs(backend: Backend) -> None:
    tokens = prompt(backend, 80)
    prefill(backend, tokens, 0, 50)
    row = memoryview(packed(backend, 50))
    for seq, start, end, data in (
        (1, 0, 49, row),
        (1, 0, 51, row),
        (1, 0, 50, row[:-1]),
        (1, 0, 50, memoryview(row.tobytes() + b"\0")),
        (1, 50, 100, row),
        (1, 0, 0, row),
        (0, 0, 50, row),
        (0, 50, 100, row),
    ):
        with pytest.raises(RestoreFailed):
            backend.unpack(seq, start, end, data)
    assert [backend.length(seq) for seq in range(4)] == [50, 0, 0, 0]
    straight = prefill(backend, tokens, 50, 80)
    backend.clear(0)
    backend.unpack(1, 0, 50, row)
    assert prefill(backend, tokens, 50, 80, seq=1) == straight


def test_states_of_neighbours_are_never_mixed_up(backend: Backend) -> None:
    """The engine moves states about so that those of a batch stand together."""
    rng = random.Random(3)
    tokens = prompt(backend, 400)
    lengths = [0, 0, 0, 0]
    rows: dict[int, bytes] = {}
    for _ in range(60):
        chosen = rng.sample(range(4), rng.randrange(1, 4))
        for seq in set(range(4)) - set(chosen):
            if seq in rows:
                assert packed(backend, lengths[seq], seq) == rows[seq]
        if rng.random() < 0.3:  # to another sequence and back in
            seq = chosen[0]
            backend.clear(seq)
            if seq in rows:
                backend.unpack(seq, 0, lengths[seq], memoryview(rows[seq]))
        step = []
        for seq in chosen:
            count = rng.choice((1, 1, 2, 5))
            step.append(Row(seq, lengths[seq], tokens[lengths[seq] :][:count], logits=True))
        backend.step(step)
        for row in step:
            lengths[row.seq] += len(row.tokens)
            rows[row.seq] = packed(backend, lengths[row.seq], row.seq)
    assert sorted(rows) == [0, 1, 2, 3]


def test_the_same_tokens_give_the_same_row_in_every_context(kind: str) -> None:
    """With the same cuts: n_ctx, slots, n_batch and swa_full are not in the identity."""
    rows = []
    for options in (
        {},
        {"n_ctx": 512, "n_seq_max": 1},
        {"n_seq_max": 17, "n_batch": CHUNK},
        {"n_ctx": 4096, "swa_full": True, "n_ubatch": 256},
    ):
        backend = opened(kind, **options)
        tokens = prompt(backend, 340)
        seq = backend.info.n_seq_max - 1
        prefill(backend, tokens, 0, 300, seq)
        rows.append(packed(backend, 300, seq))
        straight = prefill(backend, tokens, 300, 340, seq)
        backend.clear(seq)
        backend.unpack(0, 0, 300, memoryview(rows[0]))
        assert prefill(backend, tokens, 300, 340) == straight
        backend.close()
    assert len(set(rows)) == 1


def test_rows_of_other_contexts_are_refused_where_they_cannot_be_right() -> None:
    rows = {}
    for name, options in {
        "f16": {},
        "q8": {"type_k": "q8_0", "type_v": "q8_0"},
        "bf16": {"type_k": "bf16", "type_v": "bf16"},  # of the same size
        "no flash attention": {"flash_attn": "false"},
    }.items():
        backend = opened("hybrid", **options)
        prefill(backend, prompt(backend, 300), 0, 300)
        rows[name] = packed(backend, 300)
        backend.close()
    small = opened("hybrid", n_ctx=256)
    with pytest.raises(RestoreFailed, match="no room"):
        small.unpack(0, 0, 300, memoryview(rows["f16"]))
    prefill(small, prompt(small, 256), 0, 256)
    small.close()
    backend = opened("hybrid")
    for name, row in rows.items():
        if name != "f16":
            with pytest.raises(RestoreFailed):
                backend.unpack(1, 0, 300, memoryview(row))
        assert backend.length(1) == 0
    backend.unpack(1, 0, 300, memoryview(rows["f16"]))
    backend.close()


def test_without_free_cells_nothing_changes() -> None:
    backend = opened("hybrid", n_ctx=256, n_seq_max=2)
    tokens = prompt(backend, 256)
    prefill(backend, tokens, 0, 100)
    row = packed(backend, 100)
    prefill(backend, tokens, 0, 100, seq=1)
    other = packed(backend, 100, seq=1)
    with pytest.raises(NoSlot):
        backend.step([Row(0, 100, tokens[100:200], logits=True)])
    assert [backend.length(seq) for seq in (0, 1)] == [100, 100]
    assert (packed(backend, 100), packed(backend, 100, seq=1)) == (row, other)
    backend.clear(1)
    after = prefill(backend, tokens, 100, 200)
    backend.clear(0)
    prefill(backend, tokens, 0, 100)
    assert prefill(backend, tokens, 100, 200) == after
    with pytest.raises(RestoreFailed, match="no room"):
        backend.unpack(1, 0, 100, memoryview(row))
    assert backend.length(1) == 0
    assert backend.length(0) == 200
    backend.close()


def test_a_failed_step_leaves_no_half_computed_state(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine could not take it back: it would report a length, and mean another."""
    tokens = prompt(backend, 60)
    prefill(backend, tokens, 0, 50, seq=1)
    row = packed(backend, 50, seq=1)
    straight = prefill(backend, tokens, 0, 50)

    def failing(context: Any, batch: Any) -> int:
        decode(context, batch)
        return -3

    decode = native.llama_decode
    monkeypatch.setattr(llama_module.native, "llama_decode", failing)
    with pytest.raises(StepFailed, match="-3"):
        backend.step([Row(0, 50, tokens[50:], logits=True)])
    monkeypatch.undo()
    assert backend.length(0) == 0
    assert packed(backend, 50, seq=1) == row
    assert prefill(backend, tokens, 0, 50) == straight


def test_a_model_that_fails_both_tests_says_so_in_a_sentence(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_module, "check_whole_rows", lambda _: Verdict("made to fail"))
    backend = opened(kind)
    assert (backend.info.blocks, backend.info.whole_rows) == (False, False)
    assert backend.info.blocks_why_not.startswith(f"{kind} models keep")
    assert backend.info.blocks_why_not.endswith("; made to fail")
    assert prefill(backend, prompt(backend, 20), 0, 20)
    backend.close()


DAMAGE = """
import struct
import sys
from erllama_py._backends import open_backend
from erllama_py._backends.base import BackendConfig, ContextOptions, RestoreFailed
from tests.backends import prefill, prompt

path, head, length = sys.argv[1], int(sys.argv[2]), 40
context = ContextOptions(n_ctx=256, n_seq_max=2)
backend = open_backend(BackendConfig("llama", model_path=path, context=context))
tokens = prompt(backend, 60)
prefill(backend, tokens, 0, length)
good = bytearray(backend.packed_size(0, 0, length))
backend.pack(0, 0, length, memoryview(good))
straight = prefill(backend, tokens, length, 60)
backend.clear(0)
state = good.index(struct.pack("<IiI", 1, length - 1, 0))
for at in sorted({*range(head), *range(state, state + 32)}):
    for bit in range(8):
        bad = bytearray(good)
        bad[at] ^= 1 << bit
        try:
            backend.unpack(0, 0, length, memoryview(bad))
            assert 4 <= at < 8, f"accepted with bit {bit} of byte {at} flipped"
        except RestoreFailed:
            assert backend.length(0) == 0
        backend.clear(0)
    again = bytearray(len(good))
    prefill(backend, tokens, 0, length)
    backend.pack(0, 0, length, memoryview(again))
    assert again == good, f"byte {at} left something behind"
    backend.clear(0)
    backend.unpack(1, 0, length, memoryview(good))
    assert prefill(backend, tokens, length, 60, seq=1) == straight
    backend.clear(1)
print("survived")
"""


def test_a_damaged_head_neither_ends_the_process_nor_stays_behind(kind: str) -> None:
    """A negative position could not be removed: later sequences would begin with the state.

    Flipped are the first bytes of the row, with the table of 40 cells where there are cells,
    and the record of the state.  Only the sequence's number may differ.
    """
    heads = {"recurrent": 40, "hybrid": 16 + 12 * 40}
    done = subprocess.run(
        [sys.executable, "-c", DAMAGE, PATHS[kind](), str(heads[kind])],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "survived\n", done.stderr[-2000:]
