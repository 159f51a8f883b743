"""evict/1, shutdown/1 and the save of an unload."""

from __future__ import annotations

import itertools
from array import array

import pytest

from erllama_py import api
from erllama_py._cache.ram import Extent
from erllama_py._engine.frames import Answer, Call, Done, Lookup, Plan, Saved, SavedWhole, Token
from erllama_py._engine.registry import Core, core
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.errors import ModelGone
from erllama_py.testing import record, stub_model
from tests.enginepeer import MEMORY, Peer, stub_peer, stub_pieces
from tests.models import smollm2_path
from tests.waiting import wait_for

SLOW = {"step_delay_ms": 10}
LONG = {"response_tokens": 30}


def saved() -> list[int]:
    """Rows saved by evict and by shutdown, and dropped."""
    counters = api.counters()
    return [counters[name] for name in ("saves_evict", "saves_shutdown", "saves_dropped")]


def decode(stream: api.Stream) -> None:
    """Read until more is in the KV than the prompt, which has a row of its own."""
    for _ in range(5):
        assert next(stream).kind != "error"


def prompts(count: int, length: int = 100) -> list[list[int]]:
    return [list(range(1000 * n, 1000 * n + length)) for n in range(1, count + 1)]


# -- through the façade -------------------------------------------------------------------


def test_an_idle_model_has_nothing_to_save() -> None:
    with stub_model() as model:
        api.prefill_only(model, range(100))
        wait_for(lambda: api.counters()["saves_dropped"] == 1)
        for function in (api.evict, api.shutdown):
            assert function(model) == "ok"
            assert function(api.models()[-1]) == "ok"
        assert api.list_cached_prefixes(model, range(100)) == 100
    assert saved() == [0, 0, 1]


@pytest.mark.parametrize("whole_rows", [False, True])
def test_evict_saves_every_running_request_and_all_go_on(whole_rows: bool) -> None:
    stub = {**SLOW, "whole_rows": whole_rows}
    with stub_model(context_opts={"n_seq_max": 3}, stub_opts=stub) as model:
        streams = [api.infer(model, tokens, LONG) for tokens in prompts(3)]
        for stream in streams:
            decode(stream)
        before = api.counters()
        assert api.evict(model) == "ok"
        assert saved()[0] == 3
        rows = [r["tokens"] for r in api.cache_snapshot()["rows"] if r["reason"] == "evict"]
        assert len(rows) == 3
        assert all(length > 100 for length in rows)
        for stream in streams:
            events = list(stream)
            assert events[-1].stats is not None
            assert events[-1].stats["completion_tokens"] == 30
            ids = {event.token_id for event in events if event.kind == "token_id"}
            assert len(ids) == 1, "each goes on with its own"
        counters = api.counters()
        for name in ("hits_exact", "hits_resume", "hits_longest_prefix", "misses"):
            assert counters[name] == before[name], "coming back is no lookup of a caller's"


def test_rows_of_evict_and_shutdown_have_no_least_length() -> None:
    with stub_model(stub_opts=SLOW, policy={"min_tokens": 512}) as model:
        with api.infer(model, [1, 2, 3], {"response_tokens": 1000}) as stream:
            next(stream)
            api.evict(model)
            assert saved()[:2] == [1, 0]
            length = api.cache_snapshot()["rows"][0]["tokens"]
            wait_for(lambda: api.phase(model) == "generating")
            for _ in range(5):
                next(stream)
            api.shutdown(model)
        assert saved()[:2] == [1, 1]
        assert 3 <= length < api.cache_snapshot()["rows"][0]["tokens"] < 512


def test_what_evict_saved_is_found_by_its_key_and_by_its_tokens() -> None:
    (prompt,) = prompts(1)
    with stub_model(stub_opts=SLOW) as model:
        with api.infer(model, prompt, {"response_tokens": 1000}) as stream:
            decode(stream)
            api.evict(model)
        (row,) = (r for r in api.cache_snapshot()["rows"] if r["reason"] == "evict")
        assert api.list_cached_prefixes(model, [*prompt, 5]) >= len(prompt)
        space = core().host(model).cache.namespace
        assert space is not None
        assert space.status(bytes.fromhex(row["key"])) == "available"


