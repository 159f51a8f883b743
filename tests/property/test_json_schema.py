"""Whatever a model's logits are, a reply under a schema that ends is JSON that satisfies it.

The judge is the package ``jsonschema``.  The engine's own grammar sampler draws; logits are
noise, pushed a little towards what closes things, so that most replies do end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from erllama_py._backends.base import SamplerOptions
from erllama_py._grammar import SchemaError, grammar_of
from tests.grammars import Speaker, speaker
from tests.property.strategies.json_schemas import maps, schemas


@pytest.fixture(scope="module")
def toy() -> Iterator[Speaker]:
    with speaker() as opened:
        yield opened


@settings(max_examples=150, deadline=None)
@given(schemas, st.integers(0, 2**31))
def test_replies_parse_and_satisfy_their_schema(toy, schema, seed) -> None:
    judge = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    grammar = grammar_of(schema)
    for more in range(3):
        reply = toy.say(grammar, seed + more)
        if reply is not None:
            judge.validate(json.loads(reply))


@settings(max_examples=80, deadline=None)
@given(maps(), st.integers(0, 2**31))
def test_maps_have_the_names_that_their_patterns_allow(toy, schema, seed) -> None:
    judge = Draft202012Validator(schema)
    grammar = grammar_of(schema)
    for more in range(3):
        reply = toy.say(grammar, seed + more)
        if reply is not None:
            judge.validate(json.loads(reply))


EVERYDAY: dict[str, Any] = {
    "any JSON": True,
    "any object": {"type": "object"},
    "a map": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1},
    "a tree": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "under": {"type": "array", "items": {"$ref": "#"}},
        },
        "required": ["name"],
        "additionalProperties": False,
    },
    "cases": {
        "$defs": {
            "add": {
                "type": "object",
                "properties": {
                    "op": {"const": "add"},
                    "left": {"$ref": "#"},
                    "right": {"$ref": "#"},
                },
                "required": ["op", "left", "right"],
            },
            "number": {
                "type": "object",
                "properties": {"op": {"const": "number"}, "value": {"type": "number"}},
                "required": ["op", "value"],
            },
        },
        "oneOf": [{"$ref": "#/$defs/add"}, {"$ref": "#/$defs/number"}],
    },
    "parts": {
        "allOf": [
            {"properties": {"a": {"type": "integer", "minimum": 0}}, "required": ["a"]},
            {"properties": {"a": {"maximum": 9}, "b": {"type": "boolean"}}, "required": ["b"]},
        ]
    },
    "a reference with neighbours": {
        "$defs": {"size": {"type": "integer", "maximum": 1000}},
        "properties": {"size": {"$ref": "#/$defs/size", "minimum": 990, "description": "in cm"}},
        "required": ["size"],
    },
    "required and not described": {"required": ["id"], "type": "object"},
    "a tuple of draft 7": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "items": [{"type": "string"}, {"type": "null"}],
        "additionalItems": {"type": "boolean"},
        "minItems": 4,
    },
    "siblings of anyOf": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "a map with keys of a pattern": {
        "type": "object",
        "patternProperties": {"^[a-z]{2}-[0-9]+$": {"type": "integer"}},
        "minProperties": 1,
    },
    "names that are others' beginnings": {
        "properties": {"a": {"type": "integer"}, "ab": {"type": "integer"}, "": {"const": 1}},
        "additionalProperties": {"type": "null"},
    },
}


@pytest.mark.parametrize("name", EVERYDAY)
def test_everyday_schemas(toy: Speaker, name: str) -> None:
    schema = EVERYDAY[name]
    grammar, ended = grammar_of(schema), 0
    for seed in range(30):
        reply = toy.say(grammar, seed)
        if reply is not None:
            ended += 1
            validator_for(schema, Draft202012Validator)(schema).validate(json.loads(reply))
    assert ended >= 10


def test_properties_come_in_the_order_of_the_schema(toy: Speaker) -> None:
    grammar = grammar_of('{"properties": {"z": {}, "a": {}, "m": {}}, "required": ["m", "z"]}')
    replies = [toy.say(grammar, seed) for seed in range(20)]
    orders = {"".join(json.loads(reply)) for reply in replies if reply is not None}
    assert orders == {"zm", "zam"}


def test_control_tokens_are_no_part_of_a_text(toy: Speaker) -> None:
    """The engine takes ``<unk>`` for five characters, and the reply has none of them."""
    backend = toy.backend
    control = np.zeros(backend.info.n_vocab, np.float32)
    control[[token for token in range(backend.info.n_vocab) if not backend.piece(token)]] = 50
    grammar = grammar_of({"type": "string", "minLength": 4, "maxLength": 4})
    reply = toy.say(grammar, 1, pull=control)
    assert reply is not None
    assert len(json.loads(reply)) == 4


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *(
                        "type",
                        "properties",
                        "items",
                        "anyOf",
                        "oneOf",
                        "allOf",
                        "$ref",
                        "enum",
                        "const",
                    ),
                    *(
                        "required",
                        "minimum",
                        "maximum",
                        "minItems",
                        "maxItems",
                        "prefixItems",
                        "format",
                    ),
                    *(
                        "additionalProperties",
                        "minLength",
                        "maxLength",
                        "multipleOf",
                        "minProperties",
                    ),
                ]
            ),
            inner
            | st.sampled_from(["object", "array", "string", "#", "#/items", "number", 0, 1, 2]),
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(json_values)
def test_anything_is_a_grammar_or_refused_with_its_place(toy, value) -> None:
    grammar = None
    refused = None
    try:
        grammar = grammar_of(value)
    except SchemaError as error:
        refused = error
    if grammar is not None:
        toy.backend.new_sampler(SamplerOptions(grammar=grammar)).close()
    else:
        assert refused is not None
        assert refused.path.startswith("#")
        assert refused.problem
