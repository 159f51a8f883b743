"""Parts of a sequence, packed and restored, on real models."""

from __future__ import annotations

import mmap
import random

import pytest

from erllama_py._backends import llama as llama_module
from erllama_py._backends import open_backend
from erllama_py._backends.base import (
    BLOCK,
    Backend,
    BackendConfig,
    BackendError,
    ContextOptions,
    RestoreFailed,
)
from erllama_py._backends.selftest import Verdict
from tests.backends import CHUNK, pack, prefill, prefill_and_capture, prompt, unpack
from tests.models import smollm2_path

pytestmark = pytest.mark.model


def test_every_load_tests_blocks_and_leaves_the_context_empty(llama: Backend) -> None:
    assert llama.info.blocks
    assert llama.info.blocks_why_not == ""
    assert [llama.length(seq) for seq in range(llama.info.n_seq_max)] == [0, 0, 0, 0]
    prefill(llama, prompt(llama, BLOCK), 0, BLOCK)
    assert llama.packed_size(0, 0, BLOCK) == llama.info.block_bytes


@pytest.mark.parametrize(
    ("model", "length", "prefixes"),
    [("smollm2", 300, (64, 256)), ("narrow_gemma3", 1500, (1088, 1408))],
)
def test_a_restored_prefix_continues_bit_for_bit(
    request: pytest.FixtureRequest, model: str, length: int, prefixes: tuple[int, ...]
) -> None:
    """On Gemma the live sequence has by then lost its first blocks to the sliding window."""
    backend: Backend = request.getfixturevalue(model)
    tokens = prompt(backend, length)
    cold = prefill(backend, tokens, 0, length)
    pruned = backend.packed_size(0, 0, BLOCK) == 0
    assert pruned == (length > backend.info.n_swa > 0)
    backend.clear(0)
    blocks, captured = prefill_and_capture(backend, tokens)
    assert captured == cold, "capturing disturbs the run"
    for prefix in prefixes:
        backend.clear(0)
        unpack(backend, blocks, prefix)
        assert backend.length(0) == prefix
        assert prefill(backend, tokens, prefix, length) == cold


def test_a_cut_inside_a_restored_block_continues_like_a_live_cut(llama: Backend) -> None:
    tokens = prompt(llama, 300)
    blocks, _ = prefill_and_capture(llama, tokens[:256])
    assert llama.truncate(0, 203)
    straight = prefill(llama, tokens, 203, 300)
    llama.clear(0)
    unpack(llama, blocks, 256)
    assert llama.truncate(0, 203)
    assert llama.length(0) == 203
    assert prefill(llama, tokens, 203, 300) == straight


def test_a_pruned_window_is_neither_packed_nor_cut_into(narrow_gemma3: Backend) -> None:
    """The engine's own call answers true to every one of these cuts."""
    prefill(narrow_gemma3, prompt(narrow_gemma3, 1400), 0, 1400)
    out = memoryview(bytearray(narrow_gemma3.info.block_bytes))
    assert narrow_gemma3.pack(0, 0, BLOCK, out) == 0
    assert narrow_gemma3.packed_size(0, 0, BLOCK) == 0
    assert narrow_gemma3.pack(0, 1400 - BLOCK, 1400, out) == narrow_gemma3.info.block_bytes
    assert narrow_gemma3.truncate(0, 1400)
    assert narrow_gemma3.truncate(0, 1390)
    assert not narrow_gemma3.truncate(0, 500)
    narrow_gemma3.clear(0)
    assert narrow_gemma3.length(0) == 0


def test_truncate_answers_for_lengths_the_sequence_does_not_have(smollm2: Backend) -> None:
    prefill(smollm2, prompt(smollm2, 20), 0, 20)
    assert not smollm2.truncate(0, 21)
    assert smollm2.truncate(0, 20)
    assert smollm2.truncate(0, 0)
    assert smollm2.length(0) == 0


def test_parts_go_to_and_from_mapped_memory(llama: Backend) -> None:
    tokens = prompt(llama, 2 * BLOCK + 9)
    whole = 2 * llama.info.block_bytes
    with mmap.mmap(-1, whole + 100) as segment:
        view = memoryview(segment)
        prefill(llama, tokens, 0, CHUNK)
        first = llama.pack(0, 0, BLOCK, view[100:])
        second = llama.pack(0, BLOCK, 2 * BLOCK, view[100 + first :])
        straight = prefill(llama, tokens, CHUNK, len(tokens))
        llama.unpack(2, 0, BLOCK, view[100 : 100 + first].toreadonly())
        llama.unpack(2, BLOCK, 2 * BLOCK, view[100 + first : 100 + first + second])
        llama.clear(0)
        assert prefill(llama, tokens, CHUNK, len(tokens), seq=2) != b""
        llama.clear(2)
        llama.unpack(1, 0, BLOCK, view[100 : 100 + first])
        llama.unpack(1, BLOCK, 2 * BLOCK, view[100 + first : 100 + first + second])
        assert prefill(llama, tokens, CHUNK, len(tokens), seq=1) == straight
        view.release()  # fails if the backend still held on to the segment


def test_pack_answers_zero_for_small_buffers_and_missing_cells(smollm2: Backend) -> None:
    prefill(smollm2, prompt(smollm2, BLOCK), 0, BLOCK)
    size = smollm2.info.block_bytes
    assert smollm2.pack(0, 0, BLOCK, memoryview(bytearray(size - 1))) == 0
    for start, end in ((0, BLOCK + 1), (BLOCK, BLOCK), (10, 5), (-1, 5)):
        assert smollm2.pack(0, start, end, memoryview(bytearray(size * 2))) == 0
    assert smollm2.pack(1, 0, BLOCK, memoryview(bytearray(size))) == 0
    with pytest.raises(BackendError, match="read-only"):
        smollm2.pack(0, 0, BLOCK, memoryview(bytes(size)))
    assert smollm2.pack(0, 0, BLOCK, memoryview(bytearray(size))) == size


