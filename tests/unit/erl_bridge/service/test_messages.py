"""Events of a stream as the messages its caller gets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from erl_bridge.etf import Atom, Pid, Reference, decode
from erl_bridge.service.convert import Converter
from erl_bridge.service.streams import _Stream
from erllama_py import types
from erllama_py.types import Event

CALLER = Pid(Atom("peer@nowhere.invalid"), 9, 0, 1)
REF = Reference(Atom("llm@nowhere.invalid"), 1, (1, 2, 3))


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"kind": "token", "data": b"\xe4"}, (Atom("erllama_token"), REF, b"\xe4")),
        ({"kind": "token_id", "token_id": 70000}, (Atom("erllama_token_id"), REF, 70000)),
        (
            {"kind": "thinking_delta", "data": b"hm"},
            (Atom("erllama_token"), REF, (Atom("thinking_delta"), b"hm")),
        ),
        (
            {"kind": "thinking_end", "signature": b"sig"},
            (Atom("erllama_thinking_end"), REF, b"sig"),
        ),
        (
            {"kind": "tool_call_delta", "data": b"{"},
            (Atom("erllama_token"), REF, (Atom("tool_call_delta"), b"{")),
        ),
        (
            {"kind": "tool_call_end", "data": b"{}"},
            (Atom("erllama_tool_call_end"), REF, b"{}"),
        ),
        (
            {"kind": "done", "stats": {"prompt_tokens": 3, "prefix_len": 2}},
            (Atom("erllama_done"), REF, {Atom("prompt_tokens"): 3}),
        ),
        (
            {"kind": "error", "reason": (types.Atom("unloaded"), types.Atom("shutdown"))},
            (Atom("erllama_error"), REF, (Atom("unloaded"), Atom("shutdown"))),
        ),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_each_event_is_one_message(event: dict[str, Any], message: Any) -> None:
    node: Any = SimpleNamespace(make_ref=lambda: REF)
    converter = Converter(lambda _: None, lambda _: None)
    stream = _Stream(None, node, converter, CALLER)  # type: ignore[arg-type]  # it has no owner
    encoded = stream._message(Event(ref=types.Ref(1), **event))
    assert decode(b"\x83" + encoded.removeprefix(b"\x83")) == message
