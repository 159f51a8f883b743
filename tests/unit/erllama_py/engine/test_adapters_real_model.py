"""LoRA adapters on SmolLM2: other words with them, and the very same ones without."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from erllama_py import api
from erllama_py._engine.registry import core
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.errors import ErllamaError
from erllama_py.testing import record
from tests.adapters import lora_tensors, write_lora
from tests.models import gemma3_path, smollm2_path
from tests.waiting import wait_for

pytestmark = [pytest.mark.model, pytest.mark.timeout(180)]

TEXT = (
    "The lighthouse keeper wrote one line in the log every evening. On the first day of "
    "winter a ship came in from the north, with a hold full of oranges and a captain who "
    "had not slept for a week. He climbed the stairs, knocked at the door and said:"
)
WORDS = 10


@pytest.fixture(scope="module")
def loaded() -> Iterator[api.Model]:
    """SmolLM2 with two slots, in a process of its own."""
    config = {
        "model_path": smollm2_path(),
        "policy": EVERYDAY_POLICY,
        "context_opts": {"n_ctx": 1024, "n_seq_max": 2, "n_threads": 1, "n_threads_batch": 2},
    }
    with api.load_model(config) as model:
        yield model


@pytest.fixture
def model(loaded: api.Model) -> Iterator[api.Model]:
    """The same one, without adapters; whatever a test does, its process lives on."""
    process = core().host(loaded).os_pid
    yield loaded
    for one in api.list_adapters(loaded):
        api.unload_adapter(loaded, one["handle"])
    assert core().host(loaded).os_pid == process


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("lora") / "one.gguf", 1)


def emptied() -> None:
    """Evict everything, once what has just been said is stored and its rows are free."""

    def empty() -> bool:
        core().cache.gc()
        return not core().cache.snapshot(limit=0)["blocks"]["payloads"]

    wait_for(empty)


def said(model: api.Model, exactness: str = "token") -> tuple[list[int], str]:
    """Return what the model says and how it was found."""
    result = model.complete(TEXT, response_tokens=WORDS, exactness=exactness)
    wait_for(lambda: not core().host(model)._requests)  # its row is stored
    return result["generated"], str(result["cache_hit_kind"])


def test_words_change_with_it_and_come_back_without_it(model: api.Model, lora: Path) -> None:
    base, kind = said(model)
    assert kind == "cold"
    handle = api.load_adapter(model, lora)
    changed, kind = said(model)
    assert kind == "cold"
    assert changed != base
    assert said(model) == (changed, "exact")
    api.set_adapter_scale(model, handle, 0)
    assert said(model) == (base, "cold")
    api.set_adapter_scale(model, handle, 1)
    assert said(model) == (changed, "exact")
    api.unload_adapter(model, handle)
    assert said(model) == (base, "exact")
    emptied()
    assert said(model) == (base, "cold")


def test_bit_for_bit_what_it_was_before(model: api.Model, lora: Path) -> None:
    """Stored logits tell: those of the prompt's last token, from a lone cold prefill."""

    def logits() -> str:
        emptied()
        prompt = model.tokenize(TEXT)
        namespace = core().host(model).cache.namespace
        api.prefill_only(model, prompt)
        key = namespace.key(np.array(prompt, np.uint32).tobytes())
        wait_for(lambda: key in namespace.space.rows)
        stored = namespace.space.rows[key].logits
        return hashlib.sha256(core().cache.view(stored.extent)).hexdigest()

    base = logits()
    handle = api.load_adapter(model, lora)
    changed = logits()
    assert changed != base
    assert logits() == changed
    api.set_adapter_scale(model, handle, 0)
    assert logits() == base
    api.unload_adapter(model, handle)
    assert logits() == base


