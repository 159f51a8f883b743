"""Sessions: a request goes on in the cells of the one before, one at a time.

On the stub, in this process, with its scheduler within reach.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from erllama_py import api
from erllama_py._engine.registry import core
from erllama_py.errors import ErllamaError
from erllama_py.testing import record
from erllama_py.types import Atom, session_key
from tests.sessionlab import PROMPT, SLOW
from tests.waiting import wait_for

# -- going on ------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("whole", [True, False], ids=["whole rows", "blocks"])
def test_the_next_request_goes_on_and_moves_no_counter(
    load: Any, *, cached: bool, whole: bool
) -> None:
    model = load(cache=cached, stub_opts={"whole_rows": whole}, policy={"min_tokens": 4})
    assert model.run(PROMPT[:13], "a")["cache_hit_kind"] == "cold"
    ((_, stored),) = model.kept.items()
    assert stored == 15
    context = [*PROMPT[:13], *model.scheduler._slots.parked[0][13:]]
    before = api.counters()
    stats = model.run([*context, 90, 91], "a")
    assert (stats["cache_hit_kind"], stats["prefix_len"]) == ("sticky", 15)
    assert stats["cache_delta"] == {"read": 15, "created": 4 if cached else 0}
    assert api.last_cache_hit(model.id) == {"kind": "sticky", "prefix_len": 15}
    wait_for(lambda: api.model_totals(model.id)["hits"]["sticky"] == 1)
    after = api.counters()
    for name in ("hits_exact", "hits_resume", "hits_longest_prefix", "misses"):
        assert after[name] == before[name]
    assert model.kept == {"a": 19}
    told = api.explain(model.id)
    assert (told["reason"], told["via"], told["prefix_len"]) == ("sticky", None, 15)
    assert "15 of 17 tokens are in the context" in told["why"]
    again = [*context, 90, 91, *stats["said"]]
    for prompt, options, reason in (
        (again, {"session_id": "a"}, "sticky"),
        ([*again, 1], {"session_id": "a"}, "sticky"),
        (again[:-1], {"session_id": "a"}, None),
        (again, {"session_id": "b"}, None),
        (again, {"session_id": "a", "exactness": "bit"}, None),
    ):
        told = api.explain(model.id, prompt, options)
        assert (told["reason"] == "sticky") == (reason == "sticky")


def test_complete_and_prefill_go_on_too(load: Any) -> None:
    model = load()
    assert model.prefill(api.tokenize(model.id, "a b c"), "s")["cache_hit_kind"] == "cold"
    options = {"session_id": "s", "response_tokens": 1}
    result = api.complete(model.id, "a b c d", options)
    assert result["cache_hit_kind"] == result["stats"]["cache_hit_kind"] == "sticky"
    longer = model.prefill([*result["context_tokens"], 5], "s")
    assert (longer["cache_hit_kind"], longer["cache_delta"]["read"]) == ("sticky", 5)


def test_tokens_of_spans_are_in_the_session_and_in_what_is_counted(load: Any) -> None:
    model = load(thinking_capable=True, tool_call_payload_capable=True)
    options = {"session_id": "a", "response_tokens": 2, "thinking": "enabled"}
    result = api.complete(model.id, "a b c", options)
    context = result["context_tokens"]
    assert len(context) > 3 + 2  # thinking and a call beside the reply
    assert result["cache_delta"] == {"read": 0, "created": 0 if len(context) < 16 else len(context)}
    model.settle()
    assert model.kept == {"a": len(context)}
    assert model.scheduler._slots.parked[0].tolist() == context
    again = model.prefill([*context, 1], "a")
    assert (again["cache_hit_kind"], again["cache_delta"]["read"]) == ("sticky", len(context))


def test_at_once_after_a_reply_is_soon_enough(load: Any) -> None:
    model = load(stub_opts=SLOW)
    context = list(PROMPT)
    for turn in range(5):
        options = {"session_id": "a", "response_tokens": 2}
        events = record(api.infer(model.id, context, options))
        context += [e.token_id for e in events if e.token_id is not None]
        assert events[-1].stats["cache_hit_kind"] == ("sticky" if turn else "cold")
        context.append(100 + turn)


def test_the_whole_context_again_has_its_last_token_computed_again(load: Any) -> None:
    model = load()
    model.prefill(PROMPT, "a")
    steps = model.scheduler._backend._steps
    stats = model.run(PROMPT, "a", 3)
    assert (stats["cache_hit_kind"], stats["prefix_len"]) == ("sticky", 15)
    assert model.scheduler._backend._steps == steps + 4
    assert model.kept == {"a": 18}
    again = model.prefill([*PROMPT, *stats["said"]], "a")
    assert again["cache_hit_kind"] == "sticky"
    assert again["committed_tokens"] == 18
    assert model.scheduler._backend._steps == steps + 4  # nothing was to be computed


def test_a_sequence_that_cannot_be_cut_is_not_gone_on_in_at_its_end(load: Any) -> None:
    model = load(stub_opts={"whole_rows": True})
    model.prefill([*range(1, 40)], "a")
    stats = model.run([*range(1, 40)], "a")
    assert (stats["cache_hit_kind"], stats["prefix_len"]) == ("exact", 39)
    assert model.kept == {"a": 41}


@pytest.mark.parametrize("other", [[1, 2, 99, *range(4, 30)], PROMPT[:9], [7]])
def test_another_prompt_ends_the_session_and_is_admitted_as_usual(
    load: Any, other: list[int]
) -> None:
    model = load()
    model.run(PROMPT, "a")
    stats = model.run(other, "a")
    assert stats["cache_hit_kind"] == "cold"
    assert model.kept == {"a": len(other) + 2}


def test_a_lost_session_costs_nothing_but_a_restore(load: Any) -> None:
    model = load()
    tokens = [*range(1, 200)]
    model.prefill(tokens[:90], "a")
    model.prefill(tokens[:180], "a")
    api.end_session(model.id, "a")
    again = model.prefill(tokens, "a")
    assert (again["cache_hit_kind"], again["cache_delta"]["read"]) == ("partial", 180)


def test_what_was_evicted_meanwhile_is_stored_again(load: Any) -> None:
    model = load()
    tokens = [*range(1, 200)]
    model.prefill(tokens[:150], "a")
    core().cache.gc()
    assert model.prefill(tokens, "a")["cache_hit_kind"] == "sticky"
    api.end_session(model.id, "a")
    model.settle()
    assert model.prefill(tokens)["cache_hit_kind"] == "exact"


# -- one at a time -------------------------------------------------------------------------


def test_a_busy_session_refuses_at_once_and_the_first_goes_on(load: Any) -> None:
    model = load(slots=3, stub_opts=SLOW)
    first = model.start(PROMPT, "a", 1000)
    for call in (
        lambda: model.start(PROMPT, "a"),
        lambda: api.complete(model.id, "x", {"session_id": "a"}),
        lambda: api.prefill_only(model.id, [1], {"session_id": "a"}),
    ):
        with pytest.raises(ErllamaError) as refused:
            call()
        assert refused.value.reason == "sticky_busy"
    assert api.list_sessions(model.id)[0]["busy"]
    assert api.end_session(model.id, "a") == "ok"
    api.cancel(first.ref)
    assert model.done(first)["cancelled"]
    model.settle()
    assert all(not one["busy"] for one in api.list_sessions(model.id))
    assert model.run(PROMPT, "a")["completion_tokens"] == 2


def test_of_two_first_requests_the_second_is_refused_and_no_slot_is_lost(load: Any) -> None:
    model = load(slots=2)
    gate = threading.Barrier(6)

    def ask(_: int) -> str:
        gate.wait()
        try:
            api.prefill_only(model.id, [*range(400)], {"session_id": "new"})
        except ErllamaError as error:
            return str(error.reason)
        return "ok"

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(ask, range(6)))
    assert set(outcomes) <= {"ok", "sticky_busy"}
    assert "ok" in outcomes
    model.settle()
    assert model.kept == {"new": 400}


def test_a_queued_first_request_has_its_session_already(load: Any) -> None:
    model = load(stub_opts=SLOW)
    running = model.start(PROMPT, None, 1000)
    queued = model.start(PROMPT, "a")
    with pytest.raises(ErllamaError, match="not over"):
        model.start(PROMPT, "a")
    api.cancel(queued.ref)
    assert model.done(queued)["cancelled"]
    again = model.start(PROMPT, "a")
    api.cancel(running.ref)
    model.done(running)
    assert model.done(again)["cache_hit_kind"] != "sticky"


def test_sessions_are_equal_as_erlang_terms_are(load: Any) -> None:
    terms = [1, 1.0, True, "1", Atom("1"), (1,), [1], {"a": 1}, {Atom("a"): 1}, {"a": 1.0}]
    assert len({session_key(term) for term in terms}) == len(terms)
    assert session_key("1") == session_key(b"1")
    assert session_key({"a": 1, "b": [2]}) == session_key({"b": [2], "a": 1})
    assert [session_key(term).term() for term in terms] == terms
    model = load(slots=len(terms))
    for term in terms:
        model.prefill(PROMPT, term)
    assert len(api.list_sessions(model.id)) == len(terms)


def test_undefined_is_no_session_but_a_text_of_that_name_is(load: Any) -> None:
    model = load(slots=3)
    for none in (None, Atom("undefined"), Atom("nil")):
        model.prefill(PROMPT, none)
        assert api.end_session(model.id, none) == "ok"
    assert model.kept == {}
    model.prefill(PROMPT, "undefined")
    model.prefill(PROMPT, "")
    assert model.kept == {"undefined": 15, "": 15}
    with pytest.raises(ErllamaError, match="session_id"):
        model.prefill(PROMPT, {1, 2})
    with pytest.raises(ErllamaError, match="session_id"):
        api.end_session(model.id, {1})
