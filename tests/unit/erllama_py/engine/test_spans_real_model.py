"""Thinking and tool calls of a real engine: a toy with a real tokenizer, made to by a grammar."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

import pytest

from erllama_py import api
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.testing import record
from tests.thinkers import MARKERS, thinker_path

pytestmark = pytest.mark.model

GRAMMAR = (
    'root ::= "<think>" [a-z ]{8,12} "</think>" " ok " [a-z]{3,9} '
    '"<tool_call>" "{" [a-z]{4,8} "}" "</tool_call>" " end"'
)
ASKED = {
    "grammar": GRAMMAR, "thinking": "enabled", "tool_calls": "enabled", "response_tokens": 60,
}  # fmt: skip
PROMPT = "a prompt that is long enough to be kept in the cache, as short ones are not kept "
KEY = "of the node"


@pytest.fixture(scope="module", params=["plain", "control"])
def thinker(request: Any) -> Iterator[api.Model]:
    """A toy whose markers are text of several tokens, or control tokens, by its template."""
    config = {
        "model_path": thinker_path(request.param),
        "policy": EVERYDAY_POLICY,
        "context_opts": {"n_threads": 1, "n_threads_batch": 1},
    }
    with api.load_model(f"thinker-{request.param}", config) as model:
        yield model


def written(model: api.Model, tokens: list[int]) -> str:
    """Return a text with the control tokens in it that are markers."""
    known = {}
    if model.endswith("control"):
        for marker in MARKERS:
            request = {"messages": [{"role": marker.decode(), "content": ""}]}
            known[api.apply_chat_template(model, request)[0]] = marker.decode()
    return "".join(known.get(token) or str(model.detokenize([token])) for token in tokens)


def test_complete_has_thinking_and_calls_beside_the_reply(thinker: api.Model) -> None:
    result = api.complete(thinker, PROMPT, ASKED)
    generated = result["context_tokens"][result["stats"]["prompt_tokens"] :]
    whole = written(thinker, generated)
    thinking, [call] = result["thinking"], result["tool_calls"]
    reply = result["reply"]
    said, _, rest = reply.rpartition(" end")
    assert whole == f"<think>{thinking}</think>{said}<tool_call>{call}</tool_call> end"
    assert rest == ""
    assert call.startswith("{")
    assert call.endswith("}")
    assert reply == thinker.detokenize(result["generated"])
    stats = result["stats"]
    hidden = stats["thinking_tokens"] + stats["tool_call_tokens"]
    assert stats["completion_tokens"] + hidden == len(generated)
    if thinker.endswith("control"):
        marked = set(generated) & set(range(49152, 49156))
        assert marked, "the toy prefers its control tokens, somewhere"


def test_a_stream_tells_the_same_in_order(thinker: api.Model, monkeypatch: Any) -> None:
    monkeypatch.setenv("ERLLAMA_THINKING_SIGNING_KEY", KEY)
    result = api.complete(thinker, PROMPT, ASKED)
    events = record(api.infer(thinker, thinker.tokenize(PROMPT), ASKED))
    of = {kind: [e for e in events if e.kind == kind] for kind in {e.kind for e in events}}
    thought = b"".join(event.data for event in of["thinking_delta"])
    assert thought.decode() == result["thinking"]
    [end] = of["thinking_end"]
    assert end.signature == hmac.digest(KEY.encode(), thought, hashlib.sha256)
    assert b"".join(e.data for e in of["tool_call_delta"]) == of["tool_call_end"][0].data
    assert of["tool_call_end"][0].text == result["tool_calls"][0]
    assert b"".join(event.data for event in of["token"]).decode() == result["reply"]
    assert [event.token_id for event in of["token_id"]] == result["generated"]
    order = [event.kind for event in events]
    assert order.index("thinking_end") < order.index("token") < order.index("tool_call_delta")


def test_a_repeat_is_exact_and_the_key_is_that_of_the_context(thinker: api.Model) -> None:
    prompt = PROMPT + "again"
    cold = api.complete(thinker, prompt, ASKED)
    warm = api.complete(thinker, prompt, ASKED)
    assert warm["cache_hit_kind"] == "exact"
    assert warm["context_tokens"] == cold["context_tokens"]
    assert warm["thinking"] == cold["thinking"]
    # The key of exactly these tokens is found by a prompt of them.
    after = api.prefill_only(thinker, cold["context_tokens"])
    assert after["cache_hit_kind"] == "exact"
    assert after["finish_key"] == cold["finish_key"]
    assert len(cold["context_tokens"]) == cold["committed_tokens"]


def test_a_budget_ends_the_thinking_and_the_rest_is_reply(thinker: api.Model) -> None:
    grammar = 'root ::= "<think>" [0-9]{6} "</think>" " ok"'  # each digit is a token
    asked = ASKED | {"grammar": grammar}
    free = api.complete(thinker, PROMPT, asked)
    held = api.complete(thinker, PROMPT, asked | {"thinking_budget_tokens": 2})
    assert held["context_tokens"] == free["context_tokens"], "what is drawn is the same"
    assert len(free["thinking"]) == 6
    assert held["thinking"] == free["thinking"][:2]
    assert held["reply"] == free["thinking"][2:] + " ok"
    events = record(
        api.infer(thinker, thinker.tokenize(PROMPT), asked | {"thinking_budget_tokens": 2})
    )
    kinds = [event.kind for event in events]
    assert kinds[:4] == ["thinking_delta", "thinking_delta", "thinking_end", "token"]
    assert kinds.count("thinking_end") == 1


def test_a_reply_that_ends_while_it_thinks_closes_the_block(thinker: api.Model) -> None:
    grammar = 'root ::= "<think>" [a-z ]{20,30}'
    asked = ASKED | {"grammar": grammar}
    events = record(api.infer(thinker, thinker.tokenize(PROMPT), asked))
    kinds = [event.kind for event in events]
    assert kinds.count("thinking_end") == 1
    # What ends generation is of the reply, wherever it comes.
    assert kinds[-2:] == ["token_id", "done"]
    assert kinds[-3] == "thinking_end"


def test_without_the_options_all_is_text(thinker: api.Model) -> None:
    plain = api.complete(thinker, PROMPT, {"grammar": GRAMMAR, "response_tokens": 60})
    assert "thinking" not in plain
    assert "tool_calls" not in plain
    assert plain["context_tokens"][plain["stats"]["prompt_tokens"] :] == plain["generated"]
    if not thinker.endswith("control"):
        assert plain["reply"].startswith("<think>")


def test_a_prompt_that_opened_the_block(thinker: api.Model) -> None:
    tokens = api.apply_chat_template(thinker, {"messages": [{"role": "x", "content": "<think>"}]})
    asked = ASKED | {"grammar": 'root ::= [a-z]{5,9} "</think>" " ok"'}
    # The template's own ending stands behind it: cut it off, but for the line break.
    ending = thinker.tokenize("\nassistant: ")
    assert tokens[-len(ending) :] == ending
    events = record(api.infer(thinker, tokens[: -len(ending)], asked))
    assert events[0].kind == "thinking_delta"
    assert b"".join(e.data for e in events if e.kind == "token") == b" ok"


def test_syntax_is_greedy_within_the_grammar_and_payloads_are_drawn() -> None:
    config = {
        "model_path": thinker_path("plain"),
        "policy": EVERYDAY_POLICY,
        "context_opts": {"n_threads": 1, "n_threads_batch": 1},
        "tool_call_markers": {
            "start": "<tool_call>", "end": "</tool_call>",
            "payload_start": "<arg>", "payload_end": "</arg>",
        },
    }  # fmt: skip
    grammar = (
        'root ::= "<tool_call>" "{" [a-z]{6} "}" "<arg>" [a-z]{12} "</arg>" "</tool_call>" " ok"'
    )
    with api.load_model("caller", config) as model:
        calls = [
            api.complete(
                model,
                PROMPT,
                {"grammar": grammar, "temperature": 40.0, "seed": seed, "response_tokens": 20},
            )["tool_calls"][0]
            for seed in range(6)
        ]
    parts = [call.removesuffix("</arg>").split("<arg>") for call in calls]
    assert len({payload for _, payload in parts}) > 1, "drawn at a high temperature"
    # What led to the syntax may be cut into other tokens; of one cut it is the same.
    assert len({syntax for syntax, _ in parts}) < len({payload for _, payload in parts})
