"""Thinking and tool calls in a reply: which bytes belong to which.  Pure.

A model marks such a *span* with two texts, say ``<think>`` and ``</think>``.  A marker may
be one token or several, may begin or end in the middle of a token, and half of one may
turn out to be ordinary text.  So bytes are matched, not tokens, by a state for each
request: what may still become a marker is held back, and nothing else is.

At each position the markers that count there are tried in their order, and the leftmost
position wins: how the bytes were cut into tokens changes nothing.  Markers are in no
delta, but for those around a payload, which are part of what a tool call says.

A token whose bytes are all in spans or markers is *hidden*: it has no id message, and does
not count as said.  One byte of text is enough to make it a token of the reply.  Where a
marker is a control token, which has no text of its own, it is matched by its written form,
and shows nothing where it turns out to be no marker.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Mapping

import msgspec

from erllama_py.types import Markers

__all__ = ("Part", "SpanMatcher")


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One thing that a token brought, in the order in which it is to be told.

    ===================  =========================================================
    ``kind``             fields
    ===================  =========================================================
    ``token``            ``data``, text; ``late`` where its token's id was told
    ``token_id``         ``token``, of the reply
    ``thinking_delta``   ``data``, never empty
    ``thinking_id``      ``token``, hidden
    ``thinking_end``     ``data``, the whole block
    ``tool_call_delta``  ``data``, never empty
    ``tool_call_id``     ``token``, hidden
    ``tool_call_end``    ``data``, the whole call
    ===================  =========================================================
    """

    kind: str
    data: bytes = b""
    token: int = 0
    late: bool = False
    signature: bytes | None = None
    """Of a ``thinking_end``, where the engine has one of its own."""


class _Mode(enum.Enum):
    TEXT = ""
    THINKING = "thinking"
    TOOL = "tool_call"
    PAYLOAD = "payload"


class _Token:
    """A token that is not decided to its end."""

    __slots__ = ("end", "number", "span", "thought", "told")

    def __init__(self, number: int, end: int) -> None:
        self.number = number
        self.end = end
        """Position behind its last byte, from the reply's beginning."""
        self.told = False
        """It is of the reply, and its id went out."""
        self.thought = False
        """Bytes of it are in a thinking delta."""
        self.span = ""
        """The kind of the first span that it has a part in."""


