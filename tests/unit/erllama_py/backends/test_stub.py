"""The stub: exact where the original is, and honest about cells, batches and positions."""

from __future__ import annotations

import subprocess
import sys

import pytest

from erllama_py._backends import open_backend
from erllama_py._backends.base import (
    BLOCK,
    Backend,
    BackendConfig,
    BackendError,
    ContextOptions,
    NoSlot,
    RestoreFailed,
    Row,
    SamplerOptions,
    StepFailed,
    StubOptions,
)
from erllama_py._backends.stub import embed, render_chat


def stub(n_ctx: int = 100, n_seq_max: int = 2, n_batch: int = 16, **hooks: float) -> Backend:
    context = ContextOptions(n_ctx=n_ctx, n_seq_max=n_seq_max, n_batch=n_batch)
    return open_backend(
        BackendConfig("stub", context=context, stub=StubOptions(**hooks))  # type: ignore[arg-type]
    )


def tokens_of(text: bytes) -> list[int]:
    return stub().tokenize(text, special=True, parse_special=False)


def test_text_is_hashed_piece_by_piece() -> None:
    assert tokens_of(b"hello world") == [47480723, 82372638]
    assert tokens_of(b"  hello   world ") == [47480723, 82372638]
    assert tokens_of(b"") == tokens_of(b" ") == []
    assert len(tokens_of(b"a\tb\nc")) == 1


def test_tokens_render_as_numbers() -> None:
    backend = stub()
    assert backend.detokenize([1, 20, 300]) == b"1 20 300"
    assert backend.detokenize([]) == b""
    assert backend.piece(47480723) == b"47480723"


def test_text_over_the_limits_is_too_large() -> None:
    backend = stub()
    for call in (
        lambda: tokens_of(b"a" * (4 * 1024 * 1024 + 1)),
        lambda: tokens_of(b"a " * 1_048_577),
        lambda: backend.detokenize([1] * 1_048_577),
    ):
        with pytest.raises(BackendError, match="too_large"):
            call()


def test_a_request_repeats_one_token_that_no_other_request_has() -> None:
    first, second = stub(), stub()
    samplers = [first.new_sampler(SamplerOptions()) for _ in range(500)]
    first.step([Row(0, 0, [1], True), Row(1, 0, [2], True)])
    tokens = [first.sample(sampler, 0) for sampler in samplers]
    assert len(set(tokens)) == 500
    assert tokens == [first.sample(sampler, 1) for sampler in samplers]
    assert all(0 <= token < first.info.n_vocab for token in tokens)
    assert not any(map(first.is_eog, tokens))
    second.step([Row(0, 0, [9], True)])
    assert second.sample(second.new_sampler(SamplerOptions(temperature=1.0)), 0) == tokens[0]


def test_stored_logits_give_the_same_token() -> None:
    backend = stub()
    sampler = backend.new_sampler(SamplerOptions())
    backend.step([Row(0, 0, [1, 2, 3], True)])
    saved = bytearray(backend.info.logits_bytes)
    backend.copy_logits(0, memoryview(saved))
    assert bytes(saved) == b"\x03\0\0\0"
    assert backend.sample_stored(sampler, memoryview(saved)) == backend.sample(sampler, 0)
    with pytest.raises(BackendError, match="badarg"):
        backend.sample_stored(sampler, memoryview(b"12345"))


def test_cells_run_out_without_harm() -> None:
    backend = stub(n_ctx=20)
    backend.step([Row(0, 0, [1] * 10, False)])
    with pytest.raises(NoSlot):
        backend.step([Row(0, 10, [1] * 5, True), Row(1, 0, [1] * 6, True)])
    assert (backend.length(0), backend.length(1)) == (10, 0)
    backend.step([Row(0, 10, [1] * 5, True), Row(1, 0, [1] * 5, True)])
    backend.clear(0)
    backend.step([Row(1, 5, [1] * 15, False)])
    assert (backend.length(0), backend.length(1)) == (0, 20)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "empty_batch"),
        ([Row(0, 0, [5] * 17, True)], "batch_overflow"),
        ([Row(2, 0, [5], True)], "bad_sequence"),
        ([Row(0, 1, [5], True)], "bad_position"),
        ([Row(0, 0, [-1], True)], "invalid_token"),
        ([Row(0, 0, [2**32], True)], "invalid_token"),
    ],
)
def test_bad_batches_are_refused_as_the_engine_must(rows: list[Row], reason: str) -> None:
    backend = stub()
    with pytest.raises(StepFailed) as refused:
        backend.step(rows)
    assert refused.value.reason == reason
    assert backend.length(0) == 0


