"""Objects whose names are held to patterns: which names, and what each property is."""

from __future__ import annotations

from typing import Any

import pytest

from erllama_py._grammar import SchemaError, grammar_of
from erllama_py._grammar.branches import Branches
from erllama_py._grammar.merging import Document
from erllama_py._grammar.names import Members, Names
from erllama_py._grammar.patterns import Patterns


def members(schema: dict[str, Any]) -> Members:
    document, patterns = Document(schema), Patterns()
    names = Names(document, Branches(document, patterns), patterns)
    return names.members(document.flat(schema, ()), ())


def schema_of(found: Members, name: str) -> Any:
    """Return what a property is; ``None`` where its name is not written."""
    if name in found.described:
        return found.described[name]
    fits = [
        item
        for names, item, _ in found.others
        if (names.accepts(name) if names else name not in found.known)
    ]
    assert len(fits) <= 1, "one way for each name"
    return fits[0] if fits else None


ONE, TWO, REST = {"const": 1}, {"const": 2}, {"const": 3}


def test_names_that_match_have_the_schema_of_their_pattern() -> None:
    found = members({"patternProperties": {"^x-": ONE, "y$": TWO}})
    assert schema_of(found, "x-a") == ONE
    assert schema_of(found, "ay") == TWO
    assert schema_of(found, "x-y") is None, "two patterns match it, so it is left out"
    assert schema_of(found, "b") is None, "others are not written unless they are allowed"


def test_others_are_what_no_pattern_matches() -> None:
    found = members(
        {
            "properties": {"a": REST, "x-a": True, "no": False},
            "patternProperties": {"^x-": ONE},
            "additionalProperties": TWO,
            "required": ["x-r", "r"],
        }
    )
    assert schema_of(found, "a") == REST
    assert all(schema_of(found, name) == ONE for name in ("x-a", "x-r", "x-b"))
    assert schema_of(found, "b") == schema_of(found, "r") == TWO
    assert schema_of(found, "no") is None


def test_names_that_are_asked_for_something() -> None:
    found = members(
        {
            "properties": {"abc": ONE, "Abc": ONE, "abcdef": ONE},
            "propertyNames": {"pattern": "^[a-z]+$", "maxLength": 4},
            "additionalProperties": TWO,
        }
    )
    assert list(found.described) == ["abc"]
    assert schema_of(found, "zz") == TWO
    assert [schema_of(found, name) for name in ("Z", "zzzzz", "Abc", "abcdef")] == [None] * 4


def test_names_that_are_listed_are_properties() -> None:
    names = {"enum": ["a", "b", 7, "abc"], "maxLength": 2}
    found = members({"propertyNames": names, "additionalProperties": ONE, "required": ["b"]})
    assert found.described == {"a": ONE, "b": ONE}
    assert not found.others


@pytest.mark.parametrize(
    ("schema", "path", "problem"),
    [
        ({"propertyNames": {"type": "integer"}}, "#/propertyNames", "names are texts"),
        ({"propertyNames": {"anyOf": [{}]}}, "#/propertyNames/anyOf", "not supported for names"),
        ({"propertyNames": {"pattern": "["}}, "#/propertyNames", "[ is not closed"),
        ({"patternProperties": {"a\\b": {}}}, "#/patternProperties/a\\b", r"\b is not supported"),
        ({"patternProperties": {"a": 1}}, "#/patternProperties", "must be a map of schemas"),
        ({"patternProperties": {"^a": False}, "required": ["ab"]}, "#", "'ab' is required"),
        ({"patternProperties": {"^a": {}}, "required": ["b"]}, "#", "'b' is required"),
        ({"propertyNames": {"maxLength": 1}, "required": ["ab"]}, "#", "'ab' is required"),
        ({"patternProperties": {"^a": {}}, "minProperties": 2}, "#/minProperties", "promised"),
        (
            {"allOf": [{"patternProperties": {"^a": {}}}, {"additionalProperties": ONE}]},
            "#",
            "one part has additionalProperties",
        ),
    ],
)
def test_what_cannot_be_promised_is_refused(schema: Any, path: str, problem: str) -> None:
    with pytest.raises(SchemaError) as caught:
        grammar_of(schema)
    assert problem in caught.value.problem
    assert caught.value.path == path


def test_parts_have_patterns_each() -> None:
    parts = [
        {"patternProperties": {"^a": {"minimum": 1}}},
        {"patternProperties": {"^a": {"maximum": 2}, "^b": ONE}, "propertyNames": {"maxLength": 3}},
        {"propertyNames": {"pattern": "c$"}, "properties": {"a-": TWO, "a-c": {"minimum": 2}}},
    ]
    found = members({"allOf": parts})
    low, high = {"minimum": 1}, {"maximum": 2}
    assert schema_of(found, "ac") == {"allOf": [low, high]}
    assert schema_of(found, "a-c") == {"allOf": [{"minimum": 2}, {"allOf": [low, high]}]}
    assert schema_of(found, "bc") == ONE
    assert [schema_of(found, name) for name in ("a-", "a", "abcc", "c")] == [None] * 4
