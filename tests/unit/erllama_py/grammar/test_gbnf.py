"""Grammars of callers that would end the engine's process are not shown to it."""

from __future__ import annotations

import pytest

from erllama_py._grammar import too_much
from erllama_py.config import parse_request
from erllama_py.errors import ErllamaError


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (b"root ::= " + b"(" * 201 + b'"a"' + b")" * 201, "parentheses 201 deep"),
        (b"root ::= " + b"( " * 200_000, "parentheses 201 deep"),
        (b"r ::= r\n" * 10_001, "more than 10000 rules"),
        (b"#" * (1 << 20) + b"#", "bytes"),
    ],
)
def test_too_much_is_refused(grammar: bytes, words: str) -> None:
    assert words in too_much(grammar)
    with pytest.raises(ErllamaError) as caught:
        parse_request({"grammar": grammar}, "token", None)
    assert caught.value.reason == "badarg"
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "grammar",
    [
        b"root ::= " + b"(" * 200 + b'"a"' + b")" * 200,
        b'root ::= "' + b"(" * 5000 + b'"',
        b"root ::= [" + b"(" * 5000 + b"]",
        b'root ::= "\\"((((' + b"(" * 5000 + b'" [\\]' + b"(" * 5000 + b"]",
        b"# " + b"(" * 5000 + b'\nroot ::= "a"',
        b'root ::= ("a") ("b") ' * 3000,
    ],
)
def test_parentheses_that_are_text_do_not_count(grammar: bytes) -> None:
    assert not too_much(grammar)