def test_a_running_stream_goes_on_as_it_began(model: api.Model, lora: Path) -> None:
    prompt = model.tokenize("Once upon a time")
    # Neighbours in the context may turn a near tie; there are none at exactness bit.
    options = {"response_tokens": 60, "exactness": "bit"}

    def tokens(stream: api.Stream) -> list[int]:
        return [event.token_id for event in record(stream) if event.token_id is not None]

    alone = tokens(api.infer(model, prompt, options))
    emptied()
    stream = api.infer(model, prompt, options)
    first = next(event for event in stream if event.token_id is not None)
    handle = api.load_adapter(model, lora)
    other = api.infer(model, prompt, options)
    assert [first.token_id, *tokens(stream)] == alone
    assert tokens(other) != alone
    # The other way round: what runs with it is not changed by taking it away.
    emptied()
    changed = tokens(api.infer(model, prompt, options))
    emptied()
    stream = api.infer(model, prompt, options)
    first = next(event for event in stream if event.token_id is not None)
    api.unload_adapter(model, handle)
    assert [first.token_id, *tokens(stream)] == changed
    assert tokens(api.infer(model, prompt, options)) == alone


def test_bit_exactness_holds_with_two(model: api.Model, lora: Path, tmp_path: Path) -> None:
    api.load_adapter(model, lora)
    second = api.load_adapter(model, write_lora(tmp_path / "two.gguf", 2))
    api.set_adapter_scale(model, second, -0.5)
    cold = said(model, "bit")
    assert cold[1] == "cold"
    assert said(model, "bit") == (cold[0], "exact")


def test_bad_files_are_refused_and_end_nothing(
    model: api.Model, lora: Path, tmp_path: Path
) -> None:
    base, _ = said(model)
    stream = api.infer(model, model.tokenize("Once"), {"response_tokens": 40})
    next(stream)
    tensors = lora_tensors(1, layers=[0])
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(lora.read_bytes()[:-1000])
    for path in (
        write_lora(tmp_path / "gemma.gguf", architecture="gemma3"),
        write_lora(tmp_path / "alpha.gguf", values={"adapter.lora.alpha": "4"}),
        write_lora(
            tmp_path / "int.gguf",
            tensors={name: tensor.astype(np.int32) for name, tensor in tensors.items()},
        ),
        write_lora(tmp_path / "layer.gguf", layers=[31]),
        cut,
        smollm2_path(),
        __file__,
    ):
        with pytest.raises(ErllamaError) as caught:
            api.load_adapter(model, path)
        assert caught.value.reason == "load_failed"
        assert Path(path).name in str(caught.value)
    assert api.list_adapters(model) == []
    assert record(stream)[-1].kind == "done"
    assert said(model)[0] == base


def test_a_file_that_only_the_engine_refuses_is_refused(
    model: api.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were our own look at it too kind, its answer would still be an error."""
    monkeypatch.setattr("erllama_py._engine.adapters.check_lora", lambda *_: None)
    with pytest.raises(ErllamaError) as caught:
        api.load_adapter(model, write_lora(tmp_path / "a.gguf", architecture="gemma3"))
    assert caught.value.reason == "load_failed"
    assert "arch" in str(caught.value)
    assert api.list_adapters(model) == []


def test_a_process_that_is_started_again_has_it(lora: Path) -> None:
    config = {
        "model_path": smollm2_path(),
        "policy": EVERYDAY_POLICY,
        "context_opts": {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 2},
    }
    with api.load_model(config) as model:
        base, _ = said(model)
        handle = api.load_adapter(model, lora)
        changed, _ = said(model)
        process = core().host(model).os_pid
        assert process is not None
        os.kill(process, signal.SIGKILL)
        wait_for(lambda: core().host(model).os_pid not in (None, process), 30)
        assert said(model) == (changed, "exact")
        emptied()
        assert said(model) == (changed, "cold")
        api.unload_adapter(model, handle)
        assert said(model)[0] == base


def test_an_adapter_for_gemma_is_one_for_gemma(tmp_path: Path) -> None:
    shapes = {"attn_q": (640, 1024), "ffn_down": (2048, 640)}
    path = write_lora(
        tmp_path / "gemma.gguf", architecture="gemma3", shapes=shapes, scale=0.5, layers=range(18)
    )
    config = {
        "model_path": gemma3_path(),
        "policy": EVERYDAY_POLICY,
        "context_opts": {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 2},
    }
    with api.load_model(config) as model:
        base, _ = said(model)
        handle = api.load_adapter(model, path)
        assert said(model)[0] != base
        api.unload_adapter(model, handle)
        assert said(model) == (base, "exact")
