"""What is called ``stream`` was one sequence's, whatever was asked before, and how."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from erllama_py._cache.store import Cache
from tests.histories import Histories, ask, check, remembering

LENGTHS = (70, 80, 128, 150, 192, 260)
FORKS = (30, 64, 100, 130, 300)

SESSION = {"session_id": "s"}
PROMPTS = st.tuples(st.sampled_from(LENGTHS), st.sampled_from(FORKS), st.integers(0, 1))
ASKS = st.tuples(
    st.just("ask"),
    st.lists(PROMPTS, min_size=1, max_size=3),
    st.sampled_from([2, 20, 70]),
    st.sampled_from([{}, {}, {"exactness": "bit"}, SESSION]),
)
FOLLOWS = st.tuples(st.just("follow"), st.integers(1, 70), st.sampled_from([{}, SESSION]))
LOSES = st.tuples(st.just("lose"), st.sampled_from([500, 2000, 1 << 40]), st.booleans())
EVENTS = st.lists(
    st.one_of(ASKS, FOLLOWS, LOSES, st.tuples(st.just("restart"))), min_size=2, max_size=8
)

TWICE = [("ask", [(150, 300, 0)], 2, {}), ("ask", [(260, 300, 0)], 2, {})]
"""The second is computed from its first token on, behind which a block is there already."""
PARKED = [
    ("ask", [one], 2, {}) for one in [(260, 300, 0), (150, 300, 0), (150, 30, 0), (150, 30, 1)]
]
"""The second has its sequence still, in front of which the first one's blocks were not."""


def prompt(length: int, fork: int, branch: int) -> list[int]:
    own = range(1000 * (branch + 1), 1000 * (branch + 1) + length)
    return [*range(1, 1 + min(fork, length)), *own][:length]


@given(EVENTS, st.booleans(), st.booleans(), st.sampled_from([16, 200]))
@example([*TWICE, ("ask", [(260, 300, 0)], 2, {})], False, False, 200)
@example(
    [*TWICE, ("restart",), ("ask", [(260, 300, 0)], 70, {}), ("follow", 9, {})], True, False, 200
)
@example([*TWICE, ("ask", [(260, 300, 0)], 2, SESSION), ("follow", 9, SESSION)], False, False, 200)
@example([*PARKED, ("ask", [(260, 300, 0)], 2, {})], True, False, 200)
@settings(deadline=None, max_examples=40)
def test_what_is_called_stream_was_one_sequences(events, parking, whole_rows, least):
    histories = Histories()
    with tempfile.TemporaryDirectory() as path, ExitStack() as stack:

        def load():
            cache = Cache(1 << 24)
            home = cache.add_tier("disk", "disk", Path(path), 1 << 26)
            hooks = {"whole_rows": whole_rows}
            options = {"parking": parking, "min_tokens": least, "stub_opts": hooks}
            return stack.enter_context(remembering(histories, cache, home, **options))

        core = load()
        latest = None
        for what, *how in events:
            if what == "restart":
                assert core.cache.flush(60)
                stack.close()
                core = load()
            elif what == "lose":
                assert core.cache.flush(60)
                core.cache.evict_bytes(how[0], ["ram", "disk"] if how[1] else ["ram"])
            elif what == "ask" or latest is not None:
                if what == "ask":
                    prompts, count, options = [prompt(*one) for one in how[0]], how[1], how[2]
                    if "session_id" in options:
                        prompts = prompts[:1]
                else:
                    prompts, count, options = [[*latest.tokens, *range(how[0])]], 5, how[1]
                done = ask(core, *prompts, count=count, **options)
                for request in done:
                    label = check(histories, request)
                    assert (label is None) == (request.kind == "cold")
                latest = done[-1]
