"""Sessions: a request goes on in the cells of the one before, and holds up nobody.

On the stub, in this process, with its scheduler within reach.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erllama_py import api
from erllama_py._engine import worker
from erllama_py._engine.registry import core
from erllama_py._engine.request import Request
from erllama_py._engine.scheduler import Scheduler
from erllama_py._engine.sessions import Sessions
from erllama_py.config import EVERYDAY_POLICY, GenerateOptions
from erllama_py.errors import ErllamaError
from erllama_py.testing import record, stub_model
from erllama_py.types import Atom, session_key
from tests.waiting import wait_for

PROMPT = [*range(1, 16)]
SLOW = {"step_delay_ms": 5}


class Loaded:
    """A stub model and its scheduler."""

    def __init__(self, model: api.Model, scheduler: Scheduler) -> None:
        self.id = model
        self.scheduler = scheduler

    def prefill(self, tokens: list[int], session: Any = None, **options: Any) -> dict[str, Any]:
        result = api.prefill_only(self.id, tokens, {"session_id": session, **options})
        self.settle()
        return result

    def run(self, tokens: list[int], session: Any = None, count: int = 2) -> dict[str, Any]:
        """Stream a reply; return its stats, and its context as ``context``."""
        stats = self.done(self.start(tokens, session, count))
        self.settle()
        return stats

    def start(self, tokens: list[int], session: Any = None, count: int = 2) -> api.Stream:
        return api.infer(self.id, tokens, {"session_id": session, "response_tokens": count})

    def done(self, stream: api.Stream) -> dict[str, Any]:
        events = record(stream)
        assert events[-1].kind == "done", events[-1]
        return {**(events[-1].stats or {}), "said": [e.token_id for e in events if e.token_id]}

    @property
    def kept(self) -> dict[Any, int]:
        return {one["session_id"]: one["tokens"] for one in api.list_sessions(self.id)}

    def tail(self, session: Any) -> list[int]:
        """Return what was said last in a session."""
        number = core().host(self.id).sessions._by_key[session_key(session)].number
        slots = self.scheduler._slots
        return slots.parked[slots._sessions[number]][-2:].tolist()

    def settle(self) -> None:
        """Wait until every request has given back what it held, and check the books."""
        slots, backend = self.scheduler._slots, self.scheduler._backend
        host = core().host(self.id)
        wait_for(lambda: not self.scheduler._jobs and not host._requests)
        known = host.sessions._by_number
        wait_for(
            lambda: (
                {number: one.tokens for number, one in list(known.items())}
                == {number: slots.kept(number) for number in list(slots._sessions)}
            )
        )
        count = backend.info.n_seq_max
        assert not slots.running
        assert sorted([*slots._empty, *slots.parked]) == list(range(count))
        assert set(slots._sessions.values()) <= set(slots.parked)
        for slot in range(count):
            parked = slots.parked.get(slot, array("I"))
            assert backend._cells[slot] == parked
            assert slots._cells.length(slot) == len(parked)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Load stubs; all are unloaded in the end."""
    models: list[api.Model] = []
    made: list[Scheduler] = []

    def scheduler(*args: Any, **options: Any) -> Scheduler:
        made.append(Scheduler(*args, **options))
        return made[-1]

    monkeypatch.setattr(worker, "Scheduler", scheduler)

    def make(slots: int = 1, n_ctx: int = 4096, **config: Any) -> Loaded:
        manager = stub_model(context_opts={"n_ctx": n_ctx, "n_seq_max": slots}, **config)
        models.append(manager)
        model = manager.__enter__()
        return Loaded(model, made[-1])

    yield make
    for manager in reversed(models):
        manager.__exit__(None, None, None)


# -- cache_delta -----------------------------------------------------------------------------


def test_what_is_read_and_created_is_told_in_result_stats_and_prefill(load: Any) -> None:
    model = load(policy={**EVERYDAY_POLICY, "min_tokens": 4, "cold_min_tokens": 4})
    words = " ".join("abcdefghijkl")
    cold = api.complete(model.id, words, {"response_tokens": 3})
    assert cold["cache_delta"] == cold["stats"]["cache_delta"] == {"read": 0, "created": 15}
    prompt = cold["context_tokens"][:12]
    exact = model.run(prompt, count=3)
    assert (exact["cache_hit_kind"], exact["cache_delta"]) == ("exact", {"read": 12, "created": 3})
    partial = model.prefill([*cold["context_tokens"], 7, 8])
    assert (partial["cache_hit_kind"], partial["cache_delta"]["read"]) == ("partial", 15)
    assert partial["cache_delta"]["created"] == 2


