"""Thinking and tool calls through the façade, on the stub; and the matcher's single cases."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest

from erllama_py import api
from erllama_py._engine.heard import Heard
from erllama_py._engine.spans import Part, SpanMatcher
from erllama_py._engine.spoken import Spoken
from erllama_py._engine.stops import StopScanner
from erllama_py.errors import ErllamaError
from erllama_py.testing import record, stub_model
from erllama_py.types import Markers, Ref

THINK = Markers(b"<think>", b"</think>")
SIGNATURE = "4e3eaa89b237fca14269a3636403dd53a6b2067c36825f5497dd40af083833de"
"""The original's, of sequence 0."""
THINKING = {"thinking": "enabled"}


def kinds(events: Sequence[Any]) -> list[str]:
    return [event.kind for event in events]


def test_thinking_comes_first_and_is_closed_before_the_reply() -> None:
    with stub_model(thinking_capable=True) as model:
        events = record(api.infer(model, [1, 2, 3], {"response_tokens": 2, **THINKING}))
    assert kinds(events) == [
        *("thinking_delta", "thinking_delta", "thinking_end"),
        *("token", "token_id", "token", "token_id", "done"),
    ]
    assert [event.text for event in events[:2]] == ["1", "2"]
    assert events[2].signature.hex() == SIGNATURE
    assert events[-1].stats["completion_tokens"] == 2
    assert events[-1].stats["thinking_tokens"] == 3
    assert events[-1].stats["committed_tokens"] == 8, "all of it is in the KV"


def test_thinking_and_a_tool_call_with_a_payload() -> None:
    with stub_model(thinking_capable=True, tool_call_payload_capable=True) as model:
        events = record(api.infer(model, [1, 2, 3], {"response_tokens": 2, **THINKING}))
    assert kinds(events) == [
        *("thinking_delta", "thinking_delta", "thinking_end"),
        *(["tool_call_delta"] * 4),
        *("tool_call_end", "token", "token_id", "token", "token_id", "done"),
    ]
    deltas = [event.data for event in events if event.kind == "tool_call_delta"]
    assert deltas == [b"3", b"<arg>", b"4", b"</arg>"]
    assert events[7].data == b"".join(deltas)


def test_tool_calls_need_no_option_where_the_config_has_them_and_can_be_left_in() -> None:
    with stub_model(tool_call_capable=True) as model:
        told = api.complete(model, "a b", {"response_tokens": 1})
        left = api.complete(model, "a b", {"response_tokens": 9, "tool_calls": "disabled"})
    assert told["tool_calls"] == ["34"]
    assert len(told["generated"]) == 1
    assert "tool_calls" not in left
    assert left["reply"].startswith("<tool_call>3 4 </tool_call> ")
    assert left["context_tokens"][2:] == left["generated"]


def test_a_budget_closes_the_block_and_the_rest_is_reply() -> None:
    asked = {"response_tokens": 3, "thinking_budget_tokens": 1, **THINKING}
    with stub_model(thinking_capable=True) as model:
        events = record(api.infer(model, [1, 2, 3], asked))
    assert kinds(events) == [
        *("thinking_delta", "thinking_end"),
        *(["token", "token_id"] * 3),
        "done",
    ]
    assert events[2].data == b"2", "the second thinking token is one of the reply"
    assert events[-1].stats["completion_tokens"] == 3


@pytest.mark.parametrize("budget", [0, -1, "1", True, None])
def test_what_is_no_budget_is_none(budget: Any) -> None:
    asked = {"response_tokens": 1, "thinking_budget_tokens": budget, **THINKING}
    with stub_model(thinking_capable=True) as model:
        assert kinds(record(api.infer(model, [1], asked))).count("thinking_delta") == 2


@pytest.mark.parametrize("thinking", [None, "disabled", True, b"enabled"])
def test_without_the_option_thinking_is_text(thinking: Any) -> None:
    with stub_model(thinking_capable=True) as model:
        asked = {"response_tokens": 4, "thinking": thinking}
        result = api.complete(model, "a b", asked)
    assert result["reply"].startswith("<think>1 2 </think> ")
    assert len(result["generated"]) == result["stats"]["completion_tokens"] == 4
    assert "thinking" not in result
    assert "thinking_tokens" not in result["stats"]


