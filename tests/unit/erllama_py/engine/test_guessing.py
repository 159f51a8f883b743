"""Speculation inside a request, tick by tick, over a backend that speaks by a rule.

Whatever is drafted: the request says what it says without.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable

import pytest

from erllama_py._backends.base import SamplerOptions
from erllama_py._engine.frames import Failed, WantDraft
from erllama_py._engine.guessing import DRAFT_IN_COMPANY
from erllama_py.config import Speculate
from tests.talker import DRAFT, END, LOOKUP, Conversation, Talker, following

PROMPT = list(range(1, 14)) * 4


def talk(speculate: Speculate | None, target: int = 200, **backend: int) -> Conversation:
    talk = Conversation(Talker(**backend))
    talk.ask(1, PROMPT, target, speculate)
    talk.run()
    return talk


def right(want: WantDraft, context: array[int]) -> list[int]:
    """The draft of a model that is as good as the target."""
    tokens = array("I", context)
    for _ in range(want.count):
        tokens.append(following(tokens))
    return tokens[want.length :].tolist()


@pytest.mark.parametrize("speculate", [LOOKUP, Speculate(3, lookup=1), Speculate(15, lookup=9)])
def test_lookup_says_the_same_in_fewer_steps(speculate: Speculate) -> None:
    plain, guessed = talk(None), talk(speculate)
    assert guessed.outcome == plain.outcome
    assert plain.done().speculated is None
    facts = guessed.done().speculated
    assert facts is not None
    assert 0 < facts.accepted <= facts.drafted
    assert len(guessed.backend.sizes) <= len(plain.backend.sizes) - facts.accepted
    assert max(guessed.backend.sizes[1:]) <= speculate.most + 1


@pytest.mark.parametrize("target", [1, 2, 16, 17, 18, 19, 20, 33, 64, 65])
def test_it_ends_where_it_would(target: int) -> None:
    assert talk(LOOKUP, target).outcome == talk(None, target).outcome


@pytest.mark.parametrize("end", range(len(PROMPT) + 18, len(PROMPT) + 60))
def test_an_end_of_generation_inside_a_draft_is_the_end(end: int) -> None:
    guessed = Conversation(Talker(end=end))
    guessed.drafting = right
    guessed.ask(1, PROMPT, 200, DRAFT)
    guessed.run()
    assert guessed.outcome == talk(None, end=end).outcome
    assert guessed.said()[-1] == END
    assert talk(LOOKUP, end=end).outcome == talk(None, end=end).outcome


def test_a_full_context_is_its_end() -> None:
    for n_ctx in range(300, 320):
        assert talk(LOOKUP, 5000, n_ctx=n_ctx).outcome == talk(None, 5000, n_ctx=n_ctx).outcome


def test_a_stop_sequence_inside_a_draft_stops() -> None:
    for stop in (b"7891011", b"1213", b"5"):
        talks = []
        for speculate in (None, LOOKUP):
            one = Conversation(Talker())
            one.ask(1, PROMPT, 200, speculate, stop_sequences=(stop,))
            one.run()
            talks.append(one)
        assert talks[0].outcome == talks[1].outcome
        assert talks[1].done().stop == stop


def test_only_bits_of_single_steps_are_trusted() -> None:
    """Sizes are tried from the largest on; what fails once is not tried again."""
    for exact, largest, tried in [(16, 16, [16]), (9, 8, [16, 8]), (5, 4, [16, 8, 4])]:
        guessed = talk(LOOKUP, exact=exact)
        assert guessed.outcome == talk(None).outcome
        assert guessed.backend.rehearsed[: len(tried)] == tried
        assert set(guessed.backend.rehearsed[len(tried) :]) <= {largest}
        assert max(guessed.backend.sizes[1:]) == largest
    inexact = talk(LOOKUP, exact=3)
    assert inexact.outcome == talk(None).outcome
    assert inexact.backend.rehearsed == [16, 8, 4]
    assert max(inexact.backend.sizes[1:]) == 1
    facts = inexact.done().speculated
    assert facts is not None
    assert (facts.drafted, facts.plain) == (0, "inexact")


def test_a_size_that_fails_in_a_long_context_is_tried_in_a_short_one() -> None:
    """Threads share the attention of many cells and not of few, for one."""
    talk = Conversation(Talker(exact=3))
    talk.ask(1, PROMPT * 6, 40, LOOKUP)
    talk.run()
    talk.backend.exact = 16
    talk.ask(2, PROMPT, 100, LOOKUP)
    talk.run()
    assert talk.backend.rehearsed == [16, 8, 4, 16]
    talk.ask(3, PROMPT * 8, 40, LOOKUP)
    talk.run()
    assert talk.backend.rehearsed == [16, 8, 4, 16]
    facts = [talk.done(number).speculated for number in (1, 2, 3)]
    assert [one.plain for one in facts if one] == ["inexact", "", "inexact"]


def test_a_request_begins_with_what_others_found_out_about_costs() -> None:
    """Here a row takes what its tokens take, so that nothing is gained by the best draft."""
    one = Conversation(Talker())
    one.scheduler.token_ns = 10_000
    drafted = []
    for number in range(1, 6):
        one.ask(number, PROMPT, 200, LOOKUP)
        one.run()
        facts = one.done(number).speculated
        assert facts is not None
        drafted.append(facts.drafted)
        assert one.said(number) == talk(None).said()
    # Each length is tried, whoever comes to it.
    assert drafted[0] > drafted[1]
    assert drafted[-2:] == [0, 0]


def test_one_that_is_not_worth_it_proves_nothing() -> None:
    """Not for other shapes, either: a proof takes as long as the longest draft."""
    one = Conversation(Talker())
    one.scheduler.token_ns = 10_000
    one.ask(1, PROMPT, 200, LOOKUP)
    one.run()
    rehearsed = list(one.backend.rehearsed)
    one.ask(2, PROMPT * 8, 200, LOOKUP)
    one.run()
    assert one.backend.rehearsed == rehearsed != []


class Deceiver(Talker):
    """Says the same three tokens again and again, and something new behind them."""

    def _says(self, tokens: array[int]) -> int:
        return len(tokens) % 4 or 1000 + len(tokens)


def test_what_would_have_been_wrong_is_never_drafted() -> None:
    """It is looked up and compared with what is said without, which takes no step."""
    one = Conversation(Deceiver())
    one.ask(1, PROMPT, 200, LOOKUP)
    one.run()
    facts = one.done().speculated
    assert facts is not None
    assert facts.drafted == 0
    assert max(one.backend.sizes[1:]) == 1
    assert one.backend.rehearsed == []


@pytest.mark.parametrize(
    ("sampler", "options", "plain"),
    [
        (SamplerOptions(temperature=0.5), {}, "sampled"),
        (SamplerOptions(grammar=b"root ::= [0-9]+"), {}, "grammar"),
        (SamplerOptions(repetition_penalty=1.1), {}, "repetition_penalty"),
        (SamplerOptions(), {"bit": True}, "bit"),
        (SamplerOptions(), {"trace": True}, "bit"),
    ],
)
def test_what_is_not_greedy_alone_is_plain_and_says_why(
    sampler: SamplerOptions, options: dict, plain: str
) -> None:
    one = Conversation(Talker())
    one.ask(1, PROMPT, 60, LOOKUP, sampler, **options)
    one.run()
    assert one.done().speculated == type(one.done().speculated)(0, 0, plain)
    assert max(one.backend.sizes[1:]) == 1
    assert one.backend.rehearsed == []


def test_other_streams_go_on_beside_it() -> None:
    outcomes = []
    for speculate in (None, LOOKUP):
        one = Conversation(Talker(slots=3))
        for number in (1, 2, 3):
            one.ask(number, [number, *PROMPT], 150, speculate if number < 3 else None)
        one.run()
        outcomes.append(sorted(one.outcome))
        if speculate:
            assert 3 < max(one.backend.sizes[4:]) <= 3 + DRAFT_IN_COMPANY
            facts = [one.done(number).speculated for number in (1, 2)]
            assert all(fact is not None and fact.accepted for fact in facts)
    assert outcomes[0] == outcomes[1]


def test_a_draft_preempts_nobody_and_a_preempted_request_says_the_same() -> None:
    for n_ctx in range(256, 300, 7):
        outcomes = []
        for speculate in (None, LOOKUP):
            one = Conversation(Talker(n_ctx, slots=2))
            one.ask(1, PROMPT, 150, speculate)
            one.ask(2, [5, *PROMPT], 150, speculate)
            one.run()
            outcomes.append(sorted(one.outcome))
        assert outcomes[0] == outcomes[1]


def test_a_sequence_that_cannot_be_cut_is_computed_again() -> None:
    plain = talk(None)
    stuck = Talker()
    stuck.stuck_at = len(PROMPT) + 30
    one = Conversation(stuck)
    one.drafting = lambda want, context: [*right(want, context)[:2], 77, 77]
    one.ask(1, PROMPT, 200, DRAFT)
    one.run()
    assert one.outcome == plain.outcome
    assert not stuck.stuck_at, "it was to be cut there"


def test_a_row_that_fails_with_a_draft_is_repeated_without() -> None:
    one = Conversation(Talker())
    one.backend.failing = {8, 9, 16}
    one.ask(1, PROMPT, 200, LOOKUP)
    one.run()
    assert not one.of(Failed)
    assert one.outcome == talk(None).outcome
    facts = one.done().speculated
    assert facts is not None
    assert facts.drafted > 0


# -- drafts of another model ---------------------------------------------------------------


def drafted_by(drafting: Callable, target: int = 200) -> Conversation:
    one = Conversation(Talker())
    one.drafting = drafting
    one.ask(1, PROMPT, target, DRAFT)
    one.run()
    assert one.outcome == talk(None, target).outcome
    return one


def test_right_drafts_are_taken_whole() -> None:
    facts = drafted_by(right).done().speculated
    assert facts is not None
    assert facts.drafted == facts.accepted > 100


def test_wrong_drafts_change_nothing_and_are_asked_for_less() -> None:
    chance = random.Random(3)

    def half(want: WantDraft, context: array[int]) -> list[int]:
        return [t if chance.random() < 0.7 else 77 for t in right(want, context)]

    facts = drafted_by(half).done().speculated
    assert facts is not None
    assert 0 < facts.accepted < facts.drafted
    wrong = drafted_by(lambda want, context: [77] * want.count)
    nothing = drafted_by(lambda want, context: [])
    assert len(nothing.of(WantDraft)) <= 4
    assert wrong.done().speculated.accepted == 0


def test_nobody_waits_for_a_draft_and_a_late_one_is_dropped() -> None:
    never = drafted_by(lambda want, context: None)
    assert len(never.of(WantDraft)) == 1
    assert never.done().speculated.drafted == 0

    one = Conversation(Talker())
    one.drafting = lambda want, context: None
    one.ask(1, PROMPT, 200, DRAFT)
    while not one.of(WantDraft, 1) or len(one.said()) < 150:
        one.scheduler.mailbox.drain(0.0)
        one.scheduler.tick()
    want = one.of(WantDraft)[0]
    context = array("I", PROMPT + one.said())
    # As many tokens late as it has: nothing of it is left to be checked.
    one.answer(want, context[want.length : want.length + 8])
    one.run()
    assert one.outcome == talk(None).outcome
    assert one.done().speculated.drafted == 0
    # One that comes when all is over is for nobody.
    one.answer(want, [1, 2, 3])
    one.scheduler.mailbox.drain(0.0)
    one.scheduler.tick()


def test_what_is_left_of_a_draft_that_comes_a_little_late_is_used() -> None:
    one = Conversation(Talker())
    one.drafting = lambda want, context: None
    one.ask(1, PROMPT, 200, DRAFT)
    while not one.of(WantDraft):
        one.scheduler.mailbox.drain(0.0)
        one.scheduler.tick()
    want = one.of(WantDraft)[0]
    for _ in range(3):
        one.scheduler.tick()
    late = len(PROMPT) + len(one.said()) - want.length
    assert 0 < late < 8
    draft = right(want, array("I", PROMPT + one.said())[: want.length])
    one.answer(want, draft)
    one.scheduler.mailbox.drain(0.0)
    one.scheduler.tick()
    assert one.backend.sizes[-1] == 1 + len(draft) - late
    one.run()
    assert one.outcome == talk(None).outcome
