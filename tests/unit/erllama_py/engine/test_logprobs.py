"""Log probabilities: those of the raw logits, for every token, however it came about."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama_py import api
from erllama_py._engine.logprobs import FLOOR, scores
from erllama_py._engine.registry import core
from erllama_py.api._asking import answered, make_request
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.errors import ErllamaError
from erllama_py.testing import record
from tests.models import smollm2_path

STORY = "The lighthouse keeper wrote one line in the log every evening. " * 6


@given(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40), st.integers(0, 20))
def test_the_softmax_of_the_logits(values: list[float], count: int) -> None:
    row = np.array(values, np.float32)
    found = scores(row.tobytes(), 1, count)
    wanted = row - np.log(np.exp(row.astype(np.float64)).sum())
    assert found.logprob == pytest.approx(wanted[1], abs=1e-4)
    order = sorted(range(len(row)), key=lambda one: (-row[one], one))[:count]
    assert [token for token, _ in found.top] == order
    assert [value for _, value in found.top] == pytest.approx(wanted[order], abs=1e-4)


def test_what_cannot_be_is_a_number_all_the_same() -> None:
    row = np.array([0.0, -np.inf, 0.0], np.float32)
    found = scores(row.tobytes(), 1, 3)
    assert found.logprob == FLOOR
    assert [token for token, _ in found.top] == [0, 2, 1]
    assert found.top[0][1] == pytest.approx(-math.log(2))


@pytest.fixture(scope="module")
def model() -> Iterator[api.Model]:
    config = {
        "model_path": smollm2_path(),
        "policy": EVERYDAY_POLICY,
        "context_opts": {"n_ctx": 1024, "n_seq_max": 2, "n_threads": 1, "n_threads_batch": 2},
    }
    with api.load_model(config) as loaded:
        yield loaded


def traced(model: api.Model, options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Complete the story; return the result and the logits every token was drawn from."""
    host = core().host(model)
    request = make_request(host, "complete", options, None, text=STORY.encode())
    request.options = msgspec.structs.replace(request.options, trace=True)
    result = answered(host, request)
    assert request.trace is not None
    rows = np.frombuffer(request.trace, np.float32).reshape(len(result["generated"]), -1)
    return result, rows.astype(np.float64)


@pytest.mark.model
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"exactness": "bit"},
        {"temperature": 1.2, "top_k": 40, "repetition_penalty": 1.3, "seed": 7},
        {"stop_sequences": ["the"]},
        {"json_schema": {"type": "integer"}},
        {"speculate": "lookup"},
    ],
    ids=["greedy", "bit", "sampled", "stopped", "schema", "speculate"],
)
def test_cold_and_exact_they_are_what_the_logits_say(model: api.Model, options) -> None:
    options = {"response_tokens": 8, "logprobs": 3, **options}
    for kind in ("cold", "exact"):
        result, rows = traced(model, options)
        assert result["cache_hit_kind"] == kind
        told = result["logprobs"]
        assert [one["token"] for one in told] == result["generated"]
        for one, row in zip(told, rows, strict=True):
            wanted = row - row.max() - np.log(np.exp(row - row.max()).sum())
            assert one["logprob"] == pytest.approx(wanted[one["token"]], abs=1e-3)
            order = np.argsort(-row, kind="stable")[:3]
            assert [alternative["token"] for alternative in one["top"]] == order.tolist()
            values = [alternative["logprob"] for alternative in one["top"]]
            assert values == pytest.approx(wanted[order], abs=1e-3)
            texts = [alternative["text"] for alternative in one["top"]]
            assert texts == [model.detokenize([token]) for token in order.tolist()]


@pytest.mark.model
def test_a_stream_tells_them_behind_each_token(model: api.Model) -> None:
    tokens = model.tokenize(STORY)
    events = record(api.infer(model, tokens, {"response_tokens": 4, "logprobs": 0}))
    kinds = [event.kind for event in events if event.kind != "token"]
    assert kinds == ["token_id", "logprobs"] * 4 + ["done"]
    told = [event.logprobs for event in events if event.logprobs is not None]
    assert [one["token"] for one in told] == [e.token_id for e in events if e.kind == "token_id"]
    assert all(one["top"] == [] and one["logprob"] <= 0 for one in told)


@pytest.mark.model
def test_who_does_not_ask_gets_none(model: api.Model) -> None:
    assert "logprobs" not in model.complete(STORY, response_tokens=1)
    assert model.complete(STORY, response_tokens=0, logprobs=1)["logprobs"] == []
    stream = api.infer(model, model.tokenize(STORY), {"response_tokens": 1})
    assert {event.kind for event in record(stream)} == {"token", "token_id", "done"}


@pytest.mark.parametrize("value", [-1, 21, 1.0, "3", True, []])
def test_other_numbers_are_refused(value: Any) -> None:
    with api.load_model({"in_process": True}) as stub:
        with pytest.raises(ErllamaError) as caught:
            stub.complete("a b", logprobs=value)
        assert caught.value.reason == ("invalid", "logprobs", value)


def test_the_stub_has_no_logits() -> None:
    with api.load_model({"in_process": True}) as stub:
        for ask in (
            lambda: stub.complete("a b", logprobs=2),
            lambda: api.infer(stub, [1], {"logprobs": 2}),
        ):
            with pytest.raises(ErllamaError) as caught:
                ask()
            assert caught.value.reason == "not_supported"


@pytest.mark.model
def test_who_asks_for_them_does_not_speculate(model: api.Model) -> None:
    options = {"response_tokens": 24, "speculate": "lookup"}
    plain = model.complete(STORY, **options)
    told = model.complete(STORY, logprobs=1, **options)
    assert told["generated"] == plain["generated"]
    assert [one["top"][0]["token"] for one in told["logprobs"]] == told["generated"]