class SpanMatcher:
    """Feed a reply's tokens, get back what each brought.

    :param thinking: markers of thinking; ``None``: it passes as text.
    :param tool_calls: markers of tool calls; ``None``: they pass as text.
    :param controls: the written form of tokens without a text that markers are made of.
    :param budget: the most thinking tokens; ``None``: no limit.  The block is closed behind
        the last; what follows is text, but for that block's end marker.
    :param opened: whether the prompt ends with the start of thinking.
    """

    def __init__(
        self,
        thinking: Markers | None,
        tool_calls: Markers | None,
        *,
        controls: Mapping[int, bytes] | None = None,
        budget: int | None = None,
        opened: bool = False,
    ) -> None:
        self._thinking = thinking if thinking and thinking.given else None
        self._tool_calls = tool_calls if tool_calls and tool_calls.given else None
        self._controls = controls or {}
        self._left = budget
        self._overdrawn = False
        """The budget is used up, and the block's own end marker has not come."""
        self._mode = _Mode.THINKING if opened and self._thinking else _Mode.TEXT
        self._block = bytearray()
        """What the open span has said."""
        self._buffer = bytearray()
        """Bytes not decided."""
        self._shown = bytearray()
        """For each of them whether it is text; 0 for those of a control token."""
        self._at = 0
        """Position of the first of them."""
        self._tokens: collections.deque[_Token] = collections.deque()
        self._parts: list[Part] = []

    @property
    def syntax(self) -> bool:
        """Whether the next token is of a tool call's syntax, not of its payload."""
        return self._mode is _Mode.TOOL

    def feed(self, token: int, piece: bytes, *, ends: bool = False) -> list[Part]:
        """Take the next token.

        :param piece: its text.
        :param ends: it ends generation: open spans are closed.
        """
        shown = True
        if not piece and token in self._controls:
            piece, shown = self._controls[token], False
        elif ends and not piece:
            return [*self.flush(), Part("token_id", token=token)]
        self._buffer += piece
        self._shown += bytes((shown,)) * len(piece)
        self._tokens.append(_Token(token, self._at + len(self._buffer)))
        self._scan(final=False)
        return self.flush() if ends else self._taken()

    def flush(self) -> list[Part]:
        """Let go of what is held back and close what is open, at the end of a reply."""
        self._scan(final=True)
        self._close()
        return self._taken()

    def _taken(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    # -- bytes ------------------------------------------------------------------------------

    def _scan(self, *, final: bool) -> None:
        """Decide as many bytes as can be."""
        while True:
            position, marker = self._find(final=final)
            if self._decide(position):
                continue  # the budget was used up on the way: other markers count now
            if not marker:
                return
            self._cross(marker)

    def _markers(self) -> list[bytes]:
        """Return the markers that count now; of two at one position the first wins."""
        thinking, calls, found = self._thinking, self._tool_calls, []
        if self._mode is _Mode.THINKING and thinking:
            found = [thinking.end]
        elif self._mode is _Mode.TOOL and calls:
            found = [calls.end, calls.payload_start if calls.payload_end else b""]
        elif self._mode is _Mode.PAYLOAD and calls:
            found = [calls.payload_end, calls.end]
        elif self._mode is _Mode.TEXT:
            if thinking:
                found = [thinking.end] if self._overdrawn else []
                found += [thinking.start] if self._left != 0 else []
            found += [calls.start] if calls else []
        return [marker for marker in found if marker]

    def _find(self, *, final: bool) -> tuple[int, bytes]:
        """Return where the first marker is, and which; else how far there is none."""
        markers, buffer = self._markers(), bytes(self._buffer)
        firsts = {marker[0] for marker in markers}
        for position, byte in enumerate(buffer):
            if byte not in firsts:
                continue
            for marker in markers:
                there = buffer[position : position + len(marker)]
                if there == marker:
                    return position, marker
                if not final and len(there) < len(marker) and marker.startswith(there):
                    return position, b""
        return len(buffer), b""

    def _cross(self, marker: bytes) -> None:
        """Pass a marker, into the mode behind it."""
        thinking, calls, mode = self._thinking, self._tool_calls, self._mode
        size = len(marker)
        if mode is _Mode.TEXT and thinking and self._overdrawn and marker == thinking.end:
            self._overdrawn = False
            self._decide(size, "thinking", silent=True)
        elif mode is _Mode.TEXT:
            into = _Mode.THINKING if thinking and marker == thinking.start else _Mode.TOOL
            self._mode = into
            self._decide(size, into.value, silent=True)
        elif mode is _Mode.THINKING or (calls and marker == calls.end):
            kind = "thinking" if mode is _Mode.THINKING else "tool_call"
            # Its tokens first: whoever counts has the whole span when it is closed.
            self._decide(size, kind, silent=True)
            self._close()
        else:
            self._mode = _Mode.PAYLOAD if mode is _Mode.TOOL else _Mode.TOOL
            self._decide(size, "tool_call", whole=True)

    def _close(self) -> None:
        """End the open span, if there is one."""
        if self._mode is _Mode.TEXT:
            return
        kind = "thinking" if self._mode is _Mode.THINKING else "tool_call"
        self._parts.append(Part(f"{kind}_end", bytes(self._block)))
        self._block.clear()
        self._mode = _Mode.TEXT

    # -- tokens -----------------------------------------------------------------------------

    def _decide(
        self, count: int, kind: str | None = None, *, silent: bool = False, whole: bool = False
    ) -> bool:
        """Decide the next ``count`` bytes, token by token.

        :param kind: of the span they belong to, empty for text; ``None``: as the mode says.
        :param silent: they are a marker, which nobody is shown.
        :param whole: control tokens count with their written form.
        :return: whether the budget was used up; the bytes behind that are not decided.
        """
        if kind is None:
            kind = "tool_call" if self._mode is _Mode.PAYLOAD else self._mode.value
        while self._tokens:
            token = self._tokens[0]
            size = min(count, token.end - self._at)
            data = bytes(self._buffer[:size])
            if not whole and not all(self._shown[:size]):
                data = b""  # of a control token, which has no other bytes
            del self._buffer[:size], self._shown[:size]
            self._at += size
            count -= size
            decided = token.end == self._at
            if size or decided:
                self._tell(token, b"" if silent else data, kind)
            if not decided:
                break
            self._tokens.popleft()
            if not token.told:
                self._parts.append(Part(f"{token.span}_id", token=token.number))
            if token.thought and self._left == 0 and self._mode is _Mode.THINKING and not silent:
                self._close()
                self._overdrawn = True
                return True
        return False

    def _tell(self, token: _Token, data: bytes, kind: str) -> None:
        if kind:
            token.span = token.span or kind
            if data:
                self._block += data
                self._parts.append(Part(f"{kind}_delta", data))
            if data and kind == "thinking" and not token.thought:
                token.thought = True
                self._left = None if self._left is None else self._left - 1
            return
        if data:
            self._parts.append(Part("token", data, late=token.told))
        if not token.told:
            token.told = True
            self._parts.append(Part("token_id", token=token.number))