def test_neither_waits_longer_than_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core(), "_save_timeout_s", 0.01)
    with stub_model(stub_opts={"step_delay_ms": 400}) as model:
        stream = api.infer(model, prompts(1)[0], {"response_tokens": 3})
        wait_for(lambda: api.phase(model) == "prefilling")
        assert api.evict(model) == "ok"
        assert saved()[0] == 0, "the step that runs has not ended"
        assert list(stream)[-1].kind == "done", "and nothing was lost by that"


@pytest.mark.parametrize(("text", "seconds"), [("", 30.0), ("0", 0.0), ("250", 0.25)])
def test_the_time_is_the_environments(monkeypatch, text: str, seconds: float) -> None:
    monkeypatch.setenv("ERLLAMA_EVICT_SAVE_TIMEOUT_MS", text)
    monkeypatch.setenv("ERLLAMA_CACHE_RAM", "0")
    fresh = Core()
    fresh.cache.close()
    assert fresh._save_timeout_s == seconds


def test_unload_saves_what_runs() -> None:
    (prompt,) = prompts(1)
    with stub_model("saved", in_process=False, stub_opts=SLOW) as model:
        stream = api.infer(model, prompt, {"response_tokens": 1000})
        decode(stream)
        api.unload(model)
        assert record(stream)[-1].reason == ("unloaded", "shutdown")
    assert saved() == [0, 1, 0]
    with stub_model("saved") as model:
        assert api.list_cached_prefixes(model, [*prompt, 5]) == len(prompt)


def test_an_unknown_model_exits() -> None:
    for function in (api.evict, api.shutdown):
        with pytest.raises(ModelGone):
            function("nobody")


def test_a_model_without_a_cache_goes_on_untouched() -> None:
    with stub_model(stub_opts=SLOW, cache=False) as model:
        stream = api.infer(model, prompts(1)[0], {"response_tokens": 10})
        next(stream)
        assert api.evict(model) == "ok"
        assert api.shutdown(model) == "ok"
        done = list(stream)[-1]
        assert done.stats is not None
        assert done.stats["completion_tokens"] == 10
    assert saved() == [0, 0, 0]


# -- frame by frame -----------------------------------------------------------------------


def running(peer: Peer, *numbers: int, **options) -> None:
    """Have requests decode."""
    for number, tokens in zip(numbers, prompts(len(numbers)), strict=True):
        peer.submit(number, tokens, 30, **options)
    for number in numbers:
        peer.cold(number)
    for number in numbers:
        peer.wait(Token, number, count=3)


def test_evicted_requests_come_back_in_the_order_they_came_in() -> None:
    with stub_peer(stub=SLOW, n_seq_max=3) as peer:
        peer.grant()
        running(peer, 1, 2, 3)
        peer.send(Call(99, "evict", None))
        peer.wait(Answer, 99)
        answer = peer.at(Answer, 99)
        rows = {frame.id: frame for frame in peer.seen(Saved) if frame.reason == "evict"}
        assert set(rows) == {1, 2, 3}
        assert all(peer.frames.index(row) < answer for row in rows.values())
        for number in (1, 2, 3):
            again = peer.wait(Lookup, number, count=2)
            assert again.resume is not None
            assert len(again.resume) == 4 * (rows[number].length + 1), "with the token drawn"
            peer.send(Plan(number, "cold", 0, 0, [], None, canonical=False, captured=0))
        back = [frame.id for frame in peer.seen(Lookup) if frame.resume is not None]
        assert back == [1, 2, 3]
        peer.finish(1, 2, 3)
        assert [peer.wait(Done, number).committed for number in (1, 2, 3)] == [130] * 3


