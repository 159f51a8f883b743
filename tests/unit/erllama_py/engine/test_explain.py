"""What ``explain`` says of prompts and of requests that have run, on the stub backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from erllama_py import api
from erllama_py._engine.registry import core
from erllama_py.errors import BadCall, ErllamaError, ModelGone
from erllama_py.testing import record, stub_model
from tests.waiting import wait_for

PROMPT = list(range(1000, 1200))
OTHER = [*PROMPT[:150], 1, 2, 3]
KEYS = {
    *("reason", "why", "kind", "via", "prompt_tokens", "prefix_len", "exactness", "tiers"),
    *("lookup_ms", "restore_ms", "nearest_row", "first_difference", "evicted_row", "other_keys"),
}


@pytest.fixture(autouse=True)
def forgetful(empty_cache: None) -> None:
    """Forget what other tests evicted."""
    for namespace in core().cache._namespaces.values():
        namespace.space.ghosts.clear()


@pytest.fixture
def model() -> Iterator[api.Model]:
    """A stub with two slots."""
    with stub_model(context_opts={"n_seq_max": 2}) as loaded:
        yield loaded


def idle(model: api.Model) -> None:
    """Wait until its requests have given everything back."""
    wait_for(lambda: not core().host(model).requests)


# -- prompts ----------------------------------------------------------------------------------


def test_of_an_empty_cache_it_says_that_nothing_is_known(model: api.Model) -> None:
    answer = api.explain(model, PROMPT)
    assert set(answer) == KEYS
    assert (answer["reason"], answer["kind"], answer["via"]) == ("unknown", "cold", "cold")
    assert (answer["prompt_tokens"], answer["prefix_len"], answer["tiers"]) == (200, 0, {})
    assert answer["nearest_row"] is None
    assert answer["first_difference"] == {
        "index": 0,
        "prompt_token": 1000,
        "prompt_text": "1000",
        "cached_token": None,
        "cached_text": None,
        "before": "",
    }
    assert answer["why"] == "nothing that is cached begins with its first token, '1000'"


def test_a_prompt_that_forks_names_the_token_and_the_row(model: api.Model) -> None:
    key = api.prefill_only(model, PROMPT)["finish_key"]
    idle(model)  # its row comes after its answer
    answer = api.explain(model, OTHER)
    assert (answer["reason"], answer["kind"], answer["prefix_len"]) == ("diverged", "partial", 150)
    assert (answer["via"], answer["exactness"]) == ("longest_prefix", "stream")
    assert answer["tiers"] == {"ram": 150}
    assert answer["nearest_row"] == {"key": key, "tokens": 200, "shared": 150}
    assert answer["first_difference"] == {
        "index": 150,
        "prompt_token": 1,
        "prompt_text": "1",
        "cached_token": 1150,
        "cached_text": "1150",
        "before": "1146114711481149",
    }
    assert answer["why"] == (
        "150 of 153 tokens were found; token 150 is '1', "
        "where the nearest cached context has '1150'"
    )
    assert api.prefill_only(model, OTHER)["cache_hit_kind"] == answer["kind"]
    assert api.last_cache_hit(model) == {"kind": "partial", "prefix_len": 150}


def test_asking_is_no_use_of_the_cache(model: api.Model) -> None:
    api.prefill_only(model, PROMPT)
    idle(model)

    def noted() -> tuple[Any, ...]:
        counters = api.counters()
        del counters["bytes_ram"]  # extents are granted ahead, on a thread of its own
        return counters, api.cache_snapshot()["rows"][0]["hits"], api.last_cache_hit(model)

    before = noted()
    for prompt in (PROMPT, OTHER, "a b c"):
        api.explain(model, prompt)
    assert noted() == before
    assert core().cache.gc() == 1  # nothing is pinned


def test_text_is_tokenised_as_a_prompt(model: api.Model) -> None:
    text = " ".join(f"w{n}" for n in range(40))
    model.complete(text, response_tokens=2)
    assert model.explain(text)["reason"] == "exact"
    assert model.explain(text.encode())["prompt_tokens"] == 40
    longer = model.explain(text + " and more")
    assert (longer["reason"], longer["prefix_len"]) == ("ended", 40)


def test_each_thing_that_keeps_cached_tokens_from_use_is_named(
    model: api.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.prefill_only(model, PROMPT)
    idle(model)
    longer, short, cut = [*PROMPT, 1], [*PROMPT[:10], 1, 2], PROMPT[:150]
    assert api.explain(model, longer)["reason"] == "ended"
    assert "ends before token 200, '1'" in api.explain(model, longer)["why"]
    assert api.explain(model, short)["reason"] == "below_min_tokens"
    assert "10 tokens are cached, fewer than min_tokens (16)" in api.explain(model, short)["why"]
    assert api.explain(model, cut)["reason"] == "no_row"
    assert api.explain(model, cut)["first_difference"] is None
    assert api.explain(model, cut)["nearest_row"]["shared"] == 150
    bit = api.explain(model, OTHER, {"exactness": "bit"})
    assert (bit["reason"], bit["prefix_len"], bit["exactness"]) == ("not_bit_exact", 128, "bit")
    monkeypatch.setattr(core().host(model).cache, "_quicker", lambda _: 0)  # not at the stub
    gated = api.explain(model, OTHER)
    assert (gated["reason"], gated["kind"]) == ("quicker_to_compute", "cold")
    assert "150 are cached, but quicker to compute" in gated["why"]


def test_what_another_number_of_threads_computed_is_not_used(model: api.Model) -> None:
    reply = model.complete("x y " * 20, response_tokens=80)["context_tokens"]
    with stub_model(context_opts={"n_threads": 7}) as other:
        answer = api.explain(other, [*reply, 1])
    assert (answer["reason"], answer["prefix_len"]) == ("computed_differently", 0)
    assert "decoded or prefilled beside others" in answer["why"]


def test_a_sequence_in_one_piece_is_used_whole_or_not_at_all() -> None:
    with stub_model(stub_opts={"whole_rows": True}) as model:
        key = api.prefill_only(model, PROMPT)["finish_key"]
        wait_for(lambda: api.explain(model, PROMPT)["kind"] == "exact")
        answer = api.explain(model, OTHER)
        assert (answer["reason"], answer["prefix_len"]) == ("whole_rows", 0)
        assert answer["nearest_row"] == {"key": key, "tokens": 200, "shared": 150}
        assert answer["first_difference"]["cached_token"] == 1150
        assert api.explain(model, [*PROMPT, 5])["prefix_len"] == 200


def test_an_evicted_row_is_remembered_as_one(model: api.Model) -> None:
    key = api.prefill_only(model, PROMPT)["finish_key"]
    idle(model)
    core().cache.gc()
    answer = api.explain(model, [*PROMPT, 1])
    assert (answer["reason"], answer["kind"]) == ("evicted", "cold")
    assert answer["evicted_row"] == {"key": key, "tokens": 200}
    assert "a row of its first 200 tokens was cached, and has been evicted" in answer["why"]
    # The request that stores it again was a miss for want of the first.
    again = api.prefill_only(model, PROMPT)
    assert api.explain(model, again)["reason"] == "evicted"


@pytest.mark.parametrize(
    ("config", "differs"),
    [
        ({"fingerprint": b"\1" * 32}, {"fingerprint": ("01" * 32, "00" * 32)}),
        ({"quant_type": "q8_0"}, {"quant_type": ("q8_0", "f16")}),
        ({"ctx_params_hash": b"\2" * 32}, {"ctx_params_hash": ("02" * 32, "00" * 32)}),
    ],
)
def test_what_another_model_has_is_told_with_the_field_of_the_key(
    model: api.Model, config: dict[str, Any], differs: dict[str, Any]
) -> None:
    with stub_model(**config) as other:
        early = api.prefill_only(other, PROMPT)
        wait_for(lambda: not core().host(other).requests)
        api.prefill_only(model, PROMPT)
        late = api.explain(other, OTHER)
        assert late["reason"] == "diverged"  # its own are as long
        core().cache.gc()
        api.prefill_only(model, PROMPT)
        answer = api.explain(other, [*PROMPT[:100], 1])
        assert {"shared": 100, "differs": differs} in answer["other_keys"]
        (name,) = differs
        assert f"100 tokens of it under another key: {name} is" in answer["why"]
        # At its time, nobody had any of it.
        assert api.explain(other, early)["other_keys"] == []


# -- requests ---------------------------------------------------------------------------------


def test_a_request_is_explained_as_it_was_however_it_is_named(model: api.Model) -> None:
    first = model.complete("a b c " * 10, response_tokens=2)
    stream = api.infer(model, PROMPT, {"response_tokens": 2})
    done = record(stream)[-1]
    second = model.complete("a b c " * 10, response_tokens=2)
    prefill = api.prefill_only(model, OTHER)
    for _ in range(2):  # while its slot is being freed, and after that
        for what in (stream, stream.ref, done, done.stats):
            answer = api.explain(model, what)
            assert (answer["reason"], answer["prompt_tokens"]) == ("unknown", 200)
            assert answer["first_difference"]["index"] == 0
        for what in (first, first["stats"], dict(first["stats"])):
            assert api.explain(model, what)["reason"] == "unknown"
        for what in (second, second["stats"]):
            answer = api.explain(model, what)
            assert (answer["reason"], answer["kind"], answer["prefix_len"]) == (
                "exact",
                "exact",
                30,
            )
            assert answer["tiers"] == {"ram": 30}
            assert answer["first_difference"] is answer["nearest_row"] is None
        for what in (prefill, None):
            assert api.explain(model, what)["first_difference"]["index"] == 150
        idle(model)


def test_times_are_those_of_the_lookup_and_the_restore(model: api.Model) -> None:
    cold = model.complete("a b c " * 10, response_tokens=2)
    warm = model.complete("a b c " * 10, response_tokens=2)
    idle(model)
    assert api.explain(model, cold)["lookup_ms"] > 0
    assert api.explain(model, warm)["lookup_ms"] > 0
    assert api.explain(model, warm)["restore_ms"] >= 0


def test_a_parent_key_that_fits_nothing_is_mentioned(model: api.Model) -> None:
    first = model.complete("a b c " * 10, response_tokens=2)
    tokens = [*first["context_tokens"], 5]
    fits = api.explain(model, tokens, {"parent_key": first["finish_key"]})
    assert fits["via"] == "resume"
    assert "parent_key" not in fits["why"]
    odd = api.explain(model, tokens, {"parent_key": bytes(32)})
    assert odd["via"] == "longest_prefix"
    assert odd["why"].endswith("parent_key is of no row that this prompt begins with")


def test_a_request_without_the_cache_says_so() -> None:
    with stub_model(cache=False) as model:
        done = model.complete("a b c", response_tokens=1)
        for what in (done, "a b c", None):
            answer = api.explain(model, what)
            assert set(answer) == KEYS
            assert (answer["reason"], answer["prompt_tokens"]) == ("not_cached", 3)
            assert answer["via"] is answer["lookup_ms"] is None


def test_waiting_and_cancelled_requests_have_not_looked_anything_up() -> None:
    with stub_model(stub_opts={"step_delay_ms": 20}) as model:
        running = api.infer(model, PROMPT, {"response_tokens": 50})
        queued = api.infer(model, OTHER, {"response_tokens": 50})
        wait_for(lambda: api.queue_depth(model) == 1)
        assert api.explain(model, running)["reason"] == "unknown"
        waiting = api.explain(model, queued)
        assert (waiting["reason"], waiting["kind"]) == ("waiting", "cold")
        queued.cancel()
        record(queued)
        assert api.explain(model, queued)["reason"] == "not_looked_up"
        running.cancel()
        record(running)


def test_preempted_requests_keep_their_first_lookup() -> None:
    with stub_model(context_opts={"n_ctx": 256, "n_seq_max": 2}) as model:
        streams = [
            api.infer(model, list(range(start, start + 60)), {"response_tokens": 150})
            for start in (1000, 2000)
        ]
        for stream in streams:
            assert record(stream)[-1].kind == "done"
        for stream in streams:
            assert api.explain(model, stream)["reason"] == "unknown"


def test_what_could_not_be_restored_is_told(model: api.Model) -> None:
    api.prefill_only(model, PROMPT)
    idle(model)
    for payload in core().cache._shared.index.payloads.values():
        payload.crc ^= 1
    damaged = api.prefill_only(model, OTHER)
    answer = api.explain(model, damaged)
    assert (answer["reason"], answer["kind"], answer["prefix_len"]) == ("restore_failed", "cold", 0)
    assert answer["exactness"] is None
    assert "150 of 153 tokens were found; they could not be restored" in answer["why"]


def test_a_model_keeps_so_many_requests_and_bytes(
    model: api.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erllama_py._engine.noted.KEPT", 3)
    monkeypatch.setattr("erllama_py._engine.noted.KEPT_BYTES", 1500)
    with stub_model(quant_type="q8_0") as other:  # so that there is something left to look at
        api.prefill_only(other, PROMPT)
        streams = []
        for n in range(5):
            streams.append(api.infer(model, [n, *PROMPT], {"response_tokens": 1}))
            record(streams[-1])
            idle(model)
        for stream in streams[:2]:
            with pytest.raises(ErllamaError) as caught:
                api.explain(model, stream)
            assert caught.value.reason == "not_found"
            assert "explain tells what is cached now" in str(caught.value)
        answers = [api.explain(model, stream) for stream in streams[2:]]
    assert [answer["other_keys"] for answer in answers] == [None, None, []]
    assert [answer["first_difference"]["prompt_token"] for answer in answers] == [2, 3, 4]
    assert core().host(model).history._nbytes == 201 * 4


def test_of_an_exact_hit_no_prompt_is_kept(model: api.Model) -> None:
    with stub_model(quant_type="q8_0"):
        streams = []
        for _ in range(2):
            streams.append(api.infer(model, PROMPT, {"response_tokens": 1}))
            record(streams[-1])
    idle(model)
    past = [core().host(model).history.find(stream.ref, []) for stream in streams]
    lookups = [one.lookup for one in past if one is not None]
    assert [one.tokens is None for one in lookups if one is not None] == [False, True]


# -- wrong calls ------------------------------------------------------------------------------


def test_wrong_calls_name_the_mend(model: api.Model) -> None:
    with pytest.raises(ErllamaError, match="no request yet") as caught:
        api.explain(model)
    assert caught.value.reason == "not_found"
    assert caught.value.hint
    with stub_model() as other:
        stream = api.infer(other, PROMPT, {"response_tokens": 1})
        record(stream)
        with pytest.raises(ErllamaError, match="none of the latest requests"):
            api.explain(model, stream)
        with pytest.raises(ErllamaError, match="none of the latest requests"):
            api.explain(model, {"made": "up"})
    for prompt, reason in (([], "empty_prompt"), ("", "empty_prompt"), ([-1], "invalid_token")):
        with pytest.raises(ErllamaError) as caught:
            api.explain(model, prompt)
        assert caught.value.reason == reason
    with pytest.raises(BadCall):
        api.explain(model, 1.5)
    with pytest.raises(ErllamaError) as caught:
        api.explain(model, PROMPT, {"exactness": "rough"})
    with pytest.raises(ModelGone):
        api.explain("nobody", PROMPT)
