"""``verify_exact``: what two runs have in common, and what it costs the others."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import Any

import pytest

from erllama_py import api
from erllama_py._engine.exactness import compare
from erllama_py._engine.request import Request
from erllama_py.config import EVERYDAY_POLICY, GenerateOptions
from erllama_py.errors import BadCall, ErllamaError, ModelGone
from erllama_py.testing import stub_model
from tests.models import smollm2_path
from tests.waiting import wait_for

PROMPT = "The keeper wrote one line in the log every evening. " * 20
ALPHABET = " ".join("abcdefghijklmnopqrstuvw")


# -- comparing ----------------------------------------------------------------------------


def traced(said: list[int], logits: list[list[float]], **found: Any) -> Request:
    request = Request("complete", GenerateOptions(), tokens=array("I", [1, 2, 3]))
    for token in said:
        request.on_token(b"", token)
    request.trace = b"".join(array("f", row).tobytes() for row in logits)
    for name, value in found.items():
        setattr(request, name, value)
    return request


ROWS = [[0.5, 1.0], [2.0, -1.0], [0.0, 4.0]]


def test_the_same_is_equal_and_told_with_its_hit() -> None:
    warm = traced(
        [7, 8, 9], ROWS, kind="exact", prefix_len=3, exactness="bit", tiers={"ram": 1, "disk": 2}
    )
    assert compare(traced([7, 8, 9], ROWS), warm) == {
        "equal": True,
        "same_tokens": True,
        "largest_difference": 0.0,
        "first_difference": None,
        "positions": 3,
        "kind": "exact",
        "prefix_len": 3,
        "exactness": "bit",
        "tier": "disk",
    }


def test_other_logits_are_told_by_the_largest_difference_and_the_first() -> None:
    other = [ROWS[0], [2.0, -1.25], [0.5, 4.0]]
    found = compare(traced([7, 8, 9], ROWS), traced([7, 8, 9], other))
    assert not found["equal"]
    assert found["same_tokens"]
    assert (found["largest_difference"], found["first_difference"]) == (0.5, 1)
    assert (found["kind"], found["exactness"], found["tier"]) == ("cold", None, None)


def test_behind_the_first_other_token_nothing_is_compared() -> None:
    other = [ROWS[0], [2.0, -1.25], [900.0, 4.0]]
    found = compare(traced([7, 8, 9], ROWS), traced([7, 5, 9], other))
    assert not found["same_tokens"]
    assert (found["positions"], found["largest_difference"]) == (2, 0.25)


def test_a_reply_that_ends_sooner_is_compared_as_far_as_it_goes() -> None:
    found = compare(traced([7, 8, 9], ROWS), traced([7, 8], ROWS[:2]))
    assert (found["equal"], found["same_tokens"], found["positions"]) == (False, False, 2)
    assert found["first_difference"] is None


def test_two_zeros_differ_in_a_bit_and_by_nothing() -> None:
    found = compare(traced([7], [[0.0]]), traced([7], [[-0.0]]))
    assert (found["equal"], found["first_difference"]) == (False, 0)
    assert found["largest_difference"] == 0.0


def test_what_is_no_number_is_infinitely_different() -> None:
    nan, inf = math.nan, math.inf
    found = compare(traced([7], [[nan, inf, 1.0]]), traced([7], [[2.0, inf, 1.0]]))
    assert found["largest_difference"] == inf
    found = compare(traced([7], [[nan, inf, 1.0]]), traced([7], [[nan, inf, 1.5]]))
    assert found["largest_difference"] == inf


# -- on a model that is none ---------------------------------------------------------------


def test_nothing_of_the_cold_run_is_looked_up_or_stored() -> None:
    with stub_model() as model:
        found = api.verify_exact(model, ALPHABET)
        # The stub never says the same twice.
        assert (found["positions"], found["kind"], found["prefix_len"]) == (1, "exact", 23)
        wait_for(lambda: api.counters()["saves_finish"] == 2)
        counters = api.counters()
        assert (counters["misses"], counters["hits_exact"]) == (1, 1)
        assert api.verify_exact(model, ALPHABET)["kind"] == "exact"
        assert (api.counters()["misses"], api.counters()["hits_exact"]) == (1, 2)


def test_tokens_count_and_options_as_those_of_complete() -> None:
    tokens = list(range(300))
    with stub_model(stub_opts={"step_delay_ms": 5}) as model:  # restoring has to be worth it
        assert model.verify_exact(tokens, tokens=3)["prefix_len"] == 300
        key = api.prefill_only(model, tokens)["finish_key"]
        found = model.verify_exact([*tokens, 5, 6], response_tokens=2, parent_key=key)
        assert (found["kind"], found["prefix_len"]) == ("partial", 300)
        assert api.counters()["hits_resume"] == 1


def test_a_model_that_caches_nothing_is_cold_twice() -> None:
    with stub_model(cache=False) as model:
        found = api.verify_exact(model, ALPHABET, tokens=2)
    assert (found["kind"], found["tier"], found["exactness"]) == ("cold", None, None)


def test_what_is_taken_over_in_the_context_promises_no_bits() -> None:
    """Stored, it was computed alone in whole chunks; the sequence in the context was not."""
    tokens = list(range(256))
    slots = {"n_ctx": 4096, "n_seq_max": 2}
    with stub_model(context_opts=slots, stub_opts={"step_delay_ms": 5}) as model:
        running = api.infer(model, tokens, {"response_tokens": 1000})
        next(running)
        events = list(api.infer(model, [*tokens, 7, 8], {"response_tokens": 2}))
        running.cancel()
        alone = api.infer(model, [*tokens, 9], {"response_tokens": 2, "exactness": "bit"})
        for stream, promise in ((events, "stream"), (list(alone), "bit")):
            stats = stream[-1].stats
            assert stats is not None
            assert (stats["prefix_len"], stats["exactness"]) == (256, promise)


@pytest.mark.parametrize(
    ("prompt", "given", "reason"),
    [
        ("", {}, "empty_prompt"),
        ([], {}, "empty_prompt"),
        ([-1], {}, "invalid_token"),
        (list(range(5000)), {}, "context_overflow"),
        (ALPHABET, {"options": {"exactness": "most"}}, ("invalid", "exactness", "most")),
        (ALPHABET, {"options": {"response_tokens": 0}}, ("invalid", "tokens", 0)),
        (ALPHABET, {"tokens": 0}, ("invalid", "tokens", 0)),
        (ALPHABET, {"tokens": "3"}, ("invalid", "tokens", "3")),
    ],
)
def test_refusals_are_those_of_complete(prompt: Any, given: dict[str, Any], reason: Any) -> None:
    with stub_model() as model:
        with pytest.raises(ErllamaError) as refused:
            api.verify_exact(model, prompt, **given)
        assert refused.value.reason == reason
        assert api.phase(model) == "idle"


def test_arguments_of_another_kind_are_bad_calls() -> None:
    with stub_model() as model:
        for arguments in ((7,), (ALPHABET, ["exactness"])):
            with pytest.raises(BadCall):
                api.verify_exact(model, *arguments)
    with pytest.raises(ModelGone):
        api.verify_exact(model, ALPHABET)


# -- on a model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Iterator[api.Model]:
    """SmolLM2 with two slots: at ``token`` where nothing else is said."""
    config = {
        "model_path": smollm2_path(),
        "policy": EVERYDAY_POLICY,
        "context_opts": {"n_ctx": 1024, "n_seq_max": 2, "n_threads": 1},
    }
    with api.load_model(config) as loaded:
        yield loaded


@pytest.mark.model
def test_at_bit_every_hit_is_equal(model: api.Model) -> None:
    exact = model.verify_exact(PROMPT, tokens=6, exactness="bit")
    assert exact == {
        "equal": True,
        "same_tokens": True,
        "largest_difference": 0.0,
        "first_difference": None,
        "positions": 6,
        "kind": "exact",
        "prefix_len": len(model.tokenize(PROMPT)),
        "exactness": "bit",
        "tier": "ram",
    }
    partial = model.verify_exact(PROMPT + "And then", tokens=6, exactness="bit")
    assert (partial["kind"], partial["prefix_len"] % 128) == ("partial", 0)
    assert (partial["equal"], partial["exactness"]) == (True, "bit")


@pytest.mark.model
def test_at_token_a_hit_says_that_it_may_differ_and_by_how_much(model: api.Model) -> None:
    model.prefill(model.tokenize(PROMPT))
    found = model.verify_exact(PROMPT + "And then", tokens=6)
    assert (found["kind"], found["exactness"]) == ("partial", "stream")
    assert found["prefix_len"] % 128  # another cut, so other sums
    assert found["equal"] == (found["first_difference"] is None)
    assert found["largest_difference"] < 4


@pytest.mark.model
def test_others_go_on_while_a_prompt_is_verified(model: api.Model) -> None:
    alone = model.complete("Once upon a time", response_tokens=40)["generated"]
    stream = api.infer(model, model.tokenize("Once upon a time"), {"response_tokens": 40})
    assert model.verify_exact(PROMPT, tokens=2, exactness="bit")["equal"]
    events = list(stream)
    assert [event.token_id for event in events if event.kind == "token_id"] == alone
