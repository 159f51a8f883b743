"""``explain`` on SmolLM2: texts of real tokens, real times, the engine's own identity."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import pytest

from erllama_py import api
from erllama_py._engine.registry import core
from erllama_py.config import EVERYDAY_POLICY
from tests.models import smollm2_path
from tests.waiting import wait_for

pytestmark = [pytest.mark.model, pytest.mark.timeout(180)]

STORY = "The lighthouse keeper wrote one line in the log every evening. " * 12


def load(**context: Any) -> api.Model:
    threads = {"n_ctx": 1024, "n_threads": 1, "n_threads_batch": 2}
    return api.load_model(
        {
            "model_path": smollm2_path(),
            "policy": EVERYDAY_POLICY,
            "context_opts": {**threads, **context},
        }
    )


@pytest.fixture(scope="module")
def model() -> Iterator[api.Model]:
    """SmolLM2 in a process of its own."""
    with load() as loaded:
        yield loaded


def idle(model: api.Model) -> None:
    wait_for(lambda: not core().host(model).requests)


def test_the_first_token_that_differs_is_shown_with_what_is_around_it(model: api.Model) -> None:
    first = model.complete(STORY + "He saw a ship.", response_tokens=4)
    second = model.complete(STORY + "He saw two gulls.", response_tokens=4)
    third = model.complete(STORY + "He saw two gulls.", response_tokens=4)
    idle(model)
    tokens = model.tokenize(STORY + "He saw two gulls.")
    answer = model.explain(second)
    fork = answer["first_difference"]
    assert (answer["kind"], answer["reason"]) == ("partial", "diverged")
    assert fork["index"] == answer["prefix_len"] == tokens.index(fork["prompt_token"], 100)
    assert (fork["prompt_text"], fork["cached_text"]) == (" two", " a")
    assert fork["before"].endswith(" He saw")
    assert answer["nearest_row"]["shared"] == fork["index"]
    namespace = core().host(model).cache.namespace
    assert namespace is not None
    asked = array("I", model.tokenize(STORY + "He saw a ship.")).tobytes()
    assert answer["nearest_row"]["key"] in (first["finish_key"], namespace.key(asked))
    assert answer["tiers"] == {"ram": fork["index"]}
    assert 0 < answer["lookup_ms"] < 1000
    assert answer["restore_ms"] > 0
    assert f"token {fork['index']} is ' two', where" in answer["why"]
    exact = model.explain(third)
    assert (exact["kind"], exact["reason"], exact["prefix_len"]) == ("exact", "exact", len(tokens))
    # Past requests are told as they were, not as the cache is now.
    assert model.explain(first)["kind"] == "cold"


def test_tokens_without_a_text_are_shown_by_number(model: api.Model) -> None:
    chat = model.chat([{"role": "user", "content": STORY}])
    api.prefill_only(model, chat)
    control = chat[0]
    assert model.detokenize([control]) == ""
    fork = model.explain([*chat[:60], control, control, 5])["first_difference"]
    assert fork["prompt_text"] == f"<token {control}>"
    assert fork["cached_text"] == model.detokenize([chat[60]])
    ahead = model.explain([*chat[:2], 5])["first_difference"]
    assert ahead["before"] == f"<token {control}>system"
    cut = model.explain(model.tokenize("🙂")[:1])["first_difference"]
    assert isinstance(cut["prompt_text"], bytes)


def test_the_field_of_the_engines_identity_that_differs_is_named(model: api.Model) -> None:
    model.complete(STORY, response_tokens=1)
    with load(flash_attn=False) as other:
        answer = other.explain(STORY)
        assert (answer["kind"], answer["reason"]) == ("cold", "other_key")
        (elsewhere,) = answer["other_keys"]
        assert elsewhere["shared"] == answer["prompt_tokens"]
        assert list(elsewhere["differs"]) == ["flash_attn"]
        assert "under another key: flash_attn is" in answer["why"]
