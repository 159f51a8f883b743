"""Schemas through the whole core: a real model, and one that talks noise.

That replies satisfy their schemas is shown in tests/property/test_json_schema.py by many;
here some go the whole way, and the model's process lives through those that are hostile.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from erllama_py import api
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.errors import ErllamaError
from tests.models import mamba_path, smollm2_path
from tests.property.strategies.json_schemas import schemas

pytestmark = [pytest.mark.model, pytest.mark.timeout(180)]

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["sea", "log"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
}
PROMPT = "The keeper as JSON:\n"


@pytest.fixture(scope="module")
def model() -> Iterator[api.Model]:
    config = {
        "model_path": smollm2_path(),
        "policy": EVERYDAY_POLICY,
        "context_opts": {"n_ctx": 1024, "n_seq_max": 3, "n_threads": 1, "n_threads_batch": 2},
    }
    with api.load_model(config) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def noise() -> Iterator[api.Model]:
    """Random weights over a vocabulary of bytes."""
    config = {"model_path": mamba_path(), "context_opts": {"n_ctx": 512, "n_threads": 1}}
    with api.load_model(config) as loaded:
        yield loaded


def test_greedy_and_sampled_replies_are_people(model: api.Model) -> None:
    judge = Draft202012Validator(PERSON)
    for options in ({}, {"temperature": 1.5, "seed": 3}, {"temperature": 1.0, "top_p": 0.9}):
        reply = model.complete(PROMPT, json_schema=PERSON, response_tokens=120, **options)
        assert reply["finish_reason"] == "stop"
        judge.validate(json.loads(reply["reply"]))


def test_texts_match_their_pattern(model: api.Model) -> None:
    schema = {
        "type": "object",
        "properties": {
            "phone": {"type": "string", "pattern": r"^\(\d{3}\) \d{3}-\d{4}$"},
            "since": {"type": "string", "format": "date", "pattern": "^18"},
            "code": {"allOf": [{"pattern": "^[A-Z]+"}, {"pattern": r"\d$"}], "maxLength": 8},
        },
        "required": ["phone", "since", "code"],
    }
    judge = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    for options in ({}, {"temperature": 1.5, "seed": 5}):
        reply = model.complete(PROMPT, json_schema=schema, response_tokens=120, **options)
        assert reply["finish_reason"] == "stop"
        judge.validate(json.loads(reply["reply"]))


def test_a_reply_that_is_cut_says_so(model: api.Model) -> None:
    reply = model.complete(PROMPT, json_schema=json.dumps(PERSON), response_tokens=5)
    assert reply["finish_reason"] == "length"
    assert reply["reply"].startswith("{")


def test_a_stream_says_what_complete_says_warm_and_at_bit(model: api.Model) -> None:
    options: dict[str, Any] = {"json_schema": PERSON, "response_tokens": 120, "exactness": "bit"}
    cold = model.complete(PROMPT, **options)
    warm = model.complete(PROMPT, **options)
    assert warm["generated"] == cold["generated"]
    assert "".join(model.stream(PROMPT, **options)) == cold["reply"]


def judged(model: api.Model, schema: Any, seed: int) -> None:
    reply = model.complete(
        PROMPT, json_schema=schema, response_tokens=60, temperature=1.0, seed=seed
    )
    if reply["finish_reason"] == "stop":
        checker = Draft202012Validator.FORMAT_CHECKER
        Draft202012Validator(schema, format_checker=checker).validate(json.loads(reply["reply"]))
    else:
        assert reply["finish_reason"] == "length"


SOME = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SOME
@given(schemas, st.integers(0, 2**32 - 1))
def test_a_real_model_under_many_schemas(model: api.Model, schema, seed: int) -> None:
    judged(model, schema, seed)


@SOME
@given(schemas, st.integers(0, 2**32 - 1))
def test_a_model_of_noise_under_many_schemas(noise: api.Model, schema, seed: int) -> None:
    judged(noise, schema, seed)


def test_hostile_schemas_neither_end_nor_hold_up_the_model(model: api.Model) -> None:
    pid = api.model_info(model)["pid"]
    other = api.infer(model, model.tokenize(PROMPT), {"response_tokens": 40})
    deep: Any = True
    for _ in range(5000):
        deep = {"items": deep}
    two = [{"type": "array", "items": {"$ref": "#"}}, {"type": "array", "items": {"$ref": "#"}}]
    names = {"x" * at: {} for at in range(600)}
    hostile: list[Any] = [
        *("[" * 100_000, '{"a":' * 100_000, deep, {"anyOf": two}, {"enum": ["x" * 300_000]}),
        {"type": "string", "minLength": 1 << 62},
        {"type": "array", "items": {"type": "array", "minItems": 1000}, "minItems": 10**6},
        {"$defs": names, "properties": {name: {"$ref": "#"} for name in names}},
        {"properties": {f"p{at}": {"minItems": 900} for at in range(100)}},
        *({"pattern": pattern} for pattern in ("a.{20}b", "((()*)*){1000}" * 99, "[" * 9999)),
    ]
    refused = 0
    for schema in hostile:
        try:
            model.complete(PROMPT, json_schema=schema, response_tokens=1)
        except ErllamaError as error:
            refused += error.reason[:2] == ("invalid", "json_schema")
    assert refused >= len(hostile) - 1
    # What is large, and no more than that, is answered.
    large: dict[str, Any] = {
        "properties": {f"property {at}": {"maxLength": 50} for at in range(60)},
        "additionalProperties": {"enum": [f"{at:x}" for at in range(1000)]},
    }
    assert model.complete(PROMPT, json_schema=large, response_tokens=8)["reply"][0] == "{"
    assert sum(event.kind == "token_id" for event in other) > 0
    assert api.model_info(model)["pid"] == pid
