"""Embeddings on real weights: what they are the mean of, and that nothing else changes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import gguf
import llama_cpp.llama_cpp as native
import numpy as np
import pytest

from erllama_py._backends import open_backend
from erllama_py._backends.base import (
    BackendConfig,
    BackendError,
    ContextOptions,
    ModelOptions,
    Row,
    StepFailed,
)
from erllama_py._backends.llama import LlamaBackend
from erllama_py._backends.llama_batch import Batch
from erllama_py._backends.llama_embed import Embedder
from erllama_py._backends.llama_native import ContextHandle
from tests.backends import logits, prompt
from tests.models import bert_path, smollm2_path

pytestmark = pytest.mark.model

POOLING = gguf.PoolingType


def alone() -> bool:
    return False


@pytest.fixture(scope="module")
def smollm2() -> Iterator[LlamaBackend]:
    """Two threads where nothing else runs, one beside a stream."""
    options = ContextOptions(n_ctx=1024, n_threads=1, n_threads_batch=2)
    backend = open_backend(BackendConfig("llama", model_path=smollm2_path(), context=options))
    assert isinstance(backend, LlamaBackend)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def toys() -> Iterator[Callable[[gguf.PoolingType], LlamaBackend]]:
    loaded: dict[gguf.PoolingType, LlamaBackend] = {}

    def toy(pooling: gguf.PoolingType) -> LlamaBackend:
        if pooling not in loaded:
            backend = open_backend(BackendConfig("llama", model_path=bert_path(pooling)))
            assert isinstance(backend, LlamaBackend)
            loaded[pooling] = backend
        return loaded[pooling]

    yield toy
    for backend in loaded.values():
        backend.close()


def hidden_states(backend: LlamaBackend, tokens: list[int]) -> Any:
    """Every position's vector, from a context made here that takes all tokens at once."""
    params = native.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.embeddings = True
    params.pooling_type = native.LLAMA_POOLING_TYPE_NONE
    params.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_ENABLED
    context: Any = native.llama_init_from_model(backend._model.pointer, params)
    batch = Batch(512, 512, backend.info.n_vocab, all_outputs=True)
    batch.fill([Row(0, 0, tokens, True)], len(tokens))
    assert native.llama_decode(context, batch.struct) == 0
    rows = []
    for at in range(len(tokens)):
        vector: Any = native.llama_get_embeddings_ith(context, at)
        floats = ctypes.c_float * backend.info.n_embd
        memory = floats.from_address(ctypes.addressof(vector.contents))
        rows.append(np.array(memory, np.float32))
    native.llama_free(context)
    return np.array(rows)


def test_where_the_model_does_not_pool_it_is_the_mean(smollm2: LlamaBackend) -> None:
    tokens = prompt(smollm2, 90)
    vector = smollm2.embed(tokens, alone)
    assert len(vector) == smollm2.info.n_embd
    expected = hidden_states(smollm2, tokens).mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-5)
    assert np.linalg.norm(vector) > 10, "it is not normalised"


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (native.LLAMA_POOLING_TYPE_MEAN, lambda rows: rows.mean(axis=0)),
        (native.LLAMA_POOLING_TYPE_LAST, lambda rows: rows[-1]),
        (native.LLAMA_POOLING_TYPE_CLS, lambda rows: rows[0]),
    ],
)
def test_slices_are_put_together_as_one_pass_would_pool(
    smollm2: LlamaBackend, pooling: int, expected: Callable[[Any], Any]
) -> None:
    tokens = prompt(smollm2, 300)
    options = ContextOptions(n_ctx=512)
    context = ContextHandle(smollm2._model, options)
    embedder = Embedder(smollm2._model, context, options, smollm2.info.n_vocab, pooling)
    vector = np.array(embedder.embed(tokens, alone))
    embedder.close()
    context.close()
    reference = expected(hidden_states(smollm2, tokens))
    cosine = vector @ reference / np.linalg.norm(vector) / np.linalg.norm(reference)
    # Other cuts give other bits: up to a percent of the logits, measured.
    assert cosine > 0.999
    assert abs(np.linalg.norm(vector) / np.linalg.norm(reference) - 1) < 0.02


