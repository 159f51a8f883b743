"""Requests through the façade and a model process's worker, on the stub backend."""

from __future__ import annotations

import time

import pytest

from erllama_py import api
from erllama_py._engine.registry import core
from erllama_py.errors import BadCall, ErllamaError, ModelGone
from erllama_py.testing import record, stub_model
from erllama_py.types import Atom
from tests.waiting import wait_for

SLOW = {"step_delay_ms": 20}


def test_complete_returns_exactly_the_documented_keys() -> None:
    with stub_model() as model:
        result = api.complete(model, "hello world", {"response_tokens": 3})
    assert set(result) == {
        *("reply", "generated", "context_tokens", "committed_tokens", "finish_key"),
        *("cache_hit_kind", "cache_delta", "finish_reason", "stats"),
    }
    assert result["context_tokens"][:2] == [47480723, 82372638]
    assert result["context_tokens"][2:] == result["generated"]
    assert result["committed_tokens"] == 5
    assert result["finish_reason"] == result["stats"]["finish_reason"] == "length"
    assert result["cache_hit_kind"] == "cold"
    assert result["finish_key"] is None  # below min_tokens


def test_prefill_only_returns_exactly_five_keys() -> None:
    with stub_model() as model:
        result = api.prefill_only(model, range(30))
    assert set(result) == {
        *("context_tokens", "committed_tokens", "finish_key", "cache_hit_kind", "cache_delta")
    }
    assert len(result["finish_key"]) == 32


def test_a_stream_sends_text_before_its_id_and_one_terminal_event() -> None:
    with stub_model() as model:
        events = record(api.infer(model, [1, 2, 3], {"response_tokens": 3}))
    assert [e.kind for e in events] == ["token", "token_id"] * 3 + ["done"]
    assert len({e.ref for e in events}) == 1
    stats = events[-1].stats
    assert stats is not None
    assert stats["completion_tokens"] == 3
    assert stats["prompt_tokens"] == 3
    assert stats["cancelled"] is False


def test_held_back_text_comes_last_without_an_id() -> None:
    with stub_model() as model:
        options = {"response_tokens": 3, "stop_sequences": ["zzzz"]}
        events = record(api.infer(model, [1, 2, 3], options))
    token = str(events[1].token_id).encode()
    assert [e.kind for e in events] == ["token", "token_id"] * 3 + ["token", "done"]
    assert b"".join(e.data for e in events) == token * 3
    assert len(events[-2].data) == 3


def test_a_stop_sequence_ends_the_reply_and_is_reported() -> None:
    with stub_model() as model:
        token = str(api.complete(model, "a b c", {"response_tokens": 1})["generated"][0])
        # The stub's tokens differ from request to request, but every number has digits.
        result = api.complete(model, "a b c", {"stop_sequences": [str(d) for d in range(10)]})
    assert token
    assert result["finish_reason"] == "stop"
    assert result["reply"] == ""
    assert result["stop_sequence"] == result["stats"]["stop_sequence"]
    assert len(result["generated"]) == 1


def test_zero_response_tokens_generate_nothing() -> None:
    with stub_model() as model:
        cold = api.complete(model, " ".join("abcdefghijklmnopqrstuvw"), {"response_tokens": 0})
        warm = api.complete(model, " ".join("abcdefghijklmnopqrstuvw"), {"response_tokens": 0})
    for result in (cold, warm):
        assert result["generated"] == []
        assert result["reply"] == ""
        assert result["finish_reason"] == "length"
        assert result["committed_tokens"] == 23
    assert warm["cache_hit_kind"] == "exact"


def test_a_repeat_is_exact_an_extension_partial_and_the_probe_agrees() -> None:
    tokens = list(range(100, 400))
    with stub_model() as model:
        first = api.prefill_only(model, tokens)
        assert api.prefill_only(model, tokens)["cache_hit_kind"] == "exact"
        longer = [*tokens, 1, 2, 3]
        assert api.list_cached_prefixes(model, longer) == 300
        result = api.prefill_only(model, longer)
        assert result["cache_hit_kind"] == "partial"
        assert api.last_cache_hit(model) == {"kind": "partial", "prefix_len": 300}
        cut = tokens[:137]
        assert api.list_cached_prefixes(model, cut) == 136
        assert api.prefill_only(model, cut)["cache_hit_kind"] == "partial"
        assert first["cache_hit_kind"] == "cold"