def test_a_completion_has_the_reply_alone_and_the_rest_beside_it() -> None:
    with stub_model(thinking_capable=True, tool_call_capable=True) as model:
        result = api.complete(model, "a b", {"response_tokens": 2, **THINKING})
    number = str(result["generated"][0])
    assert result["reply"] == f"{number} {number}"
    assert (result["thinking"], result["tool_calls"]) == ("12", ["34"])
    assert result["context_tokens"][-2:] == result["generated"]
    assert len(result["context_tokens"]) == result["committed_tokens"] == 2 + 3 + 3 + 2


def test_a_repeat_is_exact_and_its_key_is_that_of_the_context() -> None:
    prompt = " ".join(f"w{n}" for n in range(40))
    with stub_model(thinking_capable=True) as model:
        first = api.complete(model, prompt, {"response_tokens": 0})
        cold = api.complete(model, prompt, {"response_tokens": 4, **THINKING})
        warm = api.complete(model, prompt, {"response_tokens": 4, **THINKING})
        after = api.prefill_only(model, cold["context_tokens"])
    assert first["cache_hit_kind"] == "cold"
    assert warm["cache_hit_kind"] == "exact"
    assert warm["thinking"] == cold["thinking"] == "12"
    assert after["cache_hit_kind"] == "exact"
    assert after["finish_key"] == cold["finish_key"] is not None


def test_a_session_goes_on_behind_its_thinking() -> None:
    asked = {"response_tokens": 2, "session_id": "talk", **THINKING}
    with stub_model(thinking_capable=True, tool_call_capable=True) as model:
        first = api.complete(model, "a b c", asked)
        kept = first["context_tokens"]
        events = record(api.infer(model, [*kept, 7, 8], asked))
    assert len(kept) == 3 + 3 + 3 + 2
    stats = events[-1].stats
    assert (stats["cache_hit_kind"], stats["prefix_len"]) == ("sticky", len(kept))
    assert kinds(events).count("thinking_end") == 1


def test_a_reply_that_ends_within_a_span_closes_it_once() -> None:
    with stub_model(thinking_capable=True, context_opts={"n_ctx": 8}) as model:
        events = record(api.infer(model, range(1, 7), {"response_tokens": 5, **THINKING}))
    assert kinds(events) == ["thinking_delta", "thinking_delta", "thinking_end", "done"]
    assert events[-1].stats["finish_reason"] == "length"
    assert events[-1].stats["completion_tokens"] == 0


def test_a_stream_cancelled_while_it_thinks_closes_the_block() -> None:
    with stub_model(thinking_capable=True, stub_opts={"step_delay_ms": 30}) as model:
        stream = api.infer(model, [1, 2], {"response_tokens": 50, **THINKING})
        assert isinstance(stream, api.Stream)
        assert next(stream).kind == "thinking_delta"
        stream.cancel()
        rest = record(stream)
    assert kinds(rest).count("thinking_end") == 1
    assert rest[-1].stats["cancelled"] is True


def test_nothing_generated_closes_nothing() -> None:
    opened = SpanMatcher(THINK, None, opened=True)
    assert Spoken(opened, StopScanner(()), 9, streamed=True).close() == []


def test_drafts_are_of_all_tokens() -> None:
    with stub_model("drafter", tool_call_capable=True):
        assert len(api.draft_tokens("drafter", [1, 2], {"max": 4})) == 4


def test_other_markers_and_none() -> None:
    other = {"start": "[[", "end": b"]]"}
    with stub_model(thinking_capable=True, thinking_markers=other) as model:
        assert api.complete(model, "a", {"response_tokens": 1, **THINKING})["thinking"] == "12"
    with stub_model(thinking_markers={"start": "", "end": "x"}) as model:
        assert "thinking" not in api.complete(model, "a", {"response_tokens": 1, **THINKING})


# -- signatures -------------------------------------------------------------------------------


def end(data: bytes, key: bytes, own: bytes | None = None) -> bytes:
    [event] = Heard(Ref(1), key).events([Part("thinking_end", data, signature=own)])
    return event.signature


def test_a_signature_is_an_hmac_of_the_block() -> None:
    # RFC 4231, test case 2.
    signature = end(b"what do ya want for nothing?", b"Jefe")
    assert signature.hex() == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert end(b"anything", b"") == b""
    assert end(b"anything", b"key", hashlib.sha256(b"own").digest()) != end(b"anything", b"key")


