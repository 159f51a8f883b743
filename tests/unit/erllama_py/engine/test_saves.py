"""When rows are saved, how long they are, and which counters move.

One table of what the original documents, run through the façade: every save has its
moment, its least length and its counter, and nothing is saved twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from erllama_py import api
from erllama_py._cache import mover
from erllama_py._cache.store import Cache
from erllama_py._engine.frames import Captured, Done, Saved, Token
from erllama_py._engine.registry import core
from erllama_py.testing import record, stub_model
from tests.enginepeer import stub_peer
from tests.waiting import wait_for

SAVES = ("saves_cold", "saves_continued", "saves_finish", "duplicate_dropped", "saves_dropped")
SPLIT = {
    "min_tokens": 16,
    "cold_min_tokens": 16,
    "boundary_trim_tokens": 8,
    "boundary_align_tokens": 16,
}
"""The example of the original: 66 tokens are split into 48 and 18."""


def prompt(length: int) -> list[int]:
    return list(range(1000, 1000 + length))


def saves() -> list[int]:
    """Cold, continued, finish, duplicates, dropped."""
    counters = api.counters()
    return [counters[name] for name in SAVES]


def run(
    tokens: list[int], reply: int, policy: Mapping[str, object] | None = None, **options: object
) -> tuple[list[tuple[str, int]], list[int]]:
    """Serve one request on a model of its own; return the rows and what was counted.

    A model that is unloaded has stored what follows its replies.
    """
    before = saves()
    with stub_model(policy={**SPLIT, **(policy or {})}) as model:
        list(api.infer(model, tokens, {"response_tokens": reply, **options}))
    found = [(row["reason"], row["tokens"]) for row in api.cache_snapshot()["rows"]]
    return found[::-1], [after - one for after, one in zip(saves(), before, strict=True)]


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set a cache that may store nothing."""
    nothing = Cache(0)
    monkeypatch.setattr(core(), "_cache", nothing)
    yield
    monkeypatch.undo()
    nothing.close()


# -- cold ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "policy", "cold"),
    [
        (66, {}, 48),
        (24, {}, 16),
        (23, {}, None),  # 15 of 16 tokens are left of it
        (66, {"cold_min_tokens": 67}, None),
        (66, {"cold_max_tokens": 65}, None),
        (66, {"boundary_trim_tokens": 0, "boundary_align_tokens": 1}, 66),
        (30, {"boundary_align_tokens": 2, "min_tokens": 22, "cold_min_tokens": 22}, 22),
        (29, {"boundary_align_tokens": 2, "min_tokens": 22, "cold_min_tokens": 22}, None),
    ],
)
def test_a_cold_prompt_is_saved_at_its_boundary(length: int, policy, cold: int | None) -> None:
    found, counted = run(prompt(length), 3, policy)
    finish = [("finish", length + 3)]
    assert found == ([("cold", cold)] if cold else []) + finish
    assert counted == [int(bool(cold)), 0, 1, 0, 0]


def test_a_finish_row_of_the_tokens_of_the_cold_row_is_a_duplicate() -> None:
    with stub_model(
        policy={**SPLIT, "min_tokens": 4, "boundary_trim_tokens": 0, "boundary_align_tokens": 1}
    ) as model:
        result = api.prefill_only(model, prompt(16))
    assert saves() == [1, 0, 0, 1, 1]
    assert [row["key"] for row in api.cache_snapshot()["rows"]] == [result["finish_key"].hex()]


@pytest.mark.parametrize("whole_rows", [False, True])
def test_duplicates_count_alike_where_rows_are_whole(whole_rows: bool) -> None:
    with stub_model(stub_opts={"whole_rows": whole_rows}) as model:
        api.prefill_only(model, prompt(30))
    assert saves() == [1, 0, 0, 1, 1]


# -- continued ----------------------------------------------------------------------------


@pytest.mark.parametrize(("reply", "continued"), [(10, []), (11, [30]), (25, [30, 40])])
def test_a_continued_save_comes_every_so_many_tokens_but_not_with_the_last(
    reply: int, continued: list[int]
) -> None:
    policy = {
        "boundary_trim_tokens": 0,
        "boundary_align_tokens": 1,
        "continued_interval": 10,
    }
    found, counted = run(prompt(20), reply, policy)
    assert found == [("cold", 20), *(("continued", n) for n in continued), ("finish", 20 + reply)]
    assert counted == [1, len(continued), 1, 0, 0]


def test_a_prompt_that_was_not_split_is_saved_with_its_first_token() -> None:
    policy = {"cold_min_tokens": 100, "continued_interval": 20}
    found, counted = run(prompt(30), 5, policy)
    assert found == [("continued", 31), ("finish", 35)]
    assert counted == [0, 1, 1, 0, 0]


def test_a_continued_save_waits_for_the_least_length() -> None:
    policy = {"min_tokens": 28, "cold_min_tokens": 100, "continued_interval": 5}
    found, _ = run(prompt(20), 10, policy)
    assert found == [("continued", 28), ("finish", 30)]


