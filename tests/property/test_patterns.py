"""Patterns in the engine: it says what matches only, and takes all that matches.

The automaton alone is judged in tests/unit/erllama_py/grammar/test_patterns.py; here it is
how the characters of a text are written as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from erllama_py._grammar import SchemaError, grammar_of
from erllama_py._grammar.automaton import automaton_of
from tests.grammars import Speaker, speaker
from tests.property.strategies.patterns import judge, patterns, texts

KNOWN = {
    "phone": r"^(\(\d{3}\) )?\d{3}-\d{4}$",
    "e-mail": r"^[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}$",
    "IPv4": r"^((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)$",
    "version": r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$",
    "slug": "^[a-z0-9]+(?:-[a-z0-9]+)*$",
    "colour": "^#(?:[0-9a-fA-F]{3}){1,2}$",
    "time": r"^(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d)?$",
    "money": r"^-?\d{1,3}(,\d{3})*(\.\d\d)?$",
    "names": "^[A-ZÀ-Þ][a-zß-öø-ÿ]+( [A-ZÀ-Þ][a-zß-öø-ÿ]+)+$",
    "Cyrillic": r"^[\u0430-\u044f\u0451]+$",
    "faces": "^[\U0001f600-\U0001f64f]{1,3}$",
    "no quotes": r'^[^"\\]{1,9}$',
    "lines": "^[^\n]+(\n[^\n]+)?$",
    "controls": r"^[\x00-\x1f\x7f]+$",
    "quotes": r'^("[^"]*"|\\.)+$',
    "nothing": "^$",
    "anything": "",
    "somewhere": "needle",
}


@pytest.fixture(scope="module")
def toy() -> Iterator[Speaker]:
    with speaker() as opened:
        yield opened


def written(text: str) -> bytes:
    """Return a text as JSON; DEL is never written as itself."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f").encode()


@settings(max_examples=60, deadline=None)
@given(patterns, st.lists(texts, min_size=1, max_size=4), st.integers(0, 2**31))
def test_the_engine_takes_what_the_automaton_accepts(toy, pattern, tried, seed) -> None:
    automaton = automaton_of((pattern,))
    assume(automaton is not None)
    grammar = grammar_of({"type": "string", "pattern": pattern})
    for text in tried:
        assert toy.takes(grammar, written(text)) == automaton.accepts(text), text
    reply = toy.say(grammar, seed)
    if reply is not None:
        assert automaton.accepts(json.loads(reply))


@pytest.mark.parametrize("name", KNOWN)
def test_known_patterns_are_said_and_taken(toy: Speaker, name: str) -> None:
    pattern = KNOWN[name]
    grammar, ended = grammar_of({"pattern": pattern}), 0
    for seed in range(12):
        reply = toy.say(grammar, seed)
        if reply is not None:
            ended += 1
            assert re.search(pattern, json.loads(reply))
    # Noise does not write a needle.
    assert ended or name == "somewhere"

    @settings(max_examples=15, deadline=None)
    @given(st.from_regex(judge(pattern, re.ASCII)))
    def taken(text: str) -> None:
        assert toy.takes(grammar, written(text))

    taken()


@pytest.mark.parametrize(
    ("pattern", "escapes"),
    [
        (r"^[\u0430-\u044f\u0451]$", ["0430", "044f", "0451"]),
        ("^[à-ü]$", ["00e0", "00fc"]),
        ("^[\u0fff-\u2001]$", ["0fff", "1234", "2001"]),
        ("^[\ue000-\U0010ffff]$", ["e000", "ffff", r"d800\udc00", r"dbff\udfff", r"d9ab\udc12"]),
        ("^[\U0001f600-\U0001f64f]$", [r"d83d\ude00", r"d83d\ude4f"]),
        ("^[\U000103ff-\U00010400]$", [r"d800\udfff", r"d801\udc00"]),
    ],
)
def test_what_is_beyond_ascii_may_be_an_escape(toy: Speaker, pattern: str, escapes) -> None:
    grammar = grammar_of({"pattern": pattern})
    for escape in escapes:
        text = json.loads(f'"\\u{escape}"')
        assert re.search(pattern, text)
        assert toy.takes(grammar, f'"\\u{escape}"'.encode())
        assert toy.takes(grammar, written(text))
    for char in ("a", "ÿ", "\u2002", "\U0001f5ff", "\U0001f650", "\U000103fe", "\U00010401"):
        escape = json.dumps(char).encode()
        assert toy.takes(grammar, escape) == (not char.isascii() and bool(re.search(pattern, char)))
    for half in (rb'"\ud83d"', rb'"\udc00"', rb'"\ud83d\u0061"'):
        assert not toy.takes(grammar, half)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from(r"ab(){}[]|*+?^$.\-,01dwsWué<=!:" + "\n\x01😀"), max_size=20))
def test_any_text_is_a_grammar_that_the_engine_reads_or_refused(toy, pattern) -> None:
    grammar = None
    try:
        grammar = grammar_of({"pattern": pattern})
    except SchemaError as error:
        refused = error
    if grammar is None:
        assert refused.problem
    else:
        assert toy.say(grammar, 1) != b""
