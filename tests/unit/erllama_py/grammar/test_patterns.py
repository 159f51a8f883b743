"""Patterns as automata.  The judge is Python's ``re``, where it means the same."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from erllama_py._grammar import SchemaError, grammar_of
from erllama_py._grammar.automaton import MAX_STATES, Automaton, automaton_of
from erllama_py._grammar.charsets import ANY, charset, common, named, without
from erllama_py._grammar.regex import PatternError, parse
from tests.property.strategies.patterns import judge, patterns, texts

TOO_MUCH = "it needs too much"


def made(*given: str, least: int = 0, most: int | None = None) -> Automaton | None:
    return automaton_of(given, least, most)


def accepts(found: Automaton | None, text: str) -> bool:
    return found is not None and found.accepts(text)


@given(patterns, st.lists(texts, min_size=1, max_size=12))
@example("(?:)+", ["", "a"])
@example("(?:a|^)b$|(?:$|c)", ["ab", "b", "xb", "c", ""])
def test_what_matches_is_accepted_and_nothing_else(pattern: str, tried: list[str]) -> None:
    """But for characters of which dialects do not agree: a text that has them may be left out."""
    assume(not re.search(r"[\^$][*+?{]", pattern))
    found, wanted = made(pattern), judge(pattern)
    for text in tried:
        if accepts(found, text):
            assert wanted.search(text), text
        elif "\u0663" not in text and "\xe9" not in text:
            assert not wanted.search(text), text


@given(
    st.lists(st.tuples(st.sampled_from(["(?=%s)", "(?!%s)"]), patterns), min_size=1, max_size=2),
    patterns,
    st.lists(texts, min_size=1, max_size=8),
)
@example([("(?!%s)", "[-+.]*$")], r"[-+]?\d*\.?\d*$", ["", "-", "-1", "1.", ".", "--1"])
def test_lookahead_behind_the_start(
    ahead: list[tuple[str, str]], rest: str, tried: list[str]
) -> None:
    pattern = f"^{''.join(form % inner for form, inner in ahead)}(?:{rest})"
    assume(not re.search(r"[\^$][*+?{]", pattern.replace("^(?", "")))
    found, wanted = made(pattern), judge(pattern)
    for text in tried:
        if accepts(found, text):
            assert wanted.search(text), text
        elif not re.search("[\u0663\xe9\n]", text):
            assert not wanted.search(text), text


def test_lookahead_leaves_out_what_dialects_disagree_of() -> None:
    found = made(r"^(?!.*\w)(?!\S)(?=[^-]).+$")
    assert accepts(found, " !?")
    assert not any(accepts(found, text) for text in (" a", " é", " ٣", " \r", "!", "-"))


@given(st.lists(patterns, min_size=1, max_size=3), texts, st.integers(0, 4), st.integers(0, 4))
def test_several_and_a_length_are_all_of_them(
    several: list[str], text: str, least: int, more: int
) -> None:
    found = made(*several, least=least, most=least + more)
    each = [accepts(made(pattern), text) for pattern in several]
    assert accepts(found, text) == (all(each) and least <= len(text) <= least + more)
    longer = made(*several, least=least)
    assert accepts(longer, text) == (all(each) and least <= len(text))


@given(patterns)
def test_each_state_leads_to_an_end_and_no_two_ways_begin_alike(pattern: str) -> None:
    found = made(pattern)
    assume(found is not None)
    assert found is not None
    ending = {state for state, end in enumerate(found.ends) if end}
    for _ in found.ways:
        ending |= {s for s, ways in enumerate(found.ways) if any(t in ending for _, t in ways)}
    assert ending == set(range(len(found.ways)))
    for ways in found.ways:
        sets = [chars for chars, _ in ways]
        assert all(chars and common(chars, ANY) == chars for chars in sets)
        assert sum(map(size, sets)) == size(charset(pair for chars in sets for pair in chars))


def size(chars: tuple[tuple[int, int], ...]) -> int:
    return sum(last - first + 1 for first, last in chars)


@pytest.mark.parametrize(
    ("pattern", "states"),
    [
        ("", 1),
        ("^", 1),
        ("(a*)*", 1),
        ("^(a*)*$", 1),
        ("^(a|a)*$", 1),
        ("^(a|aa)+$", 2),
        ("^(((a*)*)*)*$", 1),
        ("^$", 1),
        ("^a{0}$", 1),
        ("a{0}b{0}", 1),
        (r'[^"\\]', 2),
        ("^(?:x|xy|xyz)*(?:yz|z)?$", None),
        ("^a{1000}$", 1001),
        ("^.{0,1000}$", 1001),
        ("^(a|b)*a(a|b){9}$", 1024),
        ("(" * 50 + "a" + ")" * 50, 2),
        ("^(?:" + "|".join(f"name {at}" for at in range(1000)) + ")$", None),
    ],
)
def test_as_few_states_as_can_be(pattern: str, states: int | None) -> None:
    found = made(pattern)
    assert found is not None
    assert states is None or len(found.ways) == states
    assert grammar_of({"pattern": pattern})


@pytest.mark.parametrize(
    "pattern",
    [
        "a.{20}b",
        "^(a{1000}){1000}$",
        "(((a{0}){1000}){1000}){1000}",
        "(((){1000}){1000}){1000}",
        "(" * 40 + "a" + "{1,9})" * 40,
        "a{0,1000}b",
        "^(?:(?:a?){1000}){9}b$",
        "^(?:.*a){30}.*(?:b.*){30}c.{12}$|x.{11}y",
        "|".join(f"[{chr(at)}-{chr(at + 3)}]x" for at in range(0x4E00, 0x9000)),
    ],
    ids=range(9),
)
def test_what_would_need_too_much_is_refused(pattern: str) -> None:
    with pytest.raises(SchemaError, match=TOO_MUCH) as caught:
        grammar_of({"pattern": pattern})
    assert "anchor it" in caught.value.mend


def test_lengths_have_their_limit() -> None:
    assert made("^[a-z]+(-[a-z]+)*$", most=63)
    with pytest.raises(PatternError, match=TOO_MUCH):
        made("^[a-z]+(-[a-z]+)*$", most=3 * MAX_STATES)
    # One that says nothing more costs nothing.
    assert made(r"^\d{3}-\d{4}$", least=2, most=1_000_000) == made(r"^\d{3}-\d{4}$")


REFUSED: list[tuple[str, str, str]] = [
    ("ab(?=c)", "(?= is a lookahead, which is not supported, at character 3", "allOf"),
    ("(?!c)", "(?! is a lookahead", "behind the ^"),
    ("^a(?!c)", "(?! is a lookahead, which is not supported, at character 3", "what is allowed"),
    ("^(?=a(?!b))a", "(?! is a lookahead, which is not supported, at character 6", ""),
    ("a|^(?=b)b", "(?= is a lookahead, which is not supported, at character 4", ""),
    ("^(?=b)b|a", "a lookahead in one of several, at character 2", "(?:...)"),
    ("^(?=b)*", "* has nothing to repeat, at character 7", ""),
    ("^(?=b", "( is not closed, at character 2", ""),
    ("a(?<=c)", "(?<= is a lookbehind", "what is allowed"),
    ("a(?<!c)", "(?<! is a lookbehind", "what is allowed"),
    ("(?i)a", "flags of a group", "[aA]"),
    ("(?i:a)", "flags of a group", "[aA]"),
    ("(?>a)", "an atomic group", "(?:...)"),
    ("a$+", "$ cannot be repeated, at character 3", ""),
    (r"(a)\1", r"\1 is a reference, at character 4", "repeat the group"),
    (r"(?<n>a)\k<n>", r"\k is not supported, at character 8", "repeat the group"),
    (r"\bword", r"\b is not supported, at character 1", "both sides"),
    (r"a\B", r"\B is not supported", "both sides"),
    (r"\p{L}", r"\p is not supported", "ranges"),
    (r"[\P{L}]", r"\P is not supported, at character 2", "ranges"),
    (r"\Aa\Z", r"\A is not supported", "use ^"),
    (r"\q", r"\q is not supported", "write q"),
    ("a++", "give nothing back", ""),
    ("a**", "* has nothing to repeat, at character 3", r"write \*"),
    ("+a", "+ has nothing to repeat, at character 1", r"write \+"),
    ("{2}", "{ has nothing to repeat", r"write \{"),
    ("^*", "^ cannot be repeated", ""),
    ("a{,3}", "a number is missing", "{0,...}"),
    ("a{3,2}", "wrong order", ""),
    ("a{1001}", "too many times", "1000"),
    ("a{99999999999999999999}", "too many times", "1000"),
    ("(a", "( is not closed, at character 1", r"write \("),
    ("a)", ") closes nothing, at character 2", r"write \)"),
    ("x[a", "[ is not closed, at character 2", r"write \["),
    ("[]", "a class of nothing", r"write \]"),
    ("[^]", "a class of nothing", r"write \]"),
    ("[]a]", "a class of nothing", r"write \]"),
    ("[z-a]", "its start", ""),
    (r"[\w-.]", "a range needs two characters, at character 2", "put the - last"),
    (r"[a-\d]", "a range needs two characters", "put the - last"),
    ("\\", "a backslash before nothing", "write two"),
    (r"\u12", "without its digits", ""),
    (r"\u{110000}", "of no character", ""),
    (r"\x1", "without its digits", ""),
    ("(" * 51 + "a" + ")" * 51, "groups more than 50 deep, at character 51", ""),
]


@pytest.mark.parametrize(("pattern", "problem", "mend"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_promised_is_refused_with_its_place(
    pattern: str, problem: str, mend: str
) -> None:
    with pytest.raises(SchemaError) as caught:
        grammar_of({"properties": {"a": {"type": "string", "pattern": pattern}}})
    assert caught.value.path == "#/properties/a/pattern"
    assert problem in caught.value.problem
    assert mend in caught.value.mend


@given(st.text(st.sampled_from(r"ab(){}[]|*+?^$.\-,01dwsxuép<=!:"), max_size=14))
def test_any_text_is_a_pattern_or_refused(pattern: str) -> None:
    refused = None
    try:
        parse(pattern)
    except PatternError as error:
        refused = error
    if refused is not None:
        assert "at character" in refused.problem
    else:
        found = made(pattern)
        assert found is None or found.ways


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        # What pydantic says of a Decimal, and a password.
        (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", ["-0.5", "12", "1.", ".5"], ["", "-", "+.", "1.2.3"]),
        (r"^(?=.*[a-z])(?=.*\d)[a-z\d]{3,5}$", ["ab1", "1a234"], ["abc", "123", "a1", "abcde1"]),
        (r"^\u{1F600}\ud83d\ude01$", ["😀😁"], ["😀"]),
        (r"^[\u{1F600}-\u{1F602}]$", ["😁"], ["😃"]),
        (r"^[^\ud800-\udfff]$", ["a", "😀"], [""]),
        ("\\ud800", [], ["a"]),
        (r"^\cA\0\x7f\v$", ["\x01\0\x7f\v"], ["cA"]),
        (r"^[\b\-\]\^]$", ["\b", "-", "]", "^"], ["b", "\\"]),
        (r"^a{x}\{1}{$", ["a{x}{1}{"], ["a"]),
        (r"^\/\-\@\ \_$", ["/-@ _"], []),
        ("^(?<year>[0-9]{4})(?P<m>-)$", ["2026-"], ["2026"]),
        ("^[a-z-9]$", ["-", "9", "b"], ["8"]),
        ("^.$", ["a", "\t", "\x00"], ["\n", "\r", "\u2028", "\u2029", ""]),
        ("a|^b$", ["xax", "b"], ["xb", "bx"]),
        ("^a|b$", ["ax", "xb"], ["xa", "bx"]),
        ("^(a|^b|c$)+$", ["bac", "aaa"], ["ab", "ca"]),
        ("$^", [""], ["a", "\n"]),
        (r"^\s\S$", ["\xa0a", "\u2003é"], ["\ufeffa", " \ufeff", " \x85"]),
    ],
)
def test_what_ecma_says(pattern: str, yes: list[str], no: list[str]) -> None:
    found = made(pattern)
    assert [accepts(found, text) for text in yes] == [True] * len(yes)
    assert [accepts(found, text) for text in no] == [False] * len(no)


@pytest.mark.parametrize(
    "pattern", [r"^\d\D\w\W\s\S$", r"^[\d]$", r"^[^\d]$", r"^[^\w]$", r"^[\W]$", r"^[^\s\W]$"]
)
def test_characters_of_which_dialects_disagree_are_left_out(pattern: str) -> None:
    found = made(pattern)
    assert found is not None
    python = re.compile(pattern)
    for chars, _ in found.ways[0]:
        for first, last in chars:
            for code in range(first, min(last, 0x3FFFF) + 1):
                if len(pattern) < 12:
                    assert python.search(chr(code)), hex(code)


def test_classes_and_their_capitals_have_nothing_in_common() -> None:
    for letter in "dws":
        certain, possible = named(letter)
        assert common(certain, possible) == certain
        assert named(letter.upper()).certain == without(possible)
        assert not common(certain, named(letter.upper()).certain)
    beyond = [chr(code) for first, last in named("W").certain for code in range(first, last + 1)]
    assert not any(char.isalnum() or unicodedata.category(char)[0] in "LMN" for char in beyond)


def test_parts_have_a_pattern_each() -> None:
    parts = [{"pattern": "^a"}, {"pattern": r"\d$"}, {"pattern": "^a", "maxLength": 3}]
    listed = {"enum": ["a1", "a", "1", "ab1", "ab12"]}
    assert grammar_of({"allOf": [listed, *parts]}) == grammar_of({"enum": ["a1", "ab1"]})
    assert grammar_of({"allOf": parts}) == grammar_of(
        {"allOf": [{"allOf": parts[:2]}, parts[2]], "type": "string"}
    )


def test_nothing_is_all_that_is_asked() -> None:
    for schema in (
        {"pattern": "$a"},
        {"pattern": "^a$", "minLength": 2},
        {"allOf": [{"pattern": "^a"}, {"pattern": "^b"}]},
        {"format": "date", "pattern": "^x"},
        {"format": "uuid", "maxLength": 35},
    ):
        with pytest.raises(SchemaError, match="no text is all that it asks"):
            grammar_of(schema)


def test_listed_texts_are_those_that_match() -> None:
    schema = {"enum": ["ab", "b", 3, None, "abc"], "pattern": "^a", "maxLength": 2}
    assert grammar_of(schema) == grammar_of({"enum": ["ab", 3, None]})
    with pytest.raises(SchemaError, match="none of the listed values"):
        grammar_of({"const": "b", "pattern": "^a"})


def test_many_patterns_have_their_limit_together() -> None:
    many = {f"p{at}": {"pattern": f"^a{{1,900}}{at}$"} for at in range(100)}
    with pytest.raises(SchemaError, match=r"patterns are too many|repetitions in all"):
        grammar_of({"properties": many})
    dear = {f"p{at}": {"pattern": f"(?:a{{0,40}}b){{9}}{at}"} for at in range(40)}
    with pytest.raises(SchemaError, match="patterns are too many"):
        grammar_of({"properties": dear})


def test_too_many_ways_to_go_on() -> None:
    words = "|".join(f"{chr(0x4E00 + at)}{chr(0x4F00 + at)}" for at in range(200))
    with pytest.raises(SchemaError, match="ways to go on"):
        grammar_of({"pattern": f"^({words})$"})