def test_a_row_that_is_there_already_counts_as_created(load: Any) -> None:
    model = load()
    tokens = [*range(1, 100)]
    assert model.prefill(tokens)["cache_delta"] == {"read": 0, "created": 99}
    assert model.prefill(tokens)["cache_delta"] == {"read": 99, "created": 0}


@pytest.mark.parametrize(
    "config", [{"policy": {"min_tokens": 64}}, {"cache": False}], ids=["min_tokens", "no cache"]
)
def test_nothing_saved_is_nothing_created(load: Any, config: dict[str, Any]) -> None:
    model = load(**config)
    for result in (model.run(PROMPT), model.prefill(PROMPT)):
        assert result["cache_delta"] == {"read": 0, "created": 0}


def test_a_cancelled_request_that_was_never_admitted_read_nothing(load: Any) -> None:
    model = load(stub_opts=SLOW)
    first = model.start(PROMPT, count=1000)
    second = model.start(PROMPT)
    api.cancel(second.ref)
    assert model.done(second)["cache_delta"] == {"read": 0, "created": 0}
    api.cancel(first.ref)
    model.done(first)


# -- prefill_only/3 ----------------------------------------------------------------------------


def test_prefills_chain_by_parent_key(load: Any) -> None:
    model = load(policy={"min_tokens": 4})
    first, rest = [*range(1, 20)], [*range(30, 35)]
    one = model.prefill(first)
    two = model.prefill(first + rest, parent_key=one["finish_key"])
    assert two["cache_hit_kind"] == "partial"
    assert two["cache_delta"] == {"read": 19, "created": 5}
    assert two["finish_key"] == model.prefill(first + rest)["finish_key"]
    assert api.counters()["hits_resume"] == 1
    with pytest.raises(ErllamaError, match="parent_key"):
        model.prefill(first, parent_key=b"short")


# -- going on ----------------------------------------------------------------------------------


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


# -- one at a time -----------------------------------------------------------------------------


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


# -- nobody starves ----------------------------------------------------------------------------


def test_an_idle_session_makes_room_for_whoever_comes(load: Any) -> None:
    model = load(slots=1)
    model.run(PROMPT, "a")
    assert model.run([50, 51])["cache_hit_kind"] == "cold"
    assert model.kept == {}
    assert model.run([*PROMPT, 1], "a")["cache_hit_kind"] == "cold"


def test_the_session_used_longest_ago_goes_first_and_others_stay(load: Any) -> None:
    model = load(slots=3)
    for name in "abc":
        model.run([*map(ord, name * 20)], name)
    model.run([*map(ord, "a" * 20), *model.tail("a"), 9], "a")  # used last now
    model.run(PROMPT)
    assert [one["session_id"] for one in api.list_sessions(model.id)] == ["c", "a"]
    model.run(PROMPT, "d")  # in the slot that was given back
    assert set(model.kept) == {"c", "a", "d"}


def test_idle_sessions_make_room_for_cells_too(load: Any) -> None:
    model = load(slots=4, n_ctx=512)
    for name in range(3):
        model.run([name, *range(100)], name, 20)
    assert len(model.kept) == 3
    stats = model.run([9, *range(300)], None, 40)
    assert stats["finish_reason"] == "length"
    assert 2 not in [one for one in model.kept if one == 0]
    assert len(model.kept) < 3
    # A reply that takes all there is, beside sessions.
    model.run([5, *range(100)], 5)
    assert model.run([7, *range(50)], None, 440)["completion_tokens"] == 440
    assert model.kept == {}


def test_ending_a_session_frees_its_slot_and_never_fails(load: Any) -> None:
    model = load(slots=2)
    model.run(PROMPT, "a")
    model.run([90, 91], "b")
    assert api.end_session(model.id, "unknown") == "ok"
    assert api.end_session(model.id, "a") == "ok"
    assert list(model.kept) == ["b"]
    model.settle()
    assert len(model.scheduler._slots._empty) == 1
    assert api.end_session(model.id, "a") == "ok"
    assert model.id.end_session("b") == "ok"
    assert model.id.sessions == []
    model.settle()
    assert len(model.scheduler._slots._empty) == 2


def test_a_session_that_is_ended_right_after_its_reply_keeps_nothing(load: Any) -> None:
    model = load(stub_opts=SLOW)
    for _ in range(3):
        stream = model.start(PROMPT, "a")
        model.done(stream)
        api.end_session(model.id, "a")
        model.settle()
        assert model.kept == {}
        assert not model.scheduler._slots._sessions


