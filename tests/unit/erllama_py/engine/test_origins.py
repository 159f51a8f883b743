"""Origins of what is in the context, and what hits and their stats say of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from erllama_py._cache.origin import UNKNOWN, Origin
from erllama_py._cache.store import Cache
from erllama_py._engine.explain import explain_prompt, explain_request
from erllama_py._engine.origins import Origins, new_origin
from erllama_py.config import parse_request
from tests.histories import Histories, ask, check, remembering

PROMPT = list(range(1, 301))
HEAD = PROMPT[:150]
"""A whole chunk of it is stored as such, and not once more."""
SESSION = {"session_id": "s"}


# -- by slot --------------------------------------------------------------------------------


def test_numbers_are_of_64_bits_and_never_the_same() -> None:
    numbers = {new_origin() for _ in range(1000)}
    assert len(numbers) == 1000
    assert all(0 < number < 1 << 64 for number in numbers)


def test_a_sequence_has_one_origin_for_as_long_as_it_computes() -> None:
    origins = Origins()
    assert origins.of(1, 0, 64) == UNKNOWN
    origins.begin(1, 0)
    first = origins.of(1, 0, 64)
    assert first.own
    assert origins.of(1, 64, 128) == Origin(first.own, first.own)
    origins.begin(1, 128)
    then = origins.of(1, 128, 192)
    assert then.before == first.own != then.own
    assert origins.of(1, 64, 130) == Origin(then.own, first.own)
    assert origins.is_stream(1, 200)
    origins.clear(1)
    assert origins.of(1, 0, 64) == UNKNOWN


def test_what_is_put_in_is_a_stream_where_it_stands_behind_what_it_was_computed_behind() -> None:
    origins = Origins()
    for slot, before in ((0, 7), (1, 8)):
        origins.put(slot, 0, Origin(7))
        origins.put(slot, 64, Origin(9, before))
        origins.begin(slot, 100)
    assert origins.is_stream(0, 100)
    assert origins.of(0, 64, 128).before == 7
    assert not origins.is_stream(1, 100)
    assert origins.is_stream(1, 64)
    assert origins.of(1, 128, 192) == UNKNOWN


def test_behind_what_is_unknown_nothing_has_an_origin() -> None:
    origins = Origins()
    origins.put(0, 0, UNKNOWN)
    origins.put(0, 64, Origin(9, 0))
    origins.begin(0, 128)
    assert origins.of(0, 64, 128) == origins.of(0, 128, 192) == UNKNOWN
    origins.begin(1, 5)
    assert origins.of(1, 0, 64) == UNKNOWN


def test_runs_follow_cuts_and_shares() -> None:
    origins = Origins()
    origins.begin(0, 0)
    origins.begin(0, 100)
    origins.share(0, 1, 100)
    origins.cut(0, 100)
    assert origins.of(0, 64, 128).own, "it goes on where it was cut, as after a failed step"
    assert origins.of(1, 64, 100).own == origins.of(0, 0, 64).own
    origins.cut(0, 99)
    assert origins.of(0, 64, 128).own == 0, "nobody has said that it goes on there"
    assert origins.is_stream(0, 99)
    origins.begin(0, 99)
    assert origins.of(0, 64, 128).own not in (0, origins.of(1, 0, 64).own)


# -- requests -------------------------------------------------------------------------------


@pytest.fixture
def histories() -> Histories:
    return Histories()


@pytest.mark.parametrize("whole_rows", [False, True])
@pytest.mark.parametrize("parking", [False, True])
def test_a_conversation_is_one_stream_from_memory_and_from_disk(
    histories: Histories, tmp_path: Path, parking: bool, whole_rows: bool
) -> None:
    options = {"parking": parking, "stub_opts": {"whole_rows": whole_rows}}
    prompt, said = PROMPT, []
    for turn in range(4):
        cache = Cache(1 << 24)
        home = cache.add_tier("disk", "disk", tmp_path, 1 << 26)
        with remembering(histories, cache, home, **options) as core:
            for _ in range(2):
                (request,) = ask(core, prompt, count=70)
                said.append((request.kind, check(histories, request), request.tier))
                prompt = [*request.tokens, *range(1000 * turn, 1000 * turn + 30)]
            assert cache.flush(60)
    assert said[0] == ("cold", None, None)
    assert said[1:] == [("partial", "stream", tier) for tier in ("ram", *["disk", "ram"] * 3)]


def test_what_two_computed_is_no_stream_and_nothing_behind_it_is(
    histories: Histories, tmp_path: Path
) -> None:
    """The second found too little to begin with, and then its first block was there."""
    for turn in range(2):
        cache = Cache(1 << 24)
        home = cache.add_tier("disk", "disk", tmp_path, 1 << 26)
        with remembering(histories, cache, home, min_tokens=200) as core:
            if not turn:
                assert [ask(core, one)[0].kind for one in (HEAD, PROMPT)] == ["cold", "cold"]
            (again,) = ask(core, PROMPT)
            (longer,) = ask(core, [*again.tokens, 7])
            assert [again.kind, longer.kind] == ["exact", "partial"]
            assert [check(histories, one) for one in (again, longer)] == ["token", "token"]
            assert not all(histories.of(PROMPT))
            assert cache.flush(60)


def test_files_that_do_not_say_are_no_stream(
    histories: Histories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of before there were origins: the bytes there are zeros."""
    labels = []
    for known in (False, True):
        cache = Cache(1 << 24)
        home = cache.add_tier("disk", "disk", tmp_path, 1 << 26)
        with monkeypatch.context() as patch, remembering(histories, cache, home) as core:
            if not known:
                patch.setattr(Origins, "of", lambda *_: UNKNOWN)
            prompts = [PROMPT, [*PROMPT, 7], [*PROMPT, 7, *range(500, 600)]]
            labels += [check(histories, ask(core, prompt)[0]) for prompt in prompts]
            assert cache.flush(60)
    assert labels == [None, "token", "token", "token", "token", "token"]


def test_at_bit_a_hit_is_bit(histories: Histories) -> None:
    with remembering(histories, Cache(1 << 24)) as core:
        labels = [check(histories, ask(core, PROMPT, exactness="bit")[0]) for _ in range(3)]
        assert labels == [None, "bit", "bit"]
        assert check(histories, ask(core, PROMPT)[0]) == "bit"


def test_a_session_goes_on_as_one_stream_if_it_began_as_one(histories: Histories) -> None:
    with remembering(histories, Cache(1 << 24), min_tokens=200) as core:
        told = []
        for prompt in ([7, *PROMPT], HEAD, PROMPT, PROMPT):
            (first,) = ask(core, prompt, **SESSION)
            following = [*first.tokens, 8]
            expected = explain_prompt(core.host, array_of(following), parse(core, SESSION))
            (then,) = ask(core, following, **SESSION)
            assert then.kind == "sticky"
            label = check(histories, then)
            assert (
                label == expected["exactness"] == explain_request(core.host, then.ref)["exactness"]
            )
            told.append((check(histories, first), label))
    # The last begins with the third one's blocks behind the second one's.
    assert told == [(None, "stream"), (None, "stream"), (None, "stream"), ("token", "token")]


def array_of(tokens: list[int]) -> bytes:
    return b"".join(token.to_bytes(4, "little") for token in tokens)


def parse(core, options):
    return parse_request(options, core.host.config.exactness, 2)
