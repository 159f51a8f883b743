"""Spans of a reply: the exact bytes between the markers, however tokens cut them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from erllama_py._engine.spans import Part, SpanMatcher
from erllama_py.types import Markers

THINK = Markers(b"<think>", b"</think>")
CALL = Markers(b"<tool_call>", b"</tool_call>", b"<arg>", b"</arg>")

markers_of_two_letters = st.binary(min_size=1, max_size=4).map(
    lambda data: bytes(97 + byte % 2 for byte in data)
)
"""Markers that overlap themselves and each other."""


@st.composite
def cuts(draw: st.DrawFn, text: bytes) -> list[bytes]:
    """Cut a text into tokens, of which some may be empty."""
    at = sorted(draw(st.lists(st.integers(0, len(text)), max_size=len(text) + 3)))
    edges = [0, *at, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@st.composite
def replies(draw: st.DrawFn) -> list[bytes]:
    """Text with markers, halves of markers, and letters, in tokens."""
    known = [m for pair in (THINK, CALL) for m in (pair.start, pair.end)]
    known += [CALL.payload_start, CALL.payload_end]
    halves = st.sampled_from(known).flatmap(
        lambda m: st.integers(1, len(m)).map(lambda size: m[:size])
    )
    bits = st.one_of(st.sampled_from(known), halves, st.sampled_from([b"a", b"\xc3\xa9", b" "]))
    return draw(cuts(b"".join(draw(st.lists(bits, max_size=12)))))


def feed(matcher: SpanMatcher, pieces: Sequence[bytes]) -> list[Part]:
    parts = [part for token, piece in enumerate(pieces) for part in matcher.feed(token, piece)]
    return parts + matcher.flush()


def told(parts: Sequence[Part]) -> list[tuple[str, bytes]]:
    """Return text and whole spans in their order, neighbouring fragments joined."""
    found: list[tuple[str, bytes]] = []
    for part in parts:
        if part.kind == "token" and found and found[-1][0] == "token":
            found[-1] = ("token", found[-1][1] + part.data)
        elif part.kind in ("token", "thinking_end", "tool_call_end"):
            found.append((part.kind, part.data))
    return found


def expected(text: bytes, thinking: Markers, call: Markers | None) -> list[tuple[str, bytes]]:
    """Split a whole text at its markers, leftmost first."""
    found: list[tuple[str, bytes]] = []
    rest = text
    while True:
        starts = [(thinking, "thinking_end")] + ([(call, "tool_call_end")] if call else [])
        places = [(rest.find(m.start), at) for at, (m, _) in enumerate(starts) if m.start in rest]
        if not places:
            return found + ([("token", rest)] if rest else [])
        position, which = min(places)
        markers, kind = starts[which]
        if position:
            before = rest[:position]
            if found and found[-1][0] == "token":
                found[-1] = ("token", found[-1][1] + before)
            else:
                found.append(("token", before))
        body, _, rest = rest[position + len(markers.start) :].partition(markers.end)
        found.append((kind, body))


def check_order(parts: Sequence[Part], tokens: int) -> None:
    """Deltas make up what their end says; ids come once, in order, behind their text."""
    open_span = b""
    kind = ""
    for part in parts:
        if part.kind.endswith("_delta"):
            assert part.data
            open_span += part.data
            kind = part.kind
        elif part.kind.endswith("_end"):
            assert part.data == open_span
            assert not kind or part.kind.partition("_")[0] == kind.partition("_")[0]
            open_span, kind = b"", ""
        elif part.kind in ("token", "token_id"):
            assert not open_span, "no text while a span is open"
    assert not open_span
    ids = [part.token for part in parts if part.kind.endswith("_id")]
    assert ids == list(range(tokens))


@given(replies())
@example([b"<thi", b"nk>", b"a</", b"think", b">b"])
@example([b"x<", b"y"])
@example([b"a<think>b</think>c"])
@example([b"<tool_call>{<arg></tool_call>"])
def test_any_cut_tells_the_bytes_between_the_markers(pieces: list[bytes]) -> None:
    parts = feed(SpanMatcher(THINK, CALL), pieces)
    assert told(parts) == expected(b"".join(pieces), THINK, CALL)
    check_order(parts, len(pieces))


@given(markers_of_two_letters, markers_of_two_letters, st.data())
def test_markers_that_overlap_themselves(start: bytes, end: bytes, data: st.DataObject) -> None:
    text = bytes(97 + byte % 2 for byte in data.draw(st.binary(max_size=20)))
    pieces = data.draw(cuts(text))
    parts = feed(SpanMatcher(Markers(start, end), None), pieces)
    assert told(parts) == expected(text, Markers(start, end), None)
    check_order(parts, len(pieces))


@given(replies())
def test_without_markers_all_is_text(pieces: list[bytes]) -> None:
    parts = feed(SpanMatcher(None, Markers(b"<only a start>")), pieces)
    assert b"".join(part.data for part in parts) == b"".join(pieces)
    assert [p.token for p in parts if p.kind == "token_id"] == list(range(len(pieces)))


@given(replies())
def test_nothing_is_held_back_that_cannot_become_a_marker(pieces: list[bytes]) -> None:
    matcher = SpanMatcher(THINK, CALL)
    starts = (*(THINK.start, THINK.end), CALL.start, CALL.end, CALL.payload_start, CALL.payload_end)
    fed = out = 0
    for token, piece in enumerate(pieces):
        parts = matcher.feed(token, piece)
        fed += len(piece)
        out += sum(len(p.data) for p in parts if p.kind == "token" or p.kind.endswith("_delta"))
        held = bytes(matcher._buffer)
        assert not held or any(marker.startswith(held) and marker != held for marker in starts), (
            held
        )
        assert out + len(held) <= fed


@given(st.lists(st.sampled_from([b"a", b"bc", b"<", b"</think>", b"<think>"]), max_size=12),
       st.integers(1, 4))  # fmt: skip
def test_a_budget_closes_once_and_the_rest_is_text(pieces: list[bytes], budget: int) -> None:
    pieces = [b"<think>", *pieces]
    parts = feed(SpanMatcher(THINK, None, budget=budget), pieces)
    assert sum(part.kind == "thinking_delta" for part in parts) <= budget
    free = feed(SpanMatcher(THINK, None), pieces)
    thought = b"".join(p.data for p in free if p.kind == "thinking_delta")
    shown = b"".join(p.data for p in parts if p.kind == "thinking_delta")
    assert thought.startswith(shown)
    check_order(parts, len(pieces))