def test_a_session_without_a_pause_does_not_hold_up_the_queue(load: Any) -> None:
    model = load(slots=1, stub_opts={"step_delay_ms": 1})
    stop = threading.Event()

    def talk() -> None:
        context = list(PROMPT)
        while not stop.is_set():
            context += model.done(model.start(context, "a"))["said"]
            context.append(3)

    with ThreadPoolExecutor(1) as pool:
        talking = pool.submit(talk)
        try:
            for _ in range(5):
                assert model.done(model.start([60, 61]))["completion_tokens"] == 2
            # Who wants the context alone, too.
            api.complete(model.id, "x y", {"exactness": "bit", "response_tokens": 2})
        finally:
            stop.set()
        talking.result(20)
    model.settle()


def test_a_session_overtakes_one_that_waits_for_its_head(load: Any) -> None:
    model = load(slots=3, stub_opts={"step_delay_ms": 10}, policy={"prefill_chunk_size": 64})
    model.run(PROMPT, "a")
    context = [*PROMPT, *model.tail("a")]
    head = [*range(1000, 3000)]
    first = model.start(head, None, 1)
    wait_for(lambda: model.scheduler._slots.running)
    second = model.start([*head, 1], None, 1)
    wait_for(lambda: len(model.scheduler._queue) == 1)
    assert model.done(model.start([*context, 2], "a"))["cache_hit_kind"] == "sticky"
    assert len(model.scheduler._queue) == 1
    for stream in (first, second):
        model.done(stream)
    model.settle()


# -- what ends and survives ----------------------------------------------------------------------


def test_a_cancelled_request_leaves_what_it_has_computed(load: Any) -> None:
    model = load(stub_opts=SLOW)
    stream = model.start(PROMPT, "a", 1000)
    events = iter(stream)
    while next(events).kind != "token_id":
        pass
    api.cancel(stream.ref)
    stats = next(one.stats for one in events if one.kind == "done")
    model.settle()
    assert model.kept == {"a": stats["committed_tokens"]}
    assert stats["committed_tokens"] > len(PROMPT)


def test_a_request_cancelled_in_the_queue_leaves_the_session_as_it_was(load: Any) -> None:
    model = load(slots=2, stub_opts=SLOW)
    model.run(PROMPT, "a")
    context = [*PROMPT, *model.tail("a")]
    other = model.start([40], None, 1000)
    alone = threading.Thread(
        target=api.complete,
        args=(model.id, "z", {"exactness": "bit", "response_tokens": 1}),
    )
    alone.start()
    wait_for(lambda: model.scheduler._queue)
    queued = model.start([*context, 4], "a")  # behind one that waits for all to drain
    wait_for(lambda: len(model.scheduler._queue) == 2)
    api.cancel(queued.ref)
    assert model.done(queued)["cancelled"]
    assert model.kept == {"a": 17}
    api.cancel(other.ref)
    model.done(other)
    alone.join()
    model.settle()


def test_a_name_stays_until_all_its_requests_are_closed() -> None:
    """One is cancelled in the queue while the one before still has a token to evaluate."""

    def request() -> Request:
        return Request("infer", GenerateOptions(), session=session_key("a"))

    def end(one: Request) -> None:
        one.on_error(ErllamaError("any"))

    sessions, first, second = Sessions(), request(), request()
    sessions.take(first)
    end(first)
    sessions.take(second)
    assert first.session == second.session
    end(second)
    sessions.kept(second.session, 0)
    sessions.over(second)
    sessions.kept(first.session, 17)
    sessions.over(first)
    assert [one["tokens"] for one in sessions.all()] == [17]
    sessions.kept(first.session, 0)
    assert sessions.all() == []
    again = request()
    sessions.take(again)
    assert again.session != first.session


def test_a_failed_request_ends_its_session(load: Any) -> None:
    model = load(stub_opts={"fail_at_step": 4})
    model.run(PROMPT, "a")  # three steps
    context = [*PROMPT, *model.tail("a")]
    with pytest.raises(ErllamaError, match="fail_at_step"):
        model.prefill([*context, 1], "a")
    model.settle()
    assert model.kept == {}
    assert model.prefill([*context, 1], "a")["cache_hit_kind"] == "partial"


def test_a_refused_request_leaves_the_session_as_it_was(load: Any) -> None:
    model = load(n_ctx=64)
    model.run(PROMPT, "a")
    for tokens in ([], [*range(100)], [-1]):
        with pytest.raises(ErllamaError):
            model.start(tokens, "a")
    with pytest.raises(ErllamaError, match="context"):
        api.complete(model.id, "x " * 100, {"session_id": "a"})
    assert model.kept == {"a": 17}
    assert model.run([*PROMPT, *model.tail("a"), 4], "a")["cache_hit_kind"] == "sticky"


