"""Prompt lookup: what is found, and that the index grows in bounded parts."""

from __future__ import annotations

import random

from erllama_py._engine.lookup import PORTION, Lookup


def guess(tokens: list[int], count: int, size: int = 3) -> list[int]:
    lookup = Lookup(size)
    lookup.extend(tokens)
    return lookup.guess(count)


def test_what_followed_the_last_time_is_the_draft() -> None:
    assert guess([1, 2, 3, 4, 5, 9, 1, 2, 3], 2) == [4, 5]
    assert guess([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1) == [5], "the last of two"
    assert guess([1, 2, 3, 4, 2, 3], 2) == [], "two tokens are not three"
    assert guess([1, 2, 3, 4, 2, 3], 2, size=2) == [4, 2]
    assert guess([1, 2], 5) == guess([], 5) == guess([7, 7, 7], 5) == []


def test_what_repeats_itself_goes_on() -> None:
    assert guess([1, 2] * 4, 5) == [1, 2, 1, 2, 1]
    assert guess([7] * 4, 3) == [7, 7, 7]


def test_it_grows_as_a_whole_context_would_be_read() -> None:
    chance = random.Random(5)
    lookup, tokens = Lookup(2), list[int]()
    for _ in range(300):
        new = [chance.randrange(6) for _ in range(chance.randrange(4))]
        lookup.extend(new)
        tokens += new
        assert len(lookup) == len(tokens)
        assert lookup.guess(4) == guess(tokens, 4, size=2)


def test_a_long_prompt_is_indexed_in_parts() -> None:
    lookup = Lookup(3)
    lookup.extend([1, 2, 3, 4, *range(10, 3 * PORTION), 1, 2, 3])
    calls = 1
    while not (found := lookup.guess(1)):
        calls += 1
        assert calls < 10
    assert found == [4]
    assert calls == 3