@pytest.mark.parametrize(
    ("reason", "options"),
    [("shutdown", {}), ("evict", {"bit": True})],
    ids=["shutdown", "at exactness bit"],
)
def test_what_is_only_saved_keeps_its_cells(reason: str, options) -> None:
    with stub_peer(stub=SLOW) as peer:
        peer.grant()
        running(peer, 1, **options)
        peer.send(Call(99, reason, None))
        peer.wait(Answer, 99)
        assert [row.reason for row in peer.seen(Saved)][-1] == reason
        peer.finish(1)
        assert len(peer.seen(Lookup)) == 1
        assert len(peer.seen(Token, 1)) == 30


def test_what_could_not_be_saved_keeps_its_cells() -> None:
    with stub_peer(stub=SLOW) as peer:
        running(peer, 1)
        peer.send(Call(99, "evict", None))
        peer.finish(1)
        assert len(peer.seen(Lookup)) == 1
        assert peer.wait(Done, 1).committed == 130


def test_a_prefill_that_is_evicted_still_gets_its_cold_row() -> None:
    with stub_peer(stub=SLOW, policy={"prefill_chunk_size": 64}) as peer:
        peer.grant()
        tokens = prompts(1, 640)[0]
        peer.submit(1, tokens, 2)
        peer.cold(1)
        peer.send(Call(99, "evict", None))
        peer.wait(Answer, 99)
        peer.wait(Lookup, 1, count=1 + len(peer.seen(Saved)))
        if peer.seen(Saved):  # else it had computed nothing yet, and goes on
            peer.send(Plan(1, "cold", 0, 0, [], None, canonical=False, captured=0))
        peer.finish(1)
        rows = [(row.reason, row.length) for row in peer.seen(Saved, 1)]
        assert rows[-2:] == [("cold", 640), ("finish", 642)]


def test_a_token_that_somebody_else_has_stored_meanwhile_is_still_evaluated_once() -> None:
    """The plan may cover the token that was drawn before the eviction, too."""
    with stub_peer(stub=SLOW) as peer:
        peer.grant()
        running(peer, 1)
        peer.send(Call(99, "evict", None))
        again = peer.wait(Lookup, 1, count=2)
        assert again.resume is not None
        tokens = array("I", again.resume)
        places = itertools.count(32 << 20, 1024)

        def put(data: bytes) -> Extent:
            at = next(places)
            peer.memory[at : at + len(data)] = data
            return Extent(MEMORY, at, len(data))

        pieces = stub_pieces(tokens.tolist(), put)
        peer.send(
            Plan(1, "exact", len(tokens), len(tokens), pieces, None, canonical=False, captured=0)
        )
        peer.finish(1)
        assert peer.wait(Done, 1).committed == 130
        assert len(peer.seen(Token, 1)) == 30


def test_a_whole_row_is_asked_for_with_the_token_behind_it() -> None:
    """What is found must leave a token to compute: that one."""
    with stub_peer(stub={**SLOW, "whole_rows": True}) as peer:
        peer.grant(blocks=0)
        running(peer, 1)
        peer.send(Call(99, "evict", None))
        again = peer.wait(Lookup, 1, count=2)
        row = next(one for one in peer.seen(SavedWhole) if one.reason == "evict")
        assert again.resume is not None
        assert len(again.resume) == 4 * (row.length + 1)


@pytest.mark.model
@pytest.mark.timeout(180)
def test_a_real_models_reply_is_the_same_with_an_eviction_in_it() -> None:
    config = {
        "model_path": smollm2_path(),
        "policy": EVERYDAY_POLICY,
        "context_opts": {"n_ctx": 1024, "n_threads": 1, "n_threads_batch": 2},
    }
    text = "The lighthouse keeper wrote one line in the log every evening. " * 10
    with api.load_model(config) as model:
        prompt = model.tokenize(text)
        replies = []
        for evicted in (False, True):
            core().cache.gc()
            stream = api.infer(model, prompt, {"response_tokens": 40})
            tokens = []
            for event in stream:
                if event.kind == "token_id":
                    tokens.append(event.token_id)
                    if evicted and len(tokens) == 5:
                        assert api.evict(model) == "ok"
            replies.append(tokens)
        assert replies[0] == replies[1]
        assert len(replies[0]) > 5
    assert api.counters()["saves_evict"] == 1
