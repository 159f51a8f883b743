"""The whole core on SmolLM2: hits, faults, damaged memory, a process that dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from erllama_py import api
from erllama_py._engine.registry import core
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.testing import record
from tests.models import smollm2_path
from tests.waiting import wait_for

pytestmark = [pytest.mark.model, pytest.mark.timeout(180)]

STORY = "The lighthouse keeper wrote one line in the log every evening. " * 20


@pytest.fixture(scope="module")
def model() -> Iterator[api.Model]:
    """SmolLM2 with two slots, in a process of its own."""
    config = {
        "model_path": smollm2_path(),
        "policy": EVERYDAY_POLICY,
        "context_opts": {"n_ctx": 2048, "n_seq_max": 2},
    }
    with api.load_model(config) as loaded:
        yield loaded


def test_a_repeat_is_exact_and_says_the_same(model: api.Model) -> None:
    cold = model.complete(STORY, response_tokens=12)
    warm = model.complete(STORY, response_tokens=12)
    assert (cold["cache_hit_kind"], warm["cache_hit_kind"]) == ("cold", "exact")
    assert warm["generated"] == cold["generated"]
    assert warm["reply"] == cold["reply"]
    assert warm["finish_key"] == cold["finish_key"]
    assert warm["stats"]["prefill_ms"] < cold["stats"]["prefill_ms"]


def test_the_next_turn_resumes_by_key(model: api.Model) -> None:
    first = model.complete(STORY, response_tokens=8)
    turn = model.detokenize(first["context_tokens"]) + " And then"
    # Detokenised and tokenised again, the text gives the same tokens here.
    assert model.tokenize(turn)[: first["committed_tokens"]] == first["context_tokens"]
    second = model.complete(turn, response_tokens=4, parent_key=first["finish_key"])
    assert second["cache_hit_kind"] == "partial"
    assert second["stats"]["prefix_len"] == first["committed_tokens"]
    assert api.counters()["hits_resume"] == 1


def test_damaged_memory_is_a_miss_and_never_an_answer(model: api.Model) -> None:
    expected = model.complete(STORY, response_tokens=8)["generated"]
    cache = core().cache
    for fd, size in cache._shared.ram.segments.values():
        # Every page of every segment: whatever block is read next has a flipped byte.
        for offset in range(4096, size, 4096):
            byte = os.pread(fd, 1, offset)
            os.pwrite(fd, bytes([byte[0] ^ 0x20]), offset)
    again = model.complete(STORY, response_tokens=8)
    assert again["generated"] == expected
    assert api.counters()["corrupt_files"] >= 1
    # The damaged blocks are gone, and what was computed instead serves the next one.
    wait_for(lambda: api.phase(model) == "idle")
    third = model.complete(STORY, response_tokens=8)
    assert third["generated"] == expected
    assert third["cache_hit_kind"] != "cold"


def test_damaged_logits_cost_one_decode_and_change_nothing(model: api.Model) -> None:
    expected = model.complete(STORY, response_tokens=8)["generated"]
    cache = core().cache
    space = core().host(model).cache.namespace.space
    damaged = [row.logits.extent for row in space.rows.values() if row.logits]
    assert damaged
    for extent in damaged:
        cache.view(extent)[1000] ^= 1
    again = model.complete(STORY, response_tokens=8)
    assert again["generated"] == expected
    assert again["cache_hit_kind"] == "exact"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"grammar": "root ::= (("}, "grammar_failed"),
        ({"grammar": "root ::= missing"}, "grammar_failed"),
        ({"seed": "x"}, "badarg"),
        ({"stop_sequences": "abc"}, ("invalid", "stop_sequences", "abc")),
    ],
)
def test_bad_requests_fail_alone_while_others_run(model: api.Model, options, reason) -> None:
    other = api.infer(model, model.tokenize(STORY), {"response_tokens": 24})
    with pytest.raises(ErllamaError) as caught:
        model.complete("The", **options)
    assert caught.value.reason == reason
    for bad in ([], [49152], [-1], list(range(2048)), "text", [1.5]):
        with pytest.raises((ErllamaError, BadCall)):
            api.infer(model, bad)
    events = record(other)
    assert events[-1].kind == "done"
    assert sum(e.kind == "token_id" for e in events) == 24


def test_a_grammar_holds_the_reply(model: api.Model) -> None:
    grammar = 'root ::= "yes" | "no"'
    result = model.complete("Is water wet? Answer yes or no: ", grammar=grammar)
    assert result["reply"] in ("yes", "no")
    assert result["finish_reason"] == "stop"


def test_sampling_with_a_seed_repeats_and_without_one_too(model: api.Model) -> None:
    for options in ({"temperature": 0.9, "seed": 7}, {"temperature": 0.9, "top_k": 40}):
        one = model.complete("Once upon a time", response_tokens=12, **options)
        two = model.complete("Once upon a time", response_tokens=12, **options)
        assert one["generated"] == two["generated"]
    other = model.complete("Once upon a time", response_tokens=12, temperature=0.9, seed=8)
    assert other["generated"] != one["generated"]


def test_two_streams_at_once_say_what_each_says_alone(model: api.Model) -> None:
    prompts = [model.tokenize(text) for text in ("One, two, three,", "The capital of France")]
    alone = [
        [e.token_id for e in api.infer(model, p, {"response_tokens": 10}) if e.token_id is not None]
        for p in prompts
    ]
    streams = [api.infer(model, p, {"response_tokens": 10}) for p in prompts]
    together = [[e.token_id for e in record(s) if e.token_id is not None] for s in streams]
    # Not promised bit for bit beside another sequence; these two have no near ties.
    assert together == alone


def test_text_is_whole_characters_whatever_the_tokens(model: api.Model) -> None:
    text = "Grüße aus Zürich 🙂, naïve café"
    assert model.detokenize(model.tokenize(text)) == text
    parts = list(model.stream("Repeat: 🙂🙂🙂🙂🙂 🙂🙂", response_tokens=12))
    assert all(isinstance(part, str) for part in parts)


def test_chat_templates_render_as_the_model_was_trained(model: api.Model) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    tokens = api.apply_chat_template(model, {"messages": messages, "system": "Be brief."})
    assert model.detokenize(tokens) == "system\nBe brief.\nuser\nHi\nassistant\n"
    long = [{"role": "user", "content": "word " * 2000}]
    assert 2000 < len(api.apply_chat_template(model, {"messages": long})) < 2100
    for bad, reason in [
        ({}, "badarg"),
        ({"messages": [{"role": "user"}]}, "badarg"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_content"),
    ]:
        with pytest.raises(ErllamaError) as caught:
            api.apply_chat_template(model, bad)
        assert caught.value.reason == reason


def test_kill_9_in_a_real_stream_and_the_next_request_works(model: api.Model) -> None:
    before = api.model_info(model)["pid"]
    stream = api.infer(model, model.tokenize("Once"), {"response_tokens": 500})
    next(stream)
    pid = core().host(model).os_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    last = record(stream)[-1]
    assert last.kind == "error"
    assert last.reason == ("model_down", "killed")
    warm = model.complete(STORY, response_tokens=4)
    assert len(warm["generated"]) == 4
    assert api.model_info(model)["pid"] != before


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    whole = Path(smollm2_path()).read_bytes()
    for name, content in [
        ("cut.gguf", whole[: len(whole) // 2]),
        ("head.gguf", whole[:4000]),
        ("noise.gguf", os.urandom(10_000)),
        ("empty.gguf", b""),
        ("flipped.gguf", whole[:24] + bytes(b ^ 0xFF for b in whole[24:4096]) + whole[4096:]),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ErllamaError) as caught:
            api.load_model("broken", {"model_path": str(path)})
        assert caught.value.reason in ("load_failed", "malformed_gguf"), name
        assert name in str(caught.value)
    with pytest.raises(ErllamaError) as caught:
        api.load_model({"model_path": str(tmp_path / "absent.gguf")})
    assert caught.value.reason == "load_failed"


def test_a_context_the_engine_refuses_is_context_failed() -> None:
    with pytest.raises(ErllamaError) as caught:
        api.load_model(
            {
                "model_path": smollm2_path(),
                "context_opts": {"type_v": "q8_0", "flash_attn": False, "n_ctx": 256},
            }
        )
    assert caught.value.reason == "context_failed"