def test_parent_key_resumes_from_that_row() -> None:
    with stub_model() as model:
        before = api.counters()["hits_resume"]
        first = api.complete(model, " ".join(map(str, range(40))), {"response_tokens": 4})
        tokens = [*first["context_tokens"], 5, 6, 7]
        events = record(
            api.infer(model, tokens, {"parent_key": first["finish_key"], "response_tokens": 1})
        )
        assert events[-1].stats is not None
        assert events[-1].stats["cache_hit_kind"] == "partial"
        assert events[-1].stats["prefix_len"] == 44
        assert api.counters()["hits_resume"] == before + 1


def test_undefined_parent_keys_count_as_absent() -> None:
    with stub_model() as model:
        for absent in (None, "undefined", "nil"):
            options = {"parent_key": absent, "response_tokens": 1}
            assert api.complete(model, "a b", options)["finish_reason"] == "length"


def test_queued_requests_run_in_order_and_can_be_cancelled() -> None:
    with stub_model(stub_opts=SLOW) as model:
        streams = [api.infer(model, [n], {"response_tokens": 4}) for n in range(1, 5)]
        wait_for(lambda: api.pending_len(model) == 3)
        assert api.queue_depth(model) == 1
        streams[2].cancel()
        cancelled = record(streams[2])
        assert [e.kind for e in cancelled] == ["done"]
        assert cancelled[0].stats is not None
        assert cancelled[0].stats["cancelled"] is True
        assert cancelled[0].stats["completion_tokens"] == 0
        ends = []
        for stream in (streams[0], streams[1], streams[3]):
            assert record(stream)[-1].kind == "done"
            ends.append(time.monotonic())
        assert ends == sorted(ends)
        assert api.pending_len(model) == api.queue_depth() == 0


def test_cancel_in_prefill_keeps_what_was_computed() -> None:
    with stub_model(stub_opts={"step_delay_ms": 50}) as model:
        stream = api.infer(model, range(2000), {"response_tokens": 4})
        wait_for(lambda: api.phase(model) == "prefilling")
        stream.cancel()
        (done,) = record(stream)
        assert done.stats is not None
        assert done.stats["finish_reason"] == "cancelled"
        assert done.stats["committed_tokens"] < 2000
        assert done.stats["committed_tokens"] % 128 == 0
        assert api.complete(model, "still there", {"response_tokens": 1})["generated"]


def test_many_cancelled_at_once_all_end() -> None:
    """While a tick runs they all wait for the engine together."""
    with stub_model(stub_opts={"step_delay_ms": 50}, context_opts={"n_seq_max": 2}) as model:
        streams = [api.infer(model, [1], {"response_tokens": 500}) for _ in range(4)]
        wait_for(lambda: api.queue_depth(model) == 2)
        for stream in streams:
            stream.cancel()
        for stream in streams:
            done = record(stream)[-1]
            assert done.stats is not None
            assert done.stats["cancelled"] is True


def test_cancelling_twice_late_or_unknown_is_ok() -> None:
    with stub_model() as model:
        stream = api.infer(model, [1], {"response_tokens": 1})
        record(stream)
        assert api.cancel(stream.ref) == "ok"
        assert api.cancel(stream.ref) == "ok"
        with pytest.raises(BadCall):
            api.cancel("not a ref")  # type: ignore[arg-type]


def test_several_sequences_share_each_batch() -> None:
    with stub_model(context_opts={"n_seq_max": 4}, stub_opts=SLOW) as model:
        streams = [api.infer(model, [n], {"response_tokens": 10}) for n in range(1, 5)]
        wait_for(lambda: api.queue_depth(model) == 4)
        assert api.phase(model) == api.status(model)
        tokens = {record(stream)[1].token_id for stream in streams}
        assert len(tokens) == 4


def test_one_request_may_use_all_cells_and_the_others_wait_for_room() -> None:
    options = {"n_ctx": 1024, "n_seq_max": 4}
    with stub_model(context_opts=options) as model:
        results = [
            api.infer(model, range(n * 1000, n * 1000 + 400), {"response_tokens": 600})
            for n in range(4)
        ]
        for stream in results:
            done = record(stream)[-1]
            assert done.kind == "done", done.reason
            assert done.stats is not None
            assert done.stats["completion_tokens"] == 600


