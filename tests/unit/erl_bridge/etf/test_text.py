"""Terms as Erlang source."""

from __future__ import annotations

from typing import Any

import pytest

from erl_bridge.etf import (
    Atom,
    BitString,
    Encoded,
    Export,
    Fun,
    ImproperList,
    Map,
    Pid,
    Port,
    Reference,
    term_to_text,
)

NODE = Atom("a@b")

TEXTS: list[tuple[Any, str]] = [
    (Atom("ok"), "ok"),
    (Atom("a@b"), "a@b"),
    (Atom("Ok"), "'Ok'"),
    (Atom("end"), "'end'"),
    (Atom("maybe"), "'maybe'"),
    (Atom("ended"), "ended"),
    (Atom(""), "''"),
    (Atom("it's"), r"'it\'s'"),
    (Atom("é"), "'é'"),
    (Atom("a\n\x01"), r"'a\n\x{1}'"),
    (True, "true"),
    (False, "false"),
    (None, "undefined"),
    (-5, "-5"),
    (2**70, "1180591620717411303424"),
    (2**100_000, "<integer of 100001 bits>"),
    (1.0, "1.0"),
    (b"", "<<>>"),
    (b"abc", '<<"abc">>'),
    (b'a"b\\c\n', r'<<"a\"b\\c\n">>'),
    ("é".encode(), '<<"é"/utf8>>'),
    (b"\xff\x00", "<<255,0>>"),
    (b"a\x00", "<<97,0>>"),
    (bytearray(b"x"), '<<"x">>'),
    (memoryview(b"x"), '<<"x">>'),
    (BitString(b"\x01\xe0", 3), "<<1,7:3>>"),
    ([], "[]"),
    ([1, [2]], "[1,[2]]"),
    (ImproperList((1, 2), Atom("x")), "[1,2|x]"),
    ((), "{}"),
    ((Atom("ok"), b"x"), '{ok,<<"x">>}'),
    ({Atom("k"): 1, 2: []}, "#{k => 1,2 => []}"),
    (Map([([], 1)]), "#{[] => 1}"),
    (Pid(NODE, 1, 2, 3), "<a@b.1.2>"),
    (Reference(NODE, 9, (1, 2, 3)), "#Ref<a@b.1.2.3>"),
    (Port(NODE, 1, 2), "#Port<a@b.1>"),
    (Fun(b"p", Atom("m"), 2), "#Fun<m/2>"),
    (Fun(b"u"), "#Fun<?>"),
    (Export(Atom("m"), Atom("Fun"), 2), "fun m:'Fun'/2"),
    (Encoded(b"a\1"), "<2 bytes encoded>"),
    ("text", '"text"'),
    (object, "<type>"),
]


@pytest.mark.parametrize(("term", "text"), TEXTS, ids=[text[:20] for _, text in TEXTS])
def test_text_is_that_of_erlang(term: Any, text: str) -> None:
    assert term_to_text(term) == text
    assert term_to_text((term, [term])) == f"{{{text},[{text}]}}"


@pytest.mark.parametrize(
    "term",
    [
        b"x" * 10_000,
        "é".encode() * 10_000,
        b"\xff" * 10_000,
        list(range(10_000)),
        [Atom("x" * 255)] * 10_000,
        BitString(b"\1" * 10_000, 3),
        "x" * 10_000,
        {number: number for number in range(10_000)},
    ],
    ids=["text", "utf-8", "bytes", "list", "atoms", "bits", "str", "map"],
)
@pytest.mark.parametrize("limit", [3, 10, 11, 12, 400])
def test_long_terms_are_cut_at_the_limit(term: Any, limit: int) -> None:
    text = term_to_text(term, limit=limit)
    assert len(text) == limit
    assert text.endswith("...")


def test_a_text_of_just_the_limit_is_not_cut() -> None:
    assert term_to_text(b"abcd", limit=10) == '<<"abcd">>'
    assert term_to_text(b"abcd", limit=9) == '<<"abc...'


def test_depth_and_cycles_are_cut_too() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert term_to_text(loop, limit=10) == "[[[[[[[..."
    deep: Any = 1
    for _ in range(100_000):
        deep = (deep,)
    assert term_to_text(deep, limit=10) == "{{{{{{{..."
