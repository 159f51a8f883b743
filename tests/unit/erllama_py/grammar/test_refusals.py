"""Schemas that are refused: where, why, and before the engine sees anything of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from erllama_py import api
from erllama_py._grammar import SchemaError, grammar_of
from erllama_py.config import parse_request
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def doubling(levels: int) -> dict[str, Any]:
    """Each level is one of two lists of the next: twice the ways at each of them."""
    two = [{"type": "array", "items": {"$ref": f"#/$defs/d{at + 1}"}} for at in range(levels)]
    defs: dict[str, Any] = {f"d{at}": {"anyOf": [two[at], dict(two[at])]} for at in range(levels)}
    return {"$defs": {**defs, f"d{levels}": {"type": "null"}}, "$ref": "#/$defs/d0"}


REFUSED: list[tuple[Any, str, str]] = [
    (False, "#", "nothing satisfies false"),
    (7, "#", "int is no schema"),
    ("{", "#", "it is no JSON"),
    ('{"minimum": NaN}', "#", "it is no JSON"),
    (b"\xff\xff", "#", "it is no JSON"),
    ({"type": "text"}, "#/type", "type must be one of"),
    ({"properties": {"a": {"requried": []}}}, "#/properties/a/requried", "no keyword"),
    ({"properties": {"a/b": {"type": 1}}}, "#/properties/a~1b/type", "type must be"),
    ({"type": "string", "pattern": "(?=a)"}, "#/pattern", "not supported"),
    ({"type": "string", "pattern": ["a"]}, "#/pattern", "must be a regular expression"),
    ({"not": {}}, "#/not", "not supported"),
    ({"type": "array", "uniqueItems": True}, "#/uniqueItems", "cannot be promised"),
    ({"type": "object", "minProperties": 2}, "#/minProperties", "cannot be promised"),
    ({"type": "object", "maxProperties": 2}, "#/maxProperties", "cannot be promised"),
    ({"type": "integer", "multipleOf": 5}, "#/multipleOf", "not supported"),
    ({"type": "integer", "minimum": 5, "maximum": 4}, "#", "no whole number"),
    ({"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 6}, "#", "no whole number"),
    ({"type": "number", "minimum": 5, "exclusiveMaximum": 5}, "#", "no number"),
    ({"type": "string", "minLength": 5, "maxLength": 4}, "#", "maxLength is below"),
    ({"type": "array", "minItems": 5, "maxItems": 4}, "#", "at least 5 items and at most 4"),
    ({"type": "string", "minLength": 1_000_000}, "#", "times the same"),
    ({"required": ["a"], "additionalProperties": False}, "#", "required, and not allowed"),
    ({"enum": [1, 2], "minimum": 2}, "#/minimum", "beside listed values"),
    ({"enum": ["a"], "type": "integer"}, "#", "none of the listed values"),
    ({"minimum": 1, "minLength": 1}, "#", "more than one type: string, number"),
    ({"$ref": "other.json"}, "#/$ref", "not in this schema"),
    ({"$ref": "#/$defs/a"}, "#/$ref", "there is no"),
    ({"$ref": "#"}, "#", "refers to itself"),
    ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "#/anyOf/0", "refers to itself"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "#", "nothing is both"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf", "could satisfy both"),
    (
        {"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        "#/oneOf",
        "both #/oneOf/0 and #/oneOf/1",
    ),
    (
        {
            "allOf": [
                {"properties": {"a": {}}, "additionalProperties": False},
                {"properties": {"b": {}}},
            ]
        },
        "#",
        "another the property 'b'",
    ),
    ({"const": float("inf")}, "#/const", "is no JSON"),
    ({"const": {1, 2}}, "#/const", "set is no JSON"),
    ({"const": "\ud800"}, "#/const", "not valid UTF-8"),
    ({"type": "object", b"type": "array"}, "#", "a name is there twice"),
    (nested(100), "#", "levels deep"),
    ({"enum": list(range(30_000))}, "#", "more than 20000 values"),
    ({"enum": list(range(3000))}, "#", "more than 2000 values"),
    ({"const": "x" * (1 << 19)}, "#", "bytes of text"),
    (doubling(10), "#", "too many ways"),
    (
        {
            "$defs": {f"d{at}": {"$ref": f"#/$defs/d{at + 1}"} for at in range(4000)},
            "$ref": "#/$defs/d0",
        },
        "#",
        "references lead too deep",
    ),
    (
        {
            "$defs": {f"d{at}": {"items": {"$ref": f"#/$defs/d{at + 1}"}} for at in range(4000)},
            "$ref": "#/$defs/d0",
        },
        "#",
        "references lead too deep",
    ),
    ({"properties": {f"p{at}": {} for at in range(200)}}, "#", "optional properties"),
    (
        {"oneOf": [{"enum": list(range(at, at + 1900))} for at in range(0, 15_000, 1899)]},
        "#/oneOf",
        "could satisfy both",
    ),
    (
        {"anyOf": [{"properties": {"a": {"$ref": "#"}}}, {"properties": {"b": {"$ref": "#"}}}]},
        "#",
        "too many ways",
    ),
    ({"anyOf": [True, {"type": "array", "items": {"$ref": "#"}}]}, "#", "too many ways"),
]


@pytest.mark.parametrize(("schema", "path", "problem"), REFUSED, ids=range(len(REFUSED)))
def test_what_a_grammar_cannot_promise_is_refused_with_its_place(
    schema: Any, path: str, problem: str
) -> None:
    with pytest.raises(SchemaError) as caught:
        grammar_of(schema)
    assert problem in caught.value.problem
    assert caught.value.path == path or problem in ("levels deep", "too many ways")


def test_alternatives_that_are_told_apart_at_once_may_hold_themselves() -> None:
    case = {"type": "object", "properties": {"kind": {}, "of": {"$ref": "#"}}, "required": ["kind"]}
    cases = [json.loads(json.dumps(case)) for _ in range(20)]
    for at, one in enumerate(cases):
        one["properties"]["kind"] = {"const": f"k{at}"}
    assert grammar_of({"anyOf": cases})
    assert grammar_of(doubling(5))


def test_text_bytes_and_erlang_terms_are_the_same_schema() -> None:
    schema = {"properties": {"a": {"enum": ["x", None, True]}}, "required": ["a"]}
    term = {
        "properties": {b"a": {"enum": [b"x", Atom("null"), True]}},
        Atom("required"): [b"a"],
    }
    text = json.dumps(schema)
    grammars = {grammar_of(given) for given in (schema, text, text.encode(), term)}
    assert len(grammars) == 1


def test_a_request_names_the_option_the_place_and_the_mend() -> None:
    schema = {"properties": {"a": {"pattern": "x(?!y)"}}}
    with pytest.raises(ErllamaError) as caught:
        parse_request({"json_schema": schema}, "token", None)
    why = "#/properties/a/pattern: (?! is a lookahead, which is not supported, at character 2"
    assert caught.value.reason == ("invalid", "json_schema", why)
    assert why in str(caught.value)
    assert "name what is allowed" in caught.value.hint


def test_a_schema_and_a_grammar_exclude_each_other() -> None:
    with pytest.raises(ErllamaError, match="a grammar is given, too"):
        parse_request({"json_schema": True, "grammar": 'root ::= "a"'}, "token", None)
    absent = parse_request({"json_schema": Atom("undefined"), "grammar": "g"}, "token", None)
    assert absent.generate.sampler.grammar == b"g"


def test_a_refused_schema_harms_no_model() -> None:
    with api.load_model({"in_process": True}) as model:
        for schema, _, _ in REFUSED[:3]:
            with pytest.raises(ErllamaError):
                model.complete("a b", json_schema=schema)
            with pytest.raises(ErllamaError):
                api.infer(model, [1], {"json_schema": schema})
        assert model.complete("a b", response_tokens=1)["finish_reason"] == "length"
