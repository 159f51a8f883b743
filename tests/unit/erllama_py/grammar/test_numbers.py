"""Ranges of numbers: exactly the whole numbers between bounds, and no real beside them."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from erllama_py._grammar.numbers import Bound, integers, reals

SMALL = st.integers(-1500, 1500)
REALS = st.integers(-3000, 3000).map(lambda n: n / 100)


def pattern(expression: str) -> re.Pattern[str]:
    """Read an expression as a regular one: blanks and quotes are all they differ in."""
    text = re.sub(r'"([^"]*)"', lambda found: f"(?:{re.escape(found[1])})", expression)
    return re.compile(re.sub(r"\s+(?![^\[]*\])", "", text))


@given(SMALL, SMALL, st.booleans(), st.booleans())
def test_whole_numbers_between_bounds(
    one: int, other: int, low_open: bool, high_open: bool
) -> None:
    low, high = sorted((one, other))
    expression = integers(Bound(low, low_open), Bound(high, high_open))
    wanted = set(range(low + low_open, high + (not high_open)))
    if expression is None:
        assert not wanted
        return
    found = pattern(expression)
    assert {n for n in range(low - 20, high + 21) if found.fullmatch(str(n))} == wanted
    assert not found.fullmatch(f"0{high}")


@given(SMALL, st.booleans(), st.integers(0, 10**15))
def test_whole_numbers_from_a_bound_on(low: int, low_open: bool, far: int) -> None:
    expression = integers(Bound(low, low_open), None)
    assert expression is not None
    found = pattern(expression)
    assert bool(found.fullmatch(str(low))) == (not low_open)
    assert not found.fullmatch(str(low - 1))
    assert found.fullmatch(str(low + 1 + far))


@given(REALS, REALS, st.booleans(), st.booleans(), st.lists(REALS, min_size=1, max_size=40))
def test_reals_between_bounds(one, other, low_open: bool, high_open: bool, tried) -> None:
    low, high = sorted((one, other))
    expression = reals(Bound(low, low_open), Bound(high, high_open))
    if expression is None:
        assert low == high
        return
    found = pattern(expression)
    for value in [*tried, low, high, round((low + high) / 2, 2)]:
        inside = (low < value or (low == value and not low_open)) and (
            value < high or (value == high and not high_open)
        )
        text = f"{value:.2f}"
        assert bool(found.fullmatch(text)) == inside, (text, expression)


def test_bounds_of_many_places_move_inwards() -> None:
    found = pattern(reals(Bound(0.1 + 0.2, exclusive=False), Bound(1e-9 + 1, exclusive=True)) or "")
    assert not found.fullmatch("0.3")
    assert found.fullmatch("0.300001")
    assert found.fullmatch("1")
    assert not found.fullmatch("1.000001")


def test_large_numbers_between_bounds_are_whole() -> None:
    found = pattern(reals(Bound(0, exclusive=True), None) or "")
    assert found.fullmatch("9007199254740991")
    assert found.fullmatch("0.0001")
    assert not found.fullmatch("9007199254740991.5")
    assert not found.fullmatch("0.0")
