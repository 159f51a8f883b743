"""Numbers and texts of requests at their edges: what is taken, what counts as absent."""

from __future__ import annotations

import math
from typing import Any

import pytest

from erllama_py._engine.registry import core
from erllama_py.config import parse_request
from erllama_py.errors import ErllamaError
from erllama_py.testing import stub_model
from erllama_py.types import Atom

HUGE = 1 << 70
FAR = 10**400
"""No 64-bit number, whole or not."""


def sampler(**options: Any) -> Any:
    return parse_request(options, "token", None).generate.sampler


@pytest.mark.parametrize("value", ["0.5", b"1", Atom("high"), True, [], {}, math.nan])
@pytest.mark.parametrize("key", ["temperature", "top_p", "min_p", "repetition_penalty", "top_k"])
def test_what_is_no_number_counts_as_absent(key: str, value: Any) -> None:
    assert sampler(**{key: value}) == sampler()


@pytest.mark.parametrize(
    ("key", "value", "taken"),
    [
        ("temperature", 0, None),
        ("temperature", -1.0, None),
        ("temperature", 2, 2.0),
        ("temperature", FAR, 1e30),
        ("temperature", math.inf, 1e30),
        ("top_p", 1.0, None),
        ("top_p", 0, 0.0),
        ("top_p", -FAR, -1e30),
        ("min_p", 0, None),
        ("min_p", FAR, 1e30),
        ("repetition_penalty", 1, None),
        ("repetition_penalty", FAR, 1e30),
        ("top_k", 0, None),
        ("top_k", -4, None),
        ("top_k", 4.0, None),
        ("top_k", HUGE, (1 << 31) - 1),
    ],
)
def test_numbers_at_their_edges(key: str, value: Any, taken: Any) -> None:
    assert getattr(sampler(**{key: value}), key) == taken


def test_the_seed_has_64_bits_of_which_the_engine_takes_32() -> None:
    assert sampler(seed=(7 << 32) + 5).seed == 5
    assert sampler().seed == 0
    for bad in (-1, 1 << 64, 1.0, "1", True):
        with pytest.raises(ErllamaError) as caught:
            sampler(seed=bad)
        assert caught.value.reason == "badarg"


def test_only_texts_are_stop_sequences() -> None:
    given = ["a", b"", "", 5, None, Atom("b"), b"\xff", ["c"]]
    options = parse_request({"stop_sequences": given}, "token", None)
    assert options.generate.stop_sequences == (b"a", b"\xff")


def test_json_is_reply_whatever_its_texts_look_like() -> None:
    asked = {"thinking": "enabled", "tool_calls": "enabled"}
    plain = parse_request(asked, "token", None).generate
    assert (plain.thinking, plain.tool_calls) == (True, True)
    json = parse_request({**asked, "json_schema": True}, "token", None).generate
    assert (json.thinking, json.tool_calls) == (False, False)


def test_unknown_keys_are_ignored() -> None:
    assert parse_request({"max_tokens": -1, "n": "x"}, "token", 9) == parse_request({}, "token", 9)


@pytest.mark.parametrize(
    "options",
    [
        {"response_tokens": 2, "top_k": HUGE, "temperature": FAR, "min_p": FAR},
        {"response_tokens": 2, "top_p": -FAR, "repetition_penalty": FAR},
        {"response_tokens": HUGE},
        {"response_tokens": -HUGE},
    ],
)
def test_numbers_of_any_size_are_served_and_leave_nothing(options: dict[str, Any]) -> None:
    with stub_model("edges", context_opts={"n_ctx": 32}) as model:
        reply = model.complete("a b", **options)
        wanted = {2: 2, HUGE: 30, -HUGE: 0}[options["response_tokens"]]
        assert len(reply["generated"]) == wanted
        assert reply["finish_reason"] == "length"
        assert all(request.over for request in core().host(model).requests)