def test_a_part_goes_only_where_it_belongs(smollm2: Backend) -> None:
    blocks, _ = prefill_and_capture(smollm2, prompt(smollm2, CHUNK))
    first, second = memoryview(blocks[0]), memoryview(blocks[BLOCK])
    for start, end, data, why in (
        (0, BLOCK, first[:-1], "1476071 bytes for 64 tokens, not 1476072"),
        (0, 2 * BLOCK, first, "bytes for 128 tokens"),
        (0, BLOCK, second, "not of tokens 0 to 64"),
        (BLOCK, 2 * BLOCK, second, "of 0 tokens"),
        (5, 5, first, "part 5 to 5"),
    ):
        with pytest.raises(RestoreFailed, match=why):
            smollm2.unpack(1, start, end, data)
    assert smollm2.length(1) == 0
    with pytest.raises(BackendError, match="no sequence"):
        smollm2.length(smollm2.info.n_seq_max)


def test_damaged_positions_never_reach_the_engine(llama: Backend) -> None:
    """The engine would store them, and a negative one could not be removed again."""
    tokens = prompt(llama, CHUNK + 5)
    blocks, _ = prefill_and_capture(llama, tokens[:CHUNK])
    straight = prefill(llama, tokens, CHUNK, CHUNK + 5)
    llama.clear(0)
    rng = random.Random(7)
    tables = 8 + 8 + 12 * BLOCK  # head, streams and cells, then a record for each cell
    for _ in range(40):
        bad = bytearray(blocks[0])
        bad[rng.randrange(16, tables)] ^= 1 << rng.randrange(8)
        with pytest.raises(RestoreFailed, match="damaged"):
            llama.unpack(0, 0, BLOCK, memoryview(bad))
    for at in (0, 8, 12, tables, tables + 4, tables + 8, tables + 12):
        bad = bytearray(blocks[0])
        bad[at] ^= 64
        with pytest.raises(RestoreFailed, match=r"refused|the engine took"):
            llama.unpack(0, 0, BLOCK, memoryview(bad))
    assert llama.length(0) == 0
    unpack(llama, blocks, CHUNK)
    assert prefill(llama, tokens, CHUNK, CHUNK + 5) == straight


def test_a_restore_without_free_cells_is_refused_and_changes_nothing(gemma3: Backend) -> None:
    tokens = prompt(gemma3, 512)
    prefill(gemma3, tokens, 0, BLOCK)
    block = pack(gemma3, 0, BLOCK)
    prefill(gemma3, tokens, BLOCK, gemma3.info.n_ctx - BLOCK + 1)
    with pytest.raises(RestoreFailed, match="no room"):
        gemma3.unpack(3, 0, BLOCK, memoryview(block))
    assert gemma3.length(3) == 0
    assert gemma3.length(0) == gemma3.info.n_ctx - BLOCK + 1
    gemma3.clear(0)
    gemma3.unpack(3, 0, BLOCK, memoryview(block))
    assert pack(gemma3, 0, BLOCK, seq=3) == block


def test_the_same_tokens_give_the_same_bytes_in_every_context(smollm2: Backend) -> None:
    """Whatever the sequence, the number of slots, the batch size and the context's."""
    tokens = prompt(smollm2, BLOCK)
    prefill(smollm2, tokens, 0, BLOCK)
    block = pack(smollm2, 0, BLOCK)
    smollm2.clear(0)
    prefill(smollm2, tokens, 0, BLOCK, seq=2)
    assert pack(smollm2, 0, BLOCK, seq=2) == block
    options = ContextOptions(n_ctx=256, n_seq_max=17, n_batch=64, n_ubatch=64)
    other = open_backend(BackendConfig("llama", model_path=smollm2_path(), context=options))
    try:
        prefill(other, tokens, 0, BLOCK, seq=16)
        assert pack(other, 0, BLOCK, seq=16) == block
        other.clear(16)
        other.unpack(3, 0, BLOCK, memoryview(block))
        assert pack(other, 0, BLOCK, seq=3) == block
    finally:
        other.close()


def test_without_blocks_whole_sequences_are_packed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What recurrent models get, shown on one that would not need it."""
    monkeypatch.setattr(llama_module, "check_blocks", lambda _: Verdict("made to fail here"))
    options = ContextOptions(n_ctx=256, n_seq_max=2)
    backend = open_backend(BackendConfig("llama", model_path=smollm2_path(), context=options))
    assert (backend.info.blocks, backend.info.block_bytes) == (False, 0)
    assert backend.info.blocks_why_not == "made to fail here"
    tokens = prompt(backend, 60)
    prefill(backend, tokens, 0, 50)
    out = memoryview(bytearray(backend.packed_size(0, 0, 50)))
    assert backend.pack(0, 0, 50, out) == out.nbytes > 0
    assert backend.pack(0, 0, 49, out) == backend.pack(0, 10, 50, out) == 0
    straight = prefill(backend, tokens, 50, 60)
    backend.clear(0)
    with pytest.raises(RestoreFailed, match="bytes for 49 tokens"):
        backend.unpack(1, 0, 49, out)
    assert backend.length(1) == 0
    backend.unpack(1, 0, 50, out)
    assert prefill(backend, tokens, 50, 60, seq=1) == straight
    with pytest.raises(RestoreFailed, match="whole sequences only"):
        backend.unpack(1, 60, 70, out)
    backend.close()
