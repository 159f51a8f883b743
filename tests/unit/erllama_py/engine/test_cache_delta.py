"""What a request read from the cache and created in it, and prefills that follow each other."""

from __future__ import annotations

from typing import Any

import pytest

from erllama_py import api
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.errors import ErllamaError
from tests.sessionlab import PROMPT, SLOW

# -- cache_delta ---------------------------------------------------------------------------


def test_what_is_read_and_created_is_told_in_result_stats_and_prefill(load: Any) -> None:
    model = load(policy={**EVERYDAY_POLICY, "min_tokens": 4, "cold_min_tokens": 4})
    words = " ".join("abcdefghijkl")
    cold = api.complete(model.id, words, {"response_tokens": 3})
    assert cold["cache_delta"] == cold["stats"]["cache_delta"] == {"read": 0, "created": 15}
    prompt = cold["context_tokens"][:12]
    exact = model.run(prompt, count=3)
    assert (exact["cache_hit_kind"], exact["cache_delta"]) == ("exact", {"read": 12, "created": 3})
    partial = model.prefill([*cold["context_tokens"], 7, 8])
    assert (partial["cache_hit_kind"], partial["cache_delta"]["read"]) == ("partial", 15)
    assert partial["cache_delta"]["created"] == 2


def test_a_row_that_is_there_already_counts_as_created(load: Any) -> None:
    model = load()
    tokens = [*range(1, 100)]
    assert model.prefill(tokens)["cache_delta"] == {"read": 0, "created": 99}
    assert model.prefill(tokens)["cache_delta"] == {"read": 99, "created": 0}


@pytest.mark.parametrize(
    "config", [{"policy": {"min_tokens": 64}}, {"cache": False}], ids=["min_tokens", "no cache"]
)
def test_nothing_saved_is_nothing_created(load: Any, config: dict[str, Any]) -> None:
    model = load(**config)
    for result in (model.run(PROMPT), model.prefill(PROMPT)):
        assert result["cache_delta"] == {"read": 0, "created": 0}


def test_a_cancelled_request_that_was_never_admitted_read_nothing(load: Any) -> None:
    model = load(stub_opts=SLOW)
    first = model.start(PROMPT, count=1000)
    second = model.start(PROMPT)
    api.cancel(second.ref)
    assert model.done(second)["cache_delta"] == {"read": 0, "created": 0}
    api.cancel(first.ref)
    model.done(first)


# -- prefill_only/3 ------------------------------------------------------------------------


def test_prefills_chain_by_parent_key(load: Any) -> None:
    model = load(policy={"min_tokens": 4})
    first, rest = [*range(1, 20)], [*range(30, 35)]
    one = model.prefill(first)
    two = model.prefill(first + rest, parent_key=one["finish_key"])
    assert two["cache_hit_kind"] == "partial"
    assert two["cache_delta"] == {"read": 19, "created": 5}
    assert two["finish_key"] == model.prefill(first + rest)["finish_key"]
    assert api.counters()["hits_resume"] == 1
    with pytest.raises(ErllamaError, match="parent_key"):
        model.prefill(first, parent_key=b"short")