def test_bit_takes_the_usual_way_and_keeps_nothing(load: Any) -> None:
    model = load(slots=2)
    tokens = [*range(1, 100)]
    model.prefill(tokens, "a")
    model.prefill([50, 51], "b")
    result = model.prefill([*tokens, 1], "a", exactness="bit")
    assert result["cache_hit_kind"] != "sticky"
    assert model.kept == {}


def test_evict_gives_up_idle_sessions_and_running_ones_go_on(load: Any) -> None:
    model = load(slots=2, stub_opts=SLOW)
    model.run(PROMPT, "a")
    stream = model.start([*range(60, 90)], "b", 40)
    events = iter(stream)
    while next(events).kind != "token_id":
        pass
    assert api.evict(model.id) == "ok"
    last = list(events)[-1]
    assert last.stats["completion_tokens"] == 40
    model.settle()
    assert model.kept == {"b": 70}


def test_an_adapter_change_ends_sessions(load: Any, tmp_path: Any) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"anything")
    model = load(slots=2)
    model.run(PROMPT, "a")
    context = [*PROMPT, *model.tail("a")]
    api.load_adapter(model.id, str(file))
    assert model.run([*context, 1], "a")["cache_hit_kind"] == "cold"
    assert model.run([*context, 1, *model.tail("a"), 2], "a")["cache_hit_kind"] == "sticky"


def test_a_model_that_ends_forgets_its_sessions() -> None:
    options = {"session_id": "a", "response_tokens": 1}
    crash = {"stub_opts": {"crash_at_step": 3}}
    with stub_model(in_process=False, **crash) as model:
        first = api.complete(model, "a b c", options)
        with pytest.raises(ErllamaError):
            api.complete(model, "x", options)
        wait_for(lambda: core().host(model).pid is not None, 20)
        assert api.list_sessions(model) == []
        tokens = [*first["context_tokens"], 5]
        assert api.prefill_only(model, tokens, options)["cache_hit_kind"] == "cold"
    with pytest.raises(ErllamaError):
        api.end_session(model, "a")


# -- many on few slots ---------------------------------------------------------------------------


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_many_sessions_on_few_slots_lose_no_slot_and_hang_nobody(
    load: Any, data: st.DataObject
) -> None:
    slots = data.draw(st.integers(1, 3))
    whole = data.draw(st.booleans())
    model = load(
        slots=slots,
        n_ctx=320,
        stub_opts={"whole_rows": whole},
        cache=data.draw(st.booleans()),
    )
    names = ["a", "b", "c", "d", None]
    scripts = [
        data.draw(
            st.lists(
                st.tuples(
                    st.sampled_from(names),
                    st.sampled_from(["go on", "again", "other", "cancel", "end", "bit", "prefill"]),
                    st.integers(1, 60),
                ),
                min_size=2,
                max_size=8,
            )
        )
        for _ in range(4)
    ]
    contexts: dict[Any, list[int]] = {}

    def play(script: list[tuple[Any, str, int]]) -> None:
        for name, what, size in script:
            known = contexts.get(name, [])
            if what == "other" or len(known) > 200:
                known = [size]
            tokens = known if what == "again" and known else [*known, *range(size)]
            options: dict[str, Any] = {"session_id": name, "response_tokens": 3}
            if what == "bit":
                options["exactness"] = "bit"
            try:
                if what == "end":
                    api.end_session(model.id, name)
                elif what == "prefill":
                    contexts[name] = api.prefill_only(model.id, tokens, options)["context_tokens"]
                else:
                    stream = api.infer(model.id, tokens, options)
                    if what == "cancel":
                        api.cancel(stream.ref)
                    stats = model.done(stream)
                    said = [*tokens, *stats["said"]]
                    if not stats["cancelled"]:
                        assert stats["committed_tokens"] == len(said)
                        contexts[name] = said
            except ErllamaError as error:
                assert error.reason == "sticky_busy"  # noqa: PT017

    with ThreadPoolExecutor(4) as pool:
        for playing in [pool.submit(play, script) for script in scripts]:
            playing.result(30)
    model.settle()
    # Whoever comes now has a slot, and all of the context.
    assert model.run([*range(200)], None, 100)["completion_tokens"] == 100
    model.settle()
    for name in names:
        api.end_session(model.id, name)
    model.settle()
    assert model.kept == {}