def test_requests_that_together_overflow_the_context_are_preempted_not_failed() -> None:
    # Each admission asks for its prompt and 64 cells; three times 300 generated tokens
    # do not fit into 512 cells at once.
    options = {"n_ctx": 512, "n_seq_max": 3}
    with stub_model(context_opts=options) as model:
        streams = [
            api.infer(model, range(n * 100, n * 100 + 40), {"response_tokens": 300})
            for n in range(3)
        ]
        for stream in streams:
            events = record(stream)
            ids = [e.token_id for e in events if e.kind == "token_id"]
            assert len(ids) == 300
            assert len(set(ids)) == 1  # one request, one token: nothing was mixed up
            assert events[-1].kind == "done"


def test_a_failed_step_fails_only_the_row_that_fails_alone() -> None:
    options = {"n_seq_max": 2}
    with stub_model(context_opts=options, stub_opts={**SLOW, "fail_at_step": 6}) as model:
        one = api.infer(model, [1], {"response_tokens": 12})
        two = api.infer(model, [2], {"response_tokens": 12})
        assert record(one)[-1].kind == "done"
        assert record(two)[-1].kind == "done"


def test_a_step_that_fails_alone_fails_its_request_and_the_model_serves_on() -> None:
    with stub_model(stub_opts={"fail_at_step": 2}) as model:
        last = record(api.infer(model, [1], {"response_tokens": 12}))[-1]
        assert last.kind == "error"
        assert last.reason == "decode_failed"
        assert api.complete(model, "a", {"response_tokens": 2})["generated"]


def test_a_request_that_fails_holds_nothing_of_the_cache() -> None:
    head = list(range(200))
    with stub_model(stub_opts={"fail_at_step": 3, "step_delay_ms": 5}) as model:
        key = api.prefill_only(model, head)["finish_key"]
        wait_for(lambda: core().cache.holds(key))
        last = record(api.infer(model, [*head, 1], {"response_tokens": 12}))[-1]
        assert last.kind == "error"
        core().cache.gc()
        assert core().cache.snapshot(limit=0)["blocks"]["payloads"] == 0


def test_bit_requests_run_alone_and_the_others_after_them() -> None:
    with stub_model(context_opts={"n_seq_max": 4}, stub_opts=SLOW) as model:
        first = api.infer(model, [1], {"response_tokens": 8})
        exact = api.infer(model, [2], {"response_tokens": 8, "exactness": "bit"})
        last = api.infer(model, [3], {"response_tokens": 2})
        wait_for(lambda: api.queue_depth(model) == 1)
        assert api.pending_len(model) == 2
        for stream in (first, exact, last):
            assert record(stream)[-1].kind == "done"


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ([], "empty_prompt"),
        ([-1], "invalid_token"),
        ([1 << 40], "invalid_token"),
        (["a"], "invalid_token"),
        ([1 << 28], "invalid_token"),
        (range(5000), "context_overflow"),
    ],
)
def test_bad_prompts_are_refused_with_the_reason(tokens, reason: str) -> None:
    with stub_model() as model:
        for call in (api.infer, api.prefill_only):
            with pytest.raises(ErllamaError) as caught:
                call(model, tokens)
            assert caught.value.reason == reason
        assert api.complete(model, "a", {"response_tokens": 1})["generated"]


