"""What the core hears of a reply with spans: events for a stream, keys for a result."""

from __future__ import annotations

import hashlib
import hmac
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from erllama_py._engine.spans import Part
from erllama_py.types import Event, Ref, text_of

__all__ = ("Heard",)


class Heard:
    """One request's reply, as far as it was told.

    :param signing_key: what thinking is signed with; empty: it has no signature.
    """

    def __init__(self, ref: Ref, signing_key: bytes) -> None:
        self._ref = ref
        self._signing_key = signing_key
        self.tokens: array[int] = array("I")
        """Those of the reply."""
        self._thinking: list[bytes] = []
        self._tool_calls: list[bytes] = []
        self._hidden = {"thinking_id": 0, "tool_call_id": 0}

    def events(self, parts: Sequence[Part]) -> Iterator[Event]:
        """Take what a token brought; yield the events that a stream has for it."""
        for part in parts:
            match part.kind:
                case "token" | "thinking_delta" | "tool_call_delta":
                    yield Event(part.kind, self._ref, data=part.data)
                case "token_id":
                    self.tokens.append(part.token)
                    yield Event("token_id", self._ref, token_id=part.token)
                case "thinking_end":
                    self._thinking.append(part.data)
                    yield Event("thinking_end", self._ref, signature=self._signature(part))
                case "tool_call_end":
                    self._tool_calls.append(part.data)
                    yield Event("tool_call_end", self._ref, data=part.data)
                case _:
                    self._hidden[part.kind] += 1

    def _signature(self, part: Part) -> bytes:
        if part.signature is not None:
            return part.signature
        if not self._signing_key:
            return b""
        return hmac.digest(self._signing_key, part.data, hashlib.sha256)

    @property
    def counts(self) -> dict[str, int]:
        """Tokens that are not of the reply, as stats have them."""
        return {
            "thinking_tokens": self._hidden["thinking_id"],
            "tool_call_tokens": self._hidden["tool_call_id"],
        }

    @property
    def spans(self) -> dict[str, Any]:
        """Thinking and tool calls, as a result has them."""
        found: dict[str, Any] = {}
        if self._thinking:
            found["thinking"] = text_of(b"".join(self._thinking))
        if self._tool_calls:
            found["tool_calls"] = [text_of(call) for call in self._tool_calls]
        return found
