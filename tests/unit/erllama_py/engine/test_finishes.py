"""How replies end: stop sequences across tokens and characters, the limit, the context.

The model has random weights and a vocabulary of bytes; a grammar makes it say a given text.
So every place where a token can end is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from erllama_py import api
from erllama_py.testing import record
from tests.models import mamba_path

pytestmark = pytest.mark.model

TEXT = "one ünd two → END three"
N_CTX = 256
STATS = {
    *("prompt_tokens", "completion_tokens", "prefill_ms", "generation_ms", "cache_hit_kind"),
    *("finish_reason", "cancelled", "finish_key", "committed_tokens", "prefix_len"),
    "cache_delta",
}


@pytest.fixture(scope="module")
def model() -> Iterator[api.Model]:
    config = {"model_path": mamba_path(), "context_opts": {"n_ctx": N_CTX, "n_threads": 1}}
    with api.load_model(config) as loaded:
        yield loaded


def says(text: str) -> str:
    return f'root ::= "{text}"'


def streamed(model: api.Model, options: dict[str, Any]) -> tuple[bytes, list[int], dict[str, Any]]:
    events = record(api.infer(model, model.tokenize("Say it."), options))
    assert events[-1].stats is not None
    text = b"".join(event.data for event in events if event.kind == "token")
    ids = [event.token_id for event in events if event.token_id is not None]
    return text, ids, events[-1].stats


@pytest.mark.parametrize(
    ("stops", "fired", "reply"),
    [
        (["END"], "END", "one ünd two → "),
        (["three!", "two → E"], "two → E", "one ünd "),
        (["ü"], "ü", "one "),
        (["xyz", "→"], "→", "one ünd two "),
        (["e ü", "ünd"], "e ü", "on"),
        (["ne", "ne ü"], "ne", "o"),
        ([b"\xbc"], b"\xbc", b"one \xc3"),
        (["one"], "one", ""),
        (["three"], "three", "one ünd two → END "),
        (["four", "End"], None, TEXT),
    ],
)
def test_a_stop_is_cut_wherever_tokens_and_characters_end(model, stops, fired, reply) -> None:
    options = {"grammar": says(TEXT), "stop_sequences": stops}
    whole = model.complete("Say it.", **options)
    text, ids, stats = streamed(model, options)
    assert whole["reply"] == reply
    assert text == (reply if isinstance(reply, bytes) else reply.encode())
    assert ids == whole["generated"]
    assert whole["finish_reason"] == stats["finish_reason"] == "stop"
    assert whole.get("stop_sequence") == stats.get("stop_sequence") == fired
    assert stats["completion_tokens"] == len(ids)
    assert set(stats) - {"exactness", "tier"} == STATS | ({"stop_sequence"} if fired else set())
    if fired:
        # The token that completed the match is the last one.
        said = b"".join(_bytes(model.detokenize([token])) for token in ids)
        assert _bytes(fired) in said
        assert _bytes(fired) not in said[: -len(_bytes(model.detokenize(ids[-1:])))]


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def test_the_limit_comes_before_the_end_and_a_stop_before_the_limit(model: api.Model) -> None:
    whole = model.complete("Say it.", grammar=says(TEXT))
    tokens = len(whole["generated"])  # the end-of-generation token among them
    assert whole["finish_reason"] == "stop"
    for limit, reason in ((tokens + 1, "stop"), (tokens, "length"), (tokens - 1, "length")):
        cut = model.complete("Say it.", grammar=says(TEXT), response_tokens=limit)
        assert (cut["finish_reason"], cut["reply"]) == (reason, TEXT)
    at_three = model.complete("Say it.", grammar=says(TEXT), stop_sequences=["three"])
    both = model.complete(
        "Say it.",
        grammar=says(TEXT),
        stop_sequences=["three"],
        response_tokens=len(at_three["generated"]),
    )
    assert (both["finish_reason"], both["stop_sequence"]) == ("stop", "three")


def test_text_that_might_have_been_a_stop_comes_at_the_limit(model: api.Model) -> None:
    options = {"grammar": says(TEXT), "stop_sequences": ["one ünd two → STOP"]}
    events = record(api.infer(model, model.tokenize("Say it."), {**options, "response_tokens": 4}))
    kinds = [event.kind for event in events]
    assert kinds == ["token_id"] * 4 + ["token", "done"]
    assert TEXT.encode().startswith(events[-2].data)


@pytest.mark.parametrize("given", [{}, {"response_tokens": 10**6}])
def test_without_a_limit_a_reply_fills_the_context(model: api.Model, given) -> None:
    prompt = model.tokenize("Say it.")
    whole = model.complete("Say it.", grammar="root ::= [a-z]{2000}", **given)
    assert whole["finish_reason"] == "length"
    assert len(whole["generated"]) == N_CTX - len(prompt)
    assert whole["committed_tokens"] == N_CTX
    assert whole["context_tokens"] == prompt + whole["generated"]


def test_sixty_four_tokens_of_a_stream_by_default(model: api.Model) -> None:
    _, ids, stats = streamed(model, {"grammar": "root ::= [a-z]{2000}"})
    assert len(ids) == stats["completion_tokens"] == 64
    assert stats["finish_reason"] == "length"


def test_no_tokens_are_a_prefill_that_says_length(model: api.Model) -> None:
    text, ids, stats = streamed(model, {"response_tokens": 0, "stop_sequences": ["x"]})
    assert (text, ids) == (b"", [])
    assert (stats["finish_reason"], stats["cancelled"]) == ("length", False)
    assert stats["committed_tokens"] == stats["prompt_tokens"]


def test_draws_without_a_seed_repeat_and_numbers_without_sense_break_no_grammar(model) -> None:
    options = {"grammar": "root ::= [a-z]{5}", "temperature": 1.3}
    assert (
        model.complete("Say it.", **options)["reply"]
        == model.complete("Say it.", **options)["reply"]
    )
    for nonsense in (1e-40, 1e39, float("inf"), 10**400):
        odd = model.complete("Say it.", grammar="root ::= [a-z]{5}", temperature=nonsense)
        assert odd["reply"].isalpha()
        assert len(odd["reply"]) == 5
