"""Answers and refusals that no other test has a reason to ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from erllama_py import api
from erllama_py._engine import device_memory, ends
from erllama_py._engine.frames import Closed
from erllama_py._engine.registry import core
from erllama_py.api import _models
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.errors import ErllamaError
from erllama_py.testing import record, stub_model
from erllama_py.types import Atom
from tests.models import smollm2_path, write_mamba
from tests.waiting import wait_for

SLOW = {"step_delay_ms": 10}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def refused(call: Callable[[], Any]) -> ErllamaError:
    with pytest.raises(ErllamaError) as caught:
        call()
    return caught.value


# -- devices ------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "free", "used"), [(10, 4, 6), (10, 0, 10), (4, 10, 0)])
def test_memory_of_devices_is_summed(
    monkeypatch: pytest.MonkeyPatch, total: int, free: int, used: int
) -> None:
    monkeypatch.setattr(_models, "device_memory", lambda _: (total, free))
    assert api.vram_info() == {"total_b": total, "free_b": free, "used_b": used}
    monkeypatch.setattr(_models, "device_memory", lambda _: (0, 0))
    assert refused(api.vram_info).reason == "no_gpu"


def test_an_engine_that_cannot_be_asked_is_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory.sys, "executable", "/nowhere/python")
    error = refused(lambda: device_memory.device_memory([]))
    assert error.reason == "exception"
    assert "/nowhere/python" in error.message


@pytest.mark.parametrize(
    ("size", "layers", "offloaded", "estimate"),
    [
        *((0, 30, 9, 0), (900, 0, 9, 0), (900, 30, -1, 900), (900, 30, 30, 900)),
        *((900, 30, 99, 900), (900, 30, 0, 0), (900, 30, 7, 210), (1000, 30, 7, 233)),
    ],
)
def test_weights_on_devices_are_estimated_by_layers(
    size: int, layers: int, offloaded: int, estimate: int
) -> None:
    info = SimpleNamespace(model_size_bytes=size, total_layers=layers, n_gpu_layers=offloaded)
    host: Any = SimpleNamespace(info=info)
    assert _models._vram_estimate(host) == estimate


# -- counters -----------------------------------------------------------------------------


def test_each_admission_moves_one_counter() -> None:
    names = ("misses", "hits_exact", "hits_longest_prefix", "hits_resume")

    def moved(run: Callable[[], Any]) -> list[int]:
        before = api.counters()
        run()
        wait_for(lambda: not core().host(model).requests)
        after = api.counters()
        return [after[name] - before[name] for name in names]

    prompt = list(range(300))
    with stub_model(stub_opts={"step_delay_ms": 2}) as model:
        keys: list[bytes] = []
        first = moved(lambda: keys.append(api.prefill_only(model, prompt)["finish_key"]))
        before = api.counters()["load_total_ns"]
        assert first == [1, 0, 0, 0]
        assert moved(lambda: api.prefill_only(model, prompt)) == [0, 1, 0, 0]
        assert moved(lambda: api.prefill_only(model, [*prompt, 7])) == [0, 0, 1, 0]
        resumed = {"parent_key": keys[0], "response_tokens": 1}
        assert moved(lambda: record(api.infer(model, [*prompt, 8], resumed))) == [0, 0, 0, 1]
        assert api.counters()["load_total_ns"] > before


@pytest.mark.parametrize("whole_rows", [False, True])
@pytest.mark.parametrize("least", [16, 100])
def test_a_probe_tells_what_the_next_admission_finds(whole_rows: bool, least: int) -> None:
    """Of prompts that share heads of any length, with each other and with replies."""
    random = Random(least)
    contexts = [[random.randrange(5000) for _ in range(250)]]
    policy = {**EVERYDAY_POLICY, "min_tokens": least, "cold_min_tokens": least}
    stub_opts = {"step_delay_ms": 1, "whole_rows": whole_rows}
    with stub_model(stub_opts=stub_opts, policy=policy) as model:
        for _ in range(12):
            head = random.choice(contexts)
            head = head[: random.choice([len(head), len(head) - 1, random.randint(1, len(head))])]
            prompt = [*head, *(random.randrange(5000) for _ in range(random.choice([0, 1, 30])))]
            expected = api.list_cached_prefixes(model, prompt)
            events = record(api.infer(model, prompt, {"response_tokens": random.choice([0, 1, 4])}))
            assert events[-1].stats is not None
            assert events[-1].stats["prefix_len"] == expected
            said = [event.token_id for event in events if event.token_id is not None]
            contexts.append([*prompt, *said])
            wait_for(lambda: not core().host(model).requests)


# -- loads --------------------------------------------------------------------------------


def test_a_load_that_the_engine_dies_of_is_malformed() -> None:
    error = ends.load_crashed("m", "broken.gguf", (Atom("signal"), Atom("SIGSEGV")), "GGML_ASSERT")
    assert error.reason == "malformed_gguf"
    assert all(words in str(error) for words in ("broken.gguf", "SIGSEGV", "GGML_ASSERT"))
    assert ends.load_crashed("m", "", Atom("killed"), "").reason == "load_failed"


def test_memory_that_runs_out_is_oom() -> None:
    assert ends.load_crashed("m", "large.gguf", Atom("oom"), "").reason == "oom"
    assert ends.stream_ended("m", Atom("oom")).reason == ("model_down", "oom")
    assert "memory" in str(ends.stream_ended("m", Atom("oom")))
    assert "restarted by itself" in ends.stream_ended("m", Atom("killed")).hint
    assert ends.stream_ended("m", Atom("shutdown")).hint == ""


def test_a_known_name_is_told_from_a_path(tmp_path: Path) -> None:
    assert api.resolve_model("smollm2") == (True, smollm2_path())
    path = str(tmp_path / "any.gguf")
    assert api.resolve_model(path) == api.resolve_model(path.encode()) == (False, path)


# -- chats --------------------------------------------------------------------------------


@pytest.mark.model
def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    with api.load_model({"model_path": write_mamba(tmp_path / "toy.gguf")}) as model:
        assert refused(lambda: api.apply_chat_template(model, CHAT)).reason == "no_template"
        assert refused(lambda: api.apply_chat_template(model, {})).reason == "badarg"
        assert api.complete(model, "a", {"response_tokens": 1})["generated"]


@pytest.mark.model
def test_a_template_that_fails_says_where(tmp_path: Path) -> None:
    template = "{{ raise_exception('no user message') }}"
    with api.load_model({"model_path": write_mamba(tmp_path / "toy.gguf", template)}) as model:
        error = refused(lambda: api.apply_chat_template(model, CHAT))
        assert error.reason == "template_failed"
        assert "no user message" in error.message
        assert api.complete(model, "a", {"response_tokens": 1})["generated"]


@pytest.mark.model
def test_tools_may_have_a_schema(tmp_path: Path) -> None:
    tool = {"name": "clock", "description": "the time", "schema": {"type": "object"}}
    with api.load_model({"model_path": write_mamba(tmp_path / "toy.gguf", TEMPLATE)}) as model:
        plain = api.apply_chat_template(model, CHAT)
        assert len(api.apply_chat_template(model, {**CHAT, "tools": [tool]})) >= len(plain)
        assert len(api.apply_chat_template(model, {**CHAT, "tools": []})) >= len(plain)


# -- requests -----------------------------------------------------------------------------


def test_start_calls_back_once_with_the_result_or_the_error() -> None:
    outcomes: list[Any] = []
    with stub_model(stub_opts=SLOW) as model:
        api.start("complete", [model, "a b", {"response_tokens": 2}], outcomes.append)
        wait_for(lambda: outcomes)
        assert len(outcomes[0]["generated"]) == 2
        api.start("prefill_only", [model, range(40)], outcomes.append)
        wait_for(lambda: len(outcomes) == 2)
        assert outcomes[1]["committed_tokens"] == 40
        api.start("complete", [model, "", {}], outcomes.append)
        wait_for(lambda: len(outcomes) == 3)
        assert outcomes[2].reason == "empty_prompt"
        api.start("embed", [model, [1, 2]], outcomes.append)
        wait_for(lambda: len(outcomes) == 4)
        assert outcomes[3] == api.embed(model, [1, 2])
        api.start("draft_tokens", [model, [1], {"max": 3}], outcomes.append)
        wait_for(lambda: len(outcomes) == 5)
        assert len(outcomes[4]) == 3
        for function, args, reason in [
            ("draft_tokens", [model, [], {}], "empty_prefix"),
            ("verify", [model, [1], [2], 1], "not_supported"),
        ]:
            with pytest.raises(ErllamaError) as caught:
                api.start(function, args, outcomes.append)
            assert caught.value.reason == reason
    assert len(outcomes) == 5


def test_a_request_that_ends_without_a_result_is_told() -> None:
    """It never does; were a defect of ours to bring it about, nobody would wait for ever."""
    with stub_model(stub_opts=SLOW) as model:
        stream = api.infer(model, [1], {"response_tokens": 1000})
        next(stream)
        host = core().host(model)
        (request,) = host.requests
        host._handle_release(Closed(request.id, 0, 0))
        last = record(stream)[-1]
        assert (last.kind, last.reason) == ("error", "closed")


def test_a_row_that_changed_in_between_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stub_model(stub_opts={"whole_rows": True, "step_delay_ms": 5}) as model:
        key = api.prefill_only(model, range(100))["finish_key"]
        wait_for(lambda: core().cache.holds(key) and not core().host(model).requests)
        monkeypatch.setattr(core().cache, "read", lambda _: None)
        assert refused(lambda: api.export_row(key, tmp_path)).reason == "damaged"


@pytest.mark.parametrize("thinking", ["enabled", "disabled", True, 5])
def test_a_model_that_does_not_think_answers_as_ever(thinking: Any) -> None:
    with stub_model() as model:
        options = {"thinking": Atom(thinking) if isinstance(thinking, str) else thinking}
        events = record(api.infer(model, [1, 2], {**options, "response_tokens": 2}))
        assert [event.kind for event in events] == ["token", "token_id"] * 2 + ["done"]
