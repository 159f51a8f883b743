"""How much to draft: longer where it is right, none where it only costs, and rests."""

from __future__ import annotations

import pytest

from erllama_py._engine.costs import KEPT, Costs
from erllama_py._engine.pace import CREDIT, LAST, LONGEST_REST, LOSS, REST, SHORTEST, STALE, Pace

MOST = 15


def after_plain(costs: Costs | None = None, *, hopeful: bool = True) -> Pace:
    """A request whose steps take 100 without a draft."""
    pace = Pace(MOST, costs or Costs(), hopeful=hopeful)
    for _ in range(16):
        pace.plain(100, alone=True)
    return pace


def length(pace: Pace, room: int = MOST) -> int:
    return pace.length(1, room)


def rested(pace: Pace) -> int:
    """Let it rest; return for how many tokens."""
    tokens = 0
    while pace._left:
        assert not length(pace)
        pace.plain(100, alone=True)
        tokens += 1
    return tokens


def test_drafts_grow_while_they_are_right_and_shrink_to_what_was() -> None:
    pace = after_plain()
    assert length(pace) == SHORTEST == 4
    pace.drafted(4, 4, 100)
    assert length(pace) == 8
    pace.drafted(8, 8, 100)
    assert length(pace) == 15
    pace.drafted(15, 3, 100)
    assert length(pace) == 5
    pace.drafted(5, 0, 100)
    assert length(pace) == SHORTEST
    assert length(pace, 3) == 3
    assert length(pace, 0) == 0
    assert length(pace, -1) == 0


def test_nothing_is_drafted_before_it_is_known_what_a_token_takes() -> None:
    """Nor where nothing was compared, unless drafts are by a model that is meant to make them."""
    assert not length(Pace(MOST, Costs(), hopeful=True))
    pace = after_plain(hopeful=False)
    assert not length(pace)
    pace.compared(8, 5)
    assert length(pace)


def test_what_is_wrong_is_not_drafted_however_little_that_costs() -> None:
    pace = after_plain(hopeful=False)
    for _ in range(LAST):
        pace.compared(8, 0)
    assert not length(pace)
    pace.compared(8, 7)
    assert length(pace)


def test_what_was_compared_long_ago_says_nothing() -> None:
    pace = after_plain()
    pace.compared(8, 0)
    for _ in range(STALE):
        assert not length(pace)
        pace.plain(100, alone=True)
    pace.plain(100, alone=True)
    assert length(pace)


def test_a_request_drafts_what_is_worth_it_by_what_others_found() -> None:
    costs = Costs()
    first = after_plain(costs)
    first.drafted(4, 4, 480)  # five tokens for nearly five steps
    assert length(after_plain(costs)) == 8, "of longer ones nothing is known"
    costs.found(1, 9, 8.5)
    costs.found(1, 16, 15.0)
    assert length(after_plain(costs)) == 0
    assert after_plain(costs).length(2, MOST) == SHORTEST, "nor of two requests at once"
    for _ in range(20):
        costs.found(1, 16, 6.0)
    assert length(after_plain(costs)) == 15
    assert length(after_plain(costs), 8) == 0


def test_it_goes_on_while_it_is_quicker() -> None:
    pace = after_plain()
    for _ in range(100):
        pace.drafted(4, 2, 250)  # three tokens for two and a half
        assert length(pace)


def test_it_rests_where_it_is_slower_and_longer_each_time() -> None:
    pace = after_plain()
    rests, cost, tokens = [], 0, 0
    for _ in range(8):
        while not pace._left:
            pace.drafted(4, 0, 200)
            cost, tokens = cost + 200, tokens + 1
        rests.append(rested(pace))
        cost, tokens = cost + 100 * rests[-1], tokens + rests[-1]
    assert rests == [min(REST << n, LONGEST_REST) for n in range(8)]
    assert cost - 100 * tokens == 8 * (LOSS + 1) * 100


def test_a_gain_makes_the_next_rest_a_short_one_and_is_not_kept_for_ever() -> None:
    pace = after_plain()
    for _ in range(3):
        pace.nothing()
    assert rested(pace) == 4 * REST
    for _ in range(1000):
        pace.drafted(8, 8, 200)
    steps = 0
    while not pace._left:
        pace.drafted(4, 0, 200)
        steps += 1
    assert steps == CREDIT + LOSS + 1
    assert rested(pace) == REST


def test_steps_beside_a_draft_in_the_making_count_against_it() -> None:
    pace = after_plain()
    steps = 0
    while length(pace):
        pace.plain(150, alone=False)
        steps += 1
    assert steps == 2 * LOSS + 1


def test_steps_without_a_draft_are_no_reason_to_rest() -> None:
    pace = after_plain()
    for took in range(100, 400):
        pace.plain(took, alone=True)
        assert length(pace)


def test_where_there_is_no_draft_it_asks_later() -> None:
    pace = after_plain()
    pace.nothing()
    assert rested(pace) == REST


# -- costs ---------------------------------------------------------------------------------------


def test_what_is_not_known_costs_a_step_or_what_fewer_tokens_do() -> None:
    costs = Costs()
    assert costs.steps(1, 5) == 1.0
    costs.found(1, 5, 3.0)
    assert [costs.steps(1, size) for size in (2, 3, 4, 7, 8, 16)] == [1.0, 1.0, 3.0, 3.0, 3.0, 3.0]
    assert costs.steps(2, 5) == 1.0
    costs.found(1, 16, 7.0)
    assert costs.steps(1, 16) == 7.0


def test_one_slow_step_is_averaged_and_forgotten() -> None:
    costs = Costs()
    for _ in range(20):
        costs.found(1, 5, 3.0)
    costs.found(1, 5, 30.0)
    assert costs.steps(1, 5) == pytest.approx(9.75)
    for _ in range(KEPT):
        costs.passed()
    assert costs.steps(1, 5) > 1
    costs.passed()
    assert costs.steps(1, 5) == 1.0
    costs.found(1, 5, 3.0)
    assert costs.steps(1, 5) == 3.0


def test_a_context_knows_a_bounded_number_of_costs() -> None:
    costs = Costs()
    for decoding in range(1, 5):
        for size in range(1, 17):
            costs.found(decoding, size, 2.0)
    assert len(costs._known) == 4 * 5