def test_neither_a_remainder_nor_a_warm_start_makes_a_surplus_save() -> None:
    """BUG-13: the original forgets there what it has saved."""
    policy = {"continued_interval": 30}
    found, counted = run(prompt(66), 3, policy)  # 48 of 66 are saved: 30 more are 78
    assert found == [("cold", 48), ("finish", 69)]
    assert counted == [1, 0, 1, 0, 0]
    exact, counted = run(prompt(66), 4, policy)
    assert counted[1] == 0
    partial, counted = run([*prompt(66), 7, 7, 7], 4, policy)
    assert counted[1] == 0
    assert not any(reason == "continued" for reason, _ in exact + partial)


def test_a_resumed_conversation_makes_no_surplus_save() -> None:
    with stub_model(policy={**SPLIT, "continued_interval": 20}) as model:
        first = api.complete(model, " ".join(map(str, range(40))), {"response_tokens": 2})
        turn = [*first["context_tokens"], 5, 6]
        options = {"parent_key": first["finish_key"], "response_tokens": 4}
        assert record(api.infer(model, turn, options))[-1].kind == "done"
    assert api.counters()["hits_resume"] == 1
    assert api.counters()["saves_continued"] == 0


# -- finish -------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "has"), [(15, False), (16, True)])
def test_a_finish_row_and_its_key_take_the_least_length(length: int, has: bool) -> None:
    with stub_model(policy=SPLIT) as model:
        result = api.complete(model, " ".join(map(str, range(length - 2))), {"response_tokens": 2})
    assert (result["finish_key"] is not None) == has
    assert saves() == [0, 0, int(has), 0, 0]


def test_a_stop_string_and_a_cancel_leave_finish_rows_too() -> None:
    with stub_model(policy=SPLIT, stub_opts={"step_delay_ms": 5}) as model:
        words = " ".join(map(str, range(20)))
        stopped = api.complete(model, words, {"stop_sequences": [str(n) for n in range(10)]})
        assert stopped["finish_reason"] == "stop"
        stream = api.infer(model, prompt(20), {"response_tokens": 1000})
        assert next(stream).kind == "token"
        stream.cancel()
        done = list(stream)[-1]
        assert done.stats is not None
        assert done.stats["cancelled"]
    reasons = {row["key"]: row["reason"] for row in api.cache_snapshot()["rows"]}
    assert reasons[done.stats["finish_key"].hex()] == "finish"
    assert reasons[stopped["finish_key"].hex()] == "finish"


def test_blocks_are_stored_as_chunks_complete_and_a_cancelled_prefill_keeps_them() -> None:
    policy = {**SPLIT, "prefill_chunk_size": 64}
    tokens = prompt(64 * 40)
    with stub_model(policy=policy, stub_opts={"step_delay_ms": 20}) as model:
        stream = api.infer(model, tokens, {"response_tokens": 1})
        wait_for(lambda: api.cache_snapshot()["blocks"]["payloads"] >= 2)
        assert api.phase(model) == "prefilling"
        stream.cancel()
        done = list(stream)[-1]
        assert done.stats is not None
        there = done.stats["committed_tokens"]
        assert 0 < there < len(tokens)
        assert there % 64 == 0
        wait_for(lambda: api.counters()["saves_finish"] == 1)
        assert api.list_cached_prefixes(model, tokens) == there
    assert [row["tokens"] for row in api.cache_snapshot()["rows"]] == [there]


# -- nothing twice, nothing without end, and what is dropped ---------------------------------


def test_what_is_there_is_not_stored_again() -> None:
    tokens = prompt(300)
    with stub_model() as model:
        api.prefill_only(model, tokens)
        wait_for(lambda: sum(saves()[:3]) == 1)
        before = api.cache_snapshot()["blocks"]["payloads"]
        for _ in range(3):
            api.prefill_only(model, tokens)
        record(api.infer(model, [*tokens, 1], {"response_tokens": 1}))
    assert before == 5, "four blocks and a tail"
    assert api.cache_snapshot()["blocks"]["payloads"] == 5, "the longer tail takes the place"


def test_captures_take_no_more_than_is_granted_and_hold_nobody_up() -> None:
    """The queue of what is still to be stored is as long as there are grants."""
    with stub_peer() as peer:
        peer.grant(blocks=3, logits=1)
        peer.submit(1, prompt(900), 5)
        peer.cold(1)
        peer.finish(1)
        assert [frame.start for frame in peer.seen(Captured, 1)] == [0, 64, 128]
        assert len(peer.seen(Token, 1)) == 5
        assert peer.wait(Done, 1).committed == 905
        assert all(frame.tail is None for frame in peer.seen(Saved, 1))


@pytest.mark.usefixtures("cache")
def test_rows_without_room_are_counted_as_dropped() -> None:
    found, counted = run(prompt(66), 3)
    assert found == []
    assert counted == [0, 0, 0, 0, 2], "cold and finish"


def test_rows_that_the_movers_queue_refuses_are_counted_as_dropped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = Cache(1 << 20)
    small.home = small.add_tier("disk", "disk", tmp_path, 1 << 22)
    monkeypatch.setattr(core(), "_cache", small)
    monkeypatch.setattr(mover, "QUEUED_MOST", 0)
    found, counted = run(prompt(66), 3)
    assert found == [("cold", 48), ("finish", 69)], "memory has them"
    assert counted == [1, 0, 1, 0, 2]
    assert small.snapshot()["saving"]["dropped"] > 2, "blocks and tails too"
    monkeypatch.undo()
    small.close()
