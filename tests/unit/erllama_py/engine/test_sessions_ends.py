"""What ends a session, and what it survives."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from erllama_py import api
from erllama_py._engine.registry import core
from erllama_py._engine.request import Request
from erllama_py._engine.sessions import Sessions
from erllama_py.config import GenerateOptions
from erllama_py.errors import ErllamaError
from erllama_py.testing import stub_model
from erllama_py.types import session_key
from tests.sessionlab import PROMPT, SLOW
from tests.waiting import wait_for


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
