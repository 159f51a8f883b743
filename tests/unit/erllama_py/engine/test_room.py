"""Who gets cells and turns when both are scarce, tick by tick over the stub."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from erllama_py._engine.frames import Admitted, Closed, Done, Failed, Restored
from erllama_py._engine.job import Stage
from tests.ticking import Ticking


def head(length: int, of: int = 0) -> list[int]:
    return [1000 * (of + 1) + at for at in range(length)]


# -- what admission counts is what there will be ------------------------------------------------


def test_a_head_that_a_parked_and_a_running_sequence_have_counts_once() -> None:
    """Both hold its cells: what the next request goes on in, and what runs beside it."""
    with Ticking(1024, 3) as ticking:
        ticking.ask(1, [*head(256), 7])
        ticking.run(1)
        ticking.ask(2, [*head(256), 8], 500)  # takes over what is parked
        ticking.tick(5)
        ticking.ask(3, [*head(256), 9])  # shares what runs
        ticking.run(3)
        used = ticking.slots.used()
        assert used == 256 + 1 + len(ticking.jobs[2].ledger) - 256
        fourth = ticking.ask(4, [*head(256), 9, 10])
        like = ticking.slots.like(fourth)
        assert like is not None
        assert like.tokens == 257, "of which it keeps four blocks"
        pending = 1  # of the second
        assert ticking.slots.wanted(fourth) == used - 1 + 2 + pending


def test_a_session_that_others_share_the_head_of_counts_once() -> None:
    with Ticking(1024, 3) as ticking:
        ticking.ask(1, head(256), session=1)
        ticking.run(1)
        ticking.ask(2, [*head(256), 8], 500)
        ticking.tick(5)
        used = ticking.slots.used()
        assert used == len(ticking.jobs[2].ledger)
        following = ticking.ask(3, [*head(256), *range(50)], session=1)
        assert ticking.slots.wanted(following) == used + 50 + 1


def test_a_request_that_waits_for_its_plan_counts_what_it_will_share_once() -> None:
    """What it will not need is not dropped for another that comes meanwhile."""
    with Ticking(1024, 4) as ticking:
        ticking.ask(1, [*head(512), 7], 200)
        ticking.ask(2, head(100, of=1))
        ticking.run(2)
        ticking.tick(12)
        ticking.held = []
        ticking.ask(3, [*head(512), 8])
        ticking.tick()
        assert [one.id for one in ticking.held] == [3]
        ticking.ask(4, head(64, of=2))
        ticking.tick()
        assert ticking.jobs[4].active
        assert len(ticking.slots.parked) == 1
        for lookup in ticking.held:
            ticking.answer(lookup)
        ticking.held = None
        ticking.run(3, 4)
        assert sum(frame.shared for frame in ticking.of(Restored)) == 512


def test_whole_rows_share_nothing() -> None:
    with Ticking(1024, 3, whole=True) as ticking:
        ticking.ask(1, [*head(400), 7], 200)
        ticking.tick(10)
        used, other = ticking.slots.used(), ticking.ask(2, [*head(400), 8])
        assert ticking.slots.wanted(other) == used + 1 + 401


LENGTHS = st.sampled_from([40, 64, 100, 128, 200, 300])
PROMPTS = st.tuples(st.integers(0, 2), LENGTHS, LENGTHS)
"""Which head, how much of it, and how much of its own."""
NUMBERS = st.sets(st.integers(0, 5))


def prompt(shape: tuple[int, int, int], number: int) -> list[int]:
    of, shared, own = shape
    return [*head(shared, of), *range(10**6 * number, 10**6 * number + own)]


@settings(max_examples=60, deadline=None)
@given(st.lists(PROMPTS, min_size=2, max_size=6), NUMBERS, NUMBERS)
def test_admission_counts_what_there_is_when_the_prompt_is_there(
    shapes: list[tuple[int, int, int]], running: set[int], sessions: set[int]
) -> None:
    """Requests one after the other, beside some that run on; every other goes on a session."""
    with Ticking(8192, 8) as ticking:
        for number, shape in enumerate(shapes):
            tokens = prompt(shape, number)
            session = number + 1 if number in sessions else 0
            if number - 1 in sessions and ticking.slots.kept(number):
                session = number
                tokens = [*ticking.jobs[number - 1].ledger, *tokens]
            others = [job for job in ticking.jobs.values() if job.active]
            said = sum(len(job.generated) for job in others)
            job = ticking.ask(number, tokens, 2000 if number in running else 0, session=session)
            while job.stage is not Stage.RUN or job.todo:
                if job.id in {one.id for one in ticking.of(Closed)}:
                    break
                ticking.tick()
            since = sum(len(job.generated) for job in others) - said
            pending = sum(one.pending is not None for one in others)
            drawn = len(job.generated) and len(job.ledger) - len(tokens)
            expected = ticking.scheduler.wanted[number] + since + drawn
            assert ticking.slots.used() + pending == expected


STEPS = st.one_of(
    st.tuples(st.just("ask"), PROMPTS, st.sampled_from([0, 3, 60]), st.integers(0, 2)),
    st.tuples(st.just("tick"), st.integers(1, 12)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("end"), st.integers(1, 2)),
    st.tuples(st.just("evict")),
    st.tuples(st.just("hold")),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(STEPS, max_size=25), st.sampled_from([512, 700, 1024]), st.sampled_from([8, 512]))
def test_the_cells_counted_are_those_in_use_at_every_tick(
    steps: Sequence[tuple], n_ctx: int, n_batch: int
) -> None:
    """And every request ends, whatever others do."""
    with Ticking(n_ctx, 3, n_batch=n_batch) as ticking:
        busy: dict[int, int] = {}
        for step in steps:
            match step:
                case ("ask", shape, target, session):
                    number = len(ticking.jobs)
                    if busy.get(session) is not None and not closed(ticking, busy[session]):
                        session = 0
                    if session:
                        busy[session] = number
                    tokens = prompt(shape, number)[: n_ctx - 100]
                    ticking.ask(number, tokens, target, session=session)
                case ("tick", count):
                    ticking.tick(count)
                case ("cancel", number):
                    ticking.scheduler.cancel(number)
                case ("end", session):
                    ticking.scheduler.end_session(session)
                case ("evict",):
                    ticking.scheduler.save_live("evict")
                case ("hold",):
                    ticking.held, held = ([] if ticking.held is None else None), ticking.held
                    for lookup in held or []:
                        ticking.answer(lookup)
        ticking.held, held = None, ticking.held
        for lookup in held or []:
            ticking.answer(lookup)
        ticking.run(*ticking.jobs)
        assert not ticking.of(Failed)
        assert len(ticking.of(Done)) == len(ticking.jobs)


def closed(ticking: Ticking, number: int) -> bool:
    return any(one.id == number for one in ticking.of(Closed))


# -- what is given up for whom ------------------------------------------------------------------


def test_nothing_parked_goes_for_one_that_has_to_wait_all_the_same() -> None:
    with Ticking(1024, 4) as ticking:
        ticking.ask(1, head(100), session=1)
        ticking.run(1)
        ticking.ask(2, head(500, of=1), 300)
        ticking.tick(12)
        waiting = ticking.ask(3, head(600, of=2))
        ticking.tick(3)
        assert not waiting.active
        assert ticking.slots.kept(1) == 100
        # The one that runs leaves, and its cells are enough.
        ticking.run(2, 3)
        assert ticking.slots.kept(1) == 100


def test_a_restore_without_cells_blames_no_block_and_goes_on_later() -> None:
    """Streams beside it have grown since it was admitted.  It is the youngest, and waits."""
    with Ticking(512, 2) as ticking:
        ticking.computed.append(array("I", head(300)))
        ticking.ask(1, head(60, of=1), 300)
        ticking.tick(3)
        ticking.held = []
        second = ticking.ask(2, [*head(300), 5])
        ticking.tick(260)
        assert ticking.slots.used() > 512 - 256
        (lookup,) = ticking.held
        ticking.answer(lookup)
        ticking.held = None
        ticking.tick(2)
        assert not second.active
        assert second.preempted
        ticking.run(1, 2)
        assert not any(frame.bad for frame in ticking.of(Restored))
        assert [(frame.id, frame.kind, frame.prefix_len) for frame in ticking.of(Admitted)] == [
            (1, "cold", 0),
            (2, "partial", 256),
        ]


def test_an_older_restore_has_its_cells_from_a_younger_stream() -> None:
    with Ticking(512, 3) as ticking:
        ticking.computed.append(array("I", head(300)))
        ticking.held = []
        first = ticking.ask(1, [*head(300), 5], 10)
        ticking.tick()
        ticking.ask(2, head(60, of=1), 300, cached=False)
        ticking.tick(250)
        # It was admitted beside the other, which has more by now than that one leaves.
        assert ticking.jobs[2].active
        (lookup,) = ticking.held
        ticking.answer(lookup)
        ticking.held = None
        ticking.tick(2)
        assert first.active
        assert not ticking.jobs[2].active
        ticking.run(1, 2)
        assert not any(frame.bad for frame in ticking.of(Restored))
        assert len(ticking.jobs[2].generated) == 300


def test_what_is_preempted_before_its_plan_is_captured_later_all_the_same() -> None:
    with Ticking(512, 2) as ticking:
        ticking.ask(1, head(128))
        ticking.run(1)
        ticking.ask(2, head(60, of=1), 400)
        ticking.tick(3)
        ticking.held = []
        third = ticking.ask(3, [*head(128), *range(70)])
        ticking.tick()
        assert third.inherited == 128
        ticking.tick(330)
        assert third.preempted
        assert third.capturing
        (lookup,) = ticking.held
        ticking.answer(lookup)  # too late: nobody waits for it
        ticking.held = None
        ticking.run(2, 3)
        assert third.ledger in ticking.slots.parked.values()


# -- turns ---------------------------------------------------------------------------------------


def test_prompts_are_prefilled_in_the_order_of_their_admission() -> None:
    """Whatever slots they have: a low one would else go on being served first."""
    with Ticking(4096, 2, n_batch=64) as ticking:
        ticking.ask(1, head(64))
        older = ticking.ask(2, head(900, of=1))
        ticking.run(1)
        younger = ticking.ask(3, head(900, of=2))
        ticking.tick(6)
        assert younger.slot < older.slot
        assert (len(older.ledger), len(younger.ledger)) == (6 * 64, 0)
        ticking.run(2, 3)


def test_more_streams_than_a_batch_has_tokens_take_turns() -> None:
    """One that has said much is not kept waiting by those that come anew."""
    with Ticking(4096, 6, n_batch=2) as ticking:
        old = ticking.ask(1, head(3), 600)
        ticking.tick(200)
        for number in range(2, 7):
            ticking.ask(number, head(2, of=number), 150)
        ticking.tick(40)
        before = len(old.generated)
        ticking.tick(60)
        assert len(old.generated) == before + 60 * 2 // 6


def test_a_prompt_is_prefilled_beside_as_many_streams_as_a_batch_has_tokens() -> None:
    with Ticking(4096, 3, n_batch=2) as ticking:
        for number in (1, 2):
            ticking.ask(number, head(2, of=number), 900)
        ticking.tick(10)
        ticking.ask(3, head(20))
        ticking.tick(200)
        assert closed(ticking, 3)
        assert all(ticking.jobs[number].active for number in (1, 2))