def test_a_key_that_cannot_be_is_an_error_of_who_asks_for_thinking(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "erllama").mkdir()
    (tmp_path / "erllama" / "config.toml").write_text("thinking_signing_key = 5\n")
    with stub_model() as model:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        with pytest.raises(ErllamaError, match="thinking_signing_key") as refused:
            api.complete(model, "a", {"response_tokens": 1, **THINKING})
        assert refused.value.reason[:2] == ("invalid", "thinking_signing_key")
        assert api.complete(model, "a", {"response_tokens": 1})["reply"]


# -- stop sequences, and the count ------------------------------------------------------------


def said(pieces: Sequence[bytes], stops: Sequence[bytes] = (), target: int = 99) -> list[Any]:
    """Take pieces until a stop or the target; return what was told, and the tokens."""
    scanner = StopScanner(stops)
    spoken = Spoken(SpanMatcher(THINK, None), scanner, target, streamed=True)
    parts: list[Part] = []
    for token, piece in enumerate(pieces):
        parts += spoken.take(token, piece, ends=False)
        if scanner.matched or len(spoken.tokens) >= target:
            break
    if scanner.matched is None:
        parts += spoken.close()
    shown = [(p.kind, p.data) for p in parts if p.data or p.kind.endswith("_end")]
    return [shown, spoken.tokens.tolist()]


def test_a_stop_is_looked_for_in_the_reply_only_and_not_across_a_span() -> None:
    shown, tokens = said([b"E<think>", b"END", b"</think>N", b"D.END."], [b"END"])
    kinds = [kind for kind, _ in shown]
    assert kinds[:3] == ["token", "thinking_delta", "thinking_end"]
    assert shown[0][1] == b"E", "let go where the span begins"
    assert b"".join(data for kind, data in shown[3:]) == b"ND."
    assert tokens == [0, 2, 3], "the token that completes a stop has its id"


def test_half_a_marker_at_the_end_is_text() -> None:
    assert said([b"a", b"<thi"]) == [[("token", b"a"), ("token", b"<thi")], [0, 1]]


def test_tokens_beyond_the_target_are_not_said() -> None:
    # The second may begin a marker, so a third is drawn; then there is one too many.
    shown, tokens = said([b"a", b"<", b"b"], target=2)
    assert shown == [("token", b"a"), ("token", b"<")]
    assert tokens == [0, 1]


def test_the_end_of_a_counted_token_is_said_with_it() -> None:
    shown, tokens = said([b"a<"], target=1)
    assert b"".join(data for _, data in shown) == b"a<"
    assert tokens == [0]


# -- control tokens, and what a prompt opened ---------------------------------------------------


def fed(matcher: SpanMatcher, *tokens: tuple[int, bytes]) -> list[Part]:
    return [p for number, piece in tokens for p in matcher.feed(number, piece)] + matcher.flush()


def test_a_control_token_is_a_marker_by_its_written_form() -> None:
    controls = {7: b"<think>", 8: b"</think>"}
    parts = fed(SpanMatcher(THINK, None, controls=controls), (7, b""), (1, b"hm"), (8, b""))
    assert [(p.kind, p.data, p.token) for p in parts] == [
        ("thinking_id", b"", 7),
        ("thinking_delta", b"hm", 0),
        ("thinking_id", b"", 1),
        ("thinking_id", b"", 8),
        ("thinking_end", b"hm", 0),
    ]


def test_a_control_token_that_is_no_marker_shows_nothing() -> None:
    controls = {7: b"<think>", 8: b"</think>"}
    parts = fed(SpanMatcher(THINK, None, controls=controls), (1, b"a"), (8, b""), (2, b"b"))
    assert b"".join(p.data for p in parts) == b"ab"
    assert [p.token for p in parts if p.kind == "token_id"] == [1, 8, 2]


def test_a_prompt_may_have_begun_to_think() -> None:
    parts = fed(SpanMatcher(THINK, None, opened=True), (1, b"hm</think>"), (2, b"yes"))
    assert [(p.kind, p.data) for p in parts if p.data] == [
        ("thinking_delta", b"hm"), ("thinking_end", b"hm"), ("token", b"yes"),
    ]  # fmt: skip


def test_the_end_of_generation_closes_a_span_and_is_of_the_reply() -> None:
    matcher = SpanMatcher(THINK, None)
    parts = matcher.feed(1, b"<think>hm") + matcher.feed(2, b"", ends=True)
    assert [p.kind for p in parts] == ["thinking_delta", "thinking_id", "thinking_end", "token_id"]
    assert matcher.flush() == []