def test_parts_are_the_tokens_and_go_back_only_where_they_belong() -> None:
    backend = stub(n_ctx=2 * BLOCK, n_batch=BLOCK)
    backend.step([Row(0, 0, range(BLOCK), False)])
    out = bytearray(backend.info.block_bytes)
    assert backend.packed_size(0, 0, BLOCK) == backend.info.block_bytes == 256
    assert backend.pack(0, 2, 4, memoryview(out)) == 8
    assert out[:8] == b"\x02\0\0\0\x03\0\0\0"
    assert backend.pack(0, 0, BLOCK + 1, memoryview(out)) == 0
    assert backend.pack(0, 0, BLOCK, memoryview(out)[1:]) == 0
    assert backend.pack(0, 0, BLOCK, memoryview(out)) == 256
    block = memoryview(bytes(out))
    for start, end, data in ((1, BLOCK + 1, block), (0, BLOCK, block[4:]), (0, 0, block[:0])):
        with pytest.raises(RestoreFailed):
            backend.unpack(1, start, end, data)
    backend.unpack(1, 0, BLOCK, block)
    assert backend.pack(1, 0, BLOCK, memoryview(out)) == 256
    assert out == block
    assert backend.truncate(1, 10)
    assert not backend.truncate(1, 11)
    assert backend.length(1) == 10
    with pytest.raises(RestoreFailed, match="free cells"):
        backend.unpack(1, 10, 10 + BLOCK, block)


def test_fault_hooks_strike_once_at_their_step() -> None:
    backend = stub(fail_at_step=2)
    backend.step([Row(0, 0, [1], True)])
    with pytest.raises(StepFailed, match="decode_failed"):
        backend.step([Row(0, 1, [1], True)])
    assert backend.length(0) == 1
    backend.step([Row(0, 1, [1], True)])
    assert backend.length(0) == 2


def test_the_crash_hook_ends_the_process() -> None:
    code = (
        "from erllama_py._backends import open_backend as o; from erllama_py._backends.base "
        "import *; o(BackendConfig('stub', stub=StubOptions(crash_at_step=1)))"
        ".step([Row(0, 0, [1], True)])"
    )
    run = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert run.returncode == -6


@pytest.mark.parametrize("n_seq_max", [0, 256])
def test_slots_are_bounded_as_in_the_real_backend(n_seq_max: int) -> None:
    with pytest.raises(BackendError, match="badarg"):
        stub(n_seq_max=n_seq_max)


def test_embeddings_are_the_original_s() -> None:
    values = embed([1, 2, 3])  # phash2 133891508
    assert len(values) == 16
    assert values[0] == (133891508 & 0xFFFF) / 65535.0
    assert values[1] == ((133891508 >> 4) & 0xFFFF) / 65535.0
    assert values[7:] == [0.0] * 9


def test_chat_is_rendered_in_the_stub_s_own_format() -> None:
    request = {
        "system": "sys",
        "tools": [{"name": "t", "description": "d"}, {"name": b"u"}],
        "messages": [
            {"role": "user", "content": "hi there"},
            {
                "role": b"assistant",
                "content": [
                    {"type": "text", "text": "a"},
                    {"type": "image"},
                    {"type": "text", "text": "b"},
                ],
            },
            {"role": "user"},
        ],
    }
    assert render_chat(request) == (
        b"system: sys\ntools:\n  - t: d\n  - u: \nuser: hi there\nassistant: a b\n"
    )
    assert render_chat({}) == render_chat({"messages": [], "tools": [], "system": ""}) == b""
    with pytest.raises(BackendError, match="invalid_content"):
        render_chat({"messages": [{"role": "user", "content": 5}]})
    with pytest.raises(BackendError, match="badarg"):
        render_chat({"messages": [{"role": 5, "content": "x"}]})
