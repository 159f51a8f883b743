"""How much to draft: longer where it is right, and a rest where it costs time."""

from __future__ import annotations

from erllama_py._engine.pace import CREDIT, LONGEST_REST, LOSS, REST, SHORTEST, Pace


def after_plain(most: int = 15) -> Pace:
    """A request whose steps take 100 without a draft."""
    pace = Pace(most)
    for _ in range(16):
        pace.plain(100, alone=True)
    return pace


def rested(pace: Pace) -> int:
    """Let it rest; return for how many tokens."""
    tokens = 0
    while not pace.length:
        pace.plain(100, alone=True)
        tokens += 1
    return tokens


def test_drafts_grow_while_they_are_right_and_shrink_to_what_was() -> None:
    pace = after_plain()
    assert pace.length == SHORTEST == 4
    pace.drafted(4, 4, 100)
    assert pace.length == 8
    pace.drafted(8, 8, 100)
    assert pace.length == 15
    pace.drafted(15, 3, 100)
    assert pace.length == 5
    pace.drafted(5, 0, 100)
    assert pace.length == SHORTEST
    assert Pace(3).length == 3


def test_it_goes_on_while_it_is_quicker() -> None:
    pace = after_plain()
    for _ in range(100):
        pace.drafted(4, 2, 250)  # three tokens for two and a half
        assert pace.length


def test_it_rests_where_it_is_slower_and_longer_each_time() -> None:
    pace = after_plain()
    rests, cost, tokens = [], 0, 0
    for _ in range(8):
        while pace.length:
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
    while pace.length:
        pace.drafted(4, 0, 200)
        steps += 1
    assert steps == CREDIT + LOSS + 1
    assert rested(pace) == REST


def test_steps_beside_a_draft_in_the_making_count_against_it() -> None:
    pace = after_plain()
    steps = 0
    while pace.length:
        pace.plain(150, alone=False)
        steps += 1
    assert steps == 2 * LOSS + 1


def test_steps_without_a_draft_are_no_reason_to_rest() -> None:
    pace = after_plain()
    for took in range(100, 400):
        pace.plain(took, alone=True)
        assert pace.length


def test_where_there_is_no_draft_it_asks_later() -> None:
    pace = after_plain()
    pace.nothing()
    assert rested(pace) == REST
