"""Sessions hold up nobody: who comes has a slot and cells, however many talk."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erllama_py import api
from erllama_py.errors import ErllamaError
from tests.sessionlab import PROMPT, SLOW
from tests.waiting import wait_for

# -- nobody starves ------------------------------------------------------------------------


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


# -- many on few slots ---------------------------------------------------------------------


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