def test_the_same_tokens_give_the_same_numbers(smollm2: LlamaBackend) -> None:
    """Whatever was embedded before, in whatever context, on however many threads."""
    for size in (1, 2, 7, 129):  # 129: the last slice is one token
        tokens = prompt(smollm2, size)
        first = smollm2.embed(tokens, alone)
        assert smollm2.embed(tokens, alone) == first
        assert smollm2.embed(tokens, lambda: True) == first
    short = smollm2.embed([5, 6, 7], alone)
    smollm2.embed(prompt(smollm2, 600), alone)
    assert smollm2.embed([5, 6, 7], alone) == short
    smollm2.drop_embedder()
    assert smollm2.embed([5, 6, 7], alone) == short


def test_texts_that_begin_alike_differ(smollm2: LlamaBackend) -> None:
    one, two = (smollm2.embed([1, *rest], alone) for rest in ([40, 50], [40, 51]))
    assert np.abs(np.subtract(one, two)).max() > 0.1


def test_sequences_are_neither_read_nor_changed(smollm2: LlamaBackend) -> None:
    tokens = prompt(smollm2, 40)
    results = []
    empty = smollm2.embed(tokens, alone)
    for embeds in (False, True):
        smollm2.clear(0)
        smollm2.step([Row(0, 0, tokens, True)])
        if embeds:
            assert smollm2.embed(tokens, alone) == empty
        results.append(logits(smollm2))
        assert smollm2.length(0) == 40
        smollm2.step([Row(0, 40, [17], True)])
        results.append(logits(smollm2))
    assert results[:2] == results[2:]


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ([], "invalid_token"),
        ([-1], "invalid_token"),
        ([1, 49152], "invalid_token"),
        ([2**40], "invalid_token"),
        ([1] * 1024, "context_overflow"),
        ([1] * 1_048_577, "too_large"),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    smollm2: LlamaBackend, tokens: list[int], reason: str
) -> None:
    before = smollm2.embed([5], alone)
    with pytest.raises(BackendError) as refused:
        smollm2.embed(tokens, alone)
    assert refused.value.reason == reason
    assert smollm2.embed([5], alone) == before


def test_without_weights_nothing_is_embedded() -> None:
    options = ModelOptions(vocab_only=True)
    backend = open_backend(BackendConfig("llama", model_path=smollm2_path(), model=options))
    with pytest.raises(BackendError) as refused:
        backend.embed([1], alone)
    assert refused.value.reason == "released"
    backend.drop_embedder()
    backend.close()


Toys = Callable[[gguf.PoolingType], LlamaBackend]


def test_an_encoder_pools_as_its_file_says(toys: Toys) -> None:
    tokens = [7, 80, 81, 82, 7]
    cls, last, mean, none = (
        np.array(toys(pooling).embed(tokens, alone))
        for pooling in (POOLING.CLS, POOLING.LAST, POOLING.MEAN, POOLING.NONE)
    )
    np.testing.assert_allclose(mean, none, rtol=1e-5, atol=1e-6)
    assert np.abs(cls - last).max() > 0.1
    assert np.abs(cls - mean).max() > 0.1
    # The first position sees the last token: the input was one slice, and not causal.
    assert np.abs(cls - toys(POOLING.CLS).embed([*tokens[:-1], 90], alone)).max() > 0.01


def test_an_encoder_ends_where_its_positions_do(toys: Toys) -> None:
    toy = toys(POOLING.CLS)
    assert toy.info.n_ctx > toy.info.n_ctx_train == 128
    assert len(toy.embed([5] * 127, alone)) == toy.info.n_embd == 64
    with pytest.raises(BackendError) as refused:
        toy.embed([5] * 128, alone)
    assert refused.value.reason == "context_overflow"


def test_an_encoder_does_not_generate(toys: Toys) -> None:
    toy = toys(POOLING.MEAN)
    assert not toy.info.generates
    assert not toy.info.blocks
    assert toy.info.blocks_why_not == "the model embeds, and does not generate"
    with pytest.raises(StepFailed, match="it embeds, and does not generate"):
        toy.step([Row(0, 0, [5], True)])


def test_a_model_that_ranks_has_no_vectors(toys: Toys) -> None:
    for _ in range(2):
        with pytest.raises(BackendError) as refused:
            toys(POOLING.RANK).embed([5], alone)
        assert refused.value.reason == "not_supported"