def test_bad_texts_and_options_are_refused_and_harm_nothing() -> None:
    with stub_model() as model:
        with pytest.raises(ErllamaError) as caught:
            api.complete(model, "")
        assert caught.value.reason == "empty_prompt"
        for options, reason in [
            ({"stop_sequences": 5}, ("invalid", "stop_sequences", 5)),
            ({"response_tokens": "many"}, ("invalid", "response_tokens", "many")),
            ({"parent_key": b"short"}, ("invalid", "parent_key", b"short")),
            ({"exactness": "roughly"}, ("invalid", "exactness", "roughly")),
            ({"seed": -1}, "badarg"),
            ({"seed": 1 << 64}, "badarg"),
            ({"grammar": ""}, "badarg"),
        ]:
            with pytest.raises(ErllamaError) as caught:
                api.complete(model, "a", options)
            assert caught.value.reason == reason
        whole, long = api.models(), "a" * (4 << 20 | 1)
        for call in (api.complete, api.tokenize):
            with pytest.raises(ErllamaError) as caught:
                call(model, long)
            assert caught.value.reason == "too_large"
        for tokens in (api.embed, api.detokenize, api.infer):
            with pytest.raises(ErllamaError) as caught:
                tokens(model, [0] * (1 << 24 | 1))
            assert caught.value.reason == "too_large"
        assert api.models() == whole
        for bad in (["not", "a", "map"], 5):
            with pytest.raises(BadCall):
                api.complete(model, "a", bad)  # type: ignore[arg-type]
        with pytest.raises(BadCall):
            api.complete(model, 5)  # type: ignore[arg-type]
        for call in (api.complete, api.tokenize):
            with pytest.raises(BadCall, match="half a character at 1"):
                call(model, "a\ud800")
        for options, words in [
            ({"stop_sequences": ["a\ud800"]}, "a stop sequence has half a character at 1"),
            ({"grammar": "\ud800"}, "the grammar has half a character at 0"),
            ({"session_id": "a\ud800"}, "session_id cannot be"),
        ]:
            with pytest.raises(ErllamaError, match=words):
                api.complete(model, "a", options)
        with pytest.raises(ErllamaError, match="model_path cannot be"):
            api.load_model({"model_path": "a\ud800.gguf"})
        assert api.complete(model, "a", {"response_tokens": 1})["generated"]


def test_unknown_models_exit_or_answer_neutrally() -> None:
    for call in (
        api.model_info,
        api.status,
        lambda m: api.complete(m, "a"),
        lambda m: api.tokenize(m, "a"),
    ):
        with pytest.raises(ModelGone) as caught:
            call("nobody")
        assert caught.value.reason == ("noproc", ("erllama_model", "not_found", "nobody"))
    assert api.phase("nobody") == "idle"
    assert api.pending_len("nobody") == api.queue_depth("nobody") == 0
    assert api.last_cache_hit("nobody") is None
    assert api.list_cached_prefixes("nobody", []) == 0
    with pytest.raises(ErllamaError) as refused:
        api.list_cached_prefixes("nobody", [1])
    assert refused.value.reason == "model_not_loaded"
    with pytest.raises(ErllamaError) as missing:
        api.unload("nobody")
    assert missing.value.reason == "not_found"
    for odd in (5, None, Atom("atom")):
        with pytest.raises(BadCall):
            api.complete(odd, "a")  # type: ignore[arg-type]


def test_the_stub_renders_chats_in_its_own_format() -> None:
    request = {
        "system": "sys",
        "tools": [{"name": "t", "description": "d"}],
        "messages": [{"role": "user", "content": "hi there"}],
    }
    with stub_model() as model:
        expected = api.tokenize(model, "system: sys\ntools:\n  - t: d\nuser: hi there\n")
        assert api.apply_chat_template(model, request) == expected


def test_a_models_stream_yields_text_and_stops_when_left() -> None:
    with stub_model(stub_opts=SLOW) as model:
        text = "".join(model.stream("a b", response_tokens=3))
        assert text.isdecimal()
        for _ in model.stream("a b", response_tokens=1000):
            break
        wait_for(lambda: api.queue_depth(model) == 0)


def test_a_models_methods_take_tokens_too() -> None:
    with stub_model() as model:
        tokens = model.chat([{"role": "user", "content": "a b"}])
        said = model.complete(tokens, response_tokens=3)
        assert said["context_tokens"][: len(tokens)] == tokens
        assert "".join(model.stream(tokens, response_tokens=3)).isdecimal()
        for call in (model.complete, lambda bad: list(model.stream(bad))):
            with pytest.raises(ErllamaError) as caught:
                call([])
            assert caught.value.reason == "empty_prompt"


def test_a_prompt_that_shares_its_head_is_exact_the_second_time() -> None:
    head = list(range(100, 300))
    with stub_model() as model:
        record(api.infer(model, [*head, 1, 2, 3], {"response_tokens": 2}))
        prompt = [*head, 7, 8, 9]
        kinds = []
        for _ in range(2):
            done = record(api.infer(model, prompt, {"response_tokens": 2}))[-1]
            assert done.stats is not None
            kinds.append(done.stats["cache_hit_kind"])
    assert kinds == ["partial", "exact"]
