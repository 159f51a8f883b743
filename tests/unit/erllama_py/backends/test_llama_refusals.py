"""What the engine answers where it fails: each failure has its reason, and leaves it usable."""

from __future__ import annotations

from typing import Any

import pytest

from erllama_py._backends import llama_embed, llama_sampler, llama_vocab
from erllama_py._backends.base import Backend, BackendError, Row, SamplerOptions

pytestmark = [pytest.mark.model, pytest.mark.timeout(120)]


PLAIN = {"special": True, "parse_special": False}


class Broken:
    """The engine with one function replaced."""

    def __init__(self, really: Any, name: str, answer: Any) -> None:
        self._really = really
        self._name = name
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        return self._answer if name == self._name else getattr(self._really, name)


def test_an_embedding_that_fails_is_embed_failed(
    smollm2: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = smollm2.embed([5, 6, 7], lambda: False)
    with monkeypatch.context() as patch:
        broken = Broken(llama_embed.native, "llama_get_embeddings", lambda *_: None)
        patch.setattr(llama_embed, "native", broken)
        with pytest.raises(BackendError) as caught:
            smollm2.embed([5, 6, 7], lambda: False)
        assert caught.value.reason == "embed_failed"
    assert smollm2.embed([5, 6, 7], lambda: False) == before


def test_a_text_that_cannot_be_tokenised_is_tokenize_failed(
    smollm2: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        broken = Broken(llama_vocab.native, "llama_tokenize", lambda *_: -1)
        patch.setattr(llama_vocab, "native", broken)
        with pytest.raises(BackendError) as caught:
            smollm2.tokenize(b"hello", **PLAIN)
        assert caught.value.reason == "tokenize_failed"
    assert smollm2.tokenize(b"hello", **PLAIN)


def test_a_token_that_cannot_be_drawn_is_sample_failed(
    smollm2: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    smollm2.step([Row(0, 0, [5, 6, 7], logits=True)])
    logits = bytearray(smollm2.info.logits_bytes)
    smollm2.copy_logits(0, memoryview(logits))
    sampler = smollm2.new_sampler(SamplerOptions(temperature=1.0))
    with monkeypatch.context() as patch:
        broken = Broken(llama_sampler.native, "llama_sampler_apply", lambda *_: None)
        patch.setattr(llama_sampler, "native", broken)
        with pytest.raises(BackendError) as caught:
            smollm2.sample_stored(sampler, memoryview(logits))
        assert caught.value.reason == "sample_failed"
    assert smollm2.sample_stored(sampler, memoryview(logits)) >= 0


def test_a_sampler_without_memory_is_oom(smollm2: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        broken = Broken(llama_sampler.native, "llama_sampler_init_temp", lambda *_: None)
        patch.setattr(llama_sampler, "native", broken)
        with pytest.raises(BackendError) as caught:
            smollm2.new_sampler(SamplerOptions(temperature=1.0))
        assert caught.value.reason == "oom"
