"""A reply with spans on its way out of the engine: matcher, stop sequences, and the count.

Stop sequences are looked for in the text of the reply only, and not across a span: what
was held back for one is let go where a span begins.  ``response_tokens`` counts the tokens
of the reply; those of thinking and tool calls have the room of the context.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from erllama_py._backends.base import Backend
from erllama_py._engine.frames import Load
from erllama_py._engine.spans import Part, SpanMatcher
from erllama_py._engine.stops import StopScanner, cut_at
from erllama_py._templates.markers import thinking_markers, tool_call_markers
from erllama_py.types import Markers

if TYPE_CHECKING:
    from erllama_py._engine.job import Job

__all__ = ("Spanning", "Spoken")

_TAIL_TOKENS = 32
"""Of a prompt: enough for a marker and the line breaks behind it."""


class Spoken:
    """What one request has said."""

    def __init__(
        self, matcher: SpanMatcher, stops: StopScanner, target: int, *, streamed: bool
    ) -> None:
        """Take where a reply goes through.

        :param target: tokens of the reply, at most.
        :param streamed: whether anybody reads its text as it comes.
        """
        self._matcher = matcher
        self._stops = stops
        self._target = target
        self._streamed = streamed
        self._begun = False
        self._text = bytearray()
        self.tokens: array[int] = array("I")
        """Those of the reply."""

    @property
    def syntax(self) -> bool:
        """Whether the next token is of a tool call's syntax."""
        return self._matcher.syntax

    def take(self, token: int, piece: bytes, *, ends: bool) -> list[Part]:
        """Take a token that was drawn; return what to tell of it.

        :param ends: it ends generation.
        """
        self._begun = True
        return self._told(self._matcher.feed(token, piece, ends=ends))

    def close(self) -> list[Part]:
        """Return what remains to be told at the end of a reply; of one without tokens nothing."""
        if not self._begun:
            return []
        parts = self._told(self._matcher.flush())
        self._let_go(parts)
        return parts

    def reply(self, backend: Backend) -> bytes:
        """Return the whole text, up to a stop sequence."""
        text = bytes(self._text)
        if text == b"".join(map(backend.piece, self.tokens)):
            text = backend.detokenize(self.tokens)
        return cut_at(text, self._stops.matched)

    def _told(self, parts: Sequence[Part]) -> list[Part]:
        told: list[Part] = []
        for part in parts:
            if part.kind in ("token", "token_id"):
                self._say(part, told)
            elif self._stops.matched is None:
                if part.kind.endswith("_delta"):
                    self._let_go(told)
                told.append(part)
        return told

    def _say(self, part: Part, told: list[Part]) -> None:
        """Take a part of the reply proper, as long as it may go on."""
        if part.kind == "token_id":
            if len(self.tokens) < self._target:
                self.tokens.append(part.token)
                told.append(part)
        elif self._stops.matched is None and (part.late or len(self.tokens) < self._target):
            self._text += part.data
            self._tell(self._stops.feed(part.data), told)

    def _let_go(self, told: list[Part]) -> None:
        if self._stops.matched is None:
            self._tell(self._stops.flush(), told)

    def _tell(self, text: bytes, told: list[Part]) -> None:
        if text and self._streamed:
            told.append(Part("token", text))


class Spanning:
    """The markers of a loaded model, and matchers for its requests."""

    def __init__(self, backend: Backend, load: Load) -> None:
        """Resolve the markers: what the config names, else what the chat template shows."""
        template = backend.info.chat_template or ""
        self._backend = backend
        self._thinking = load.thinking or thinking_markers(template)
        self._tool_calls = load.tool_calls or tool_call_markers(template)
        self._calls_by_default = load.tool_calls is not None
        self._controls: dict[int, bytes] = {}
        for markers in (self._thinking, self._tool_calls):
            self._note_controls(markers)

    def _note_controls(self, markers: Markers | None) -> None:
        if markers is None or not markers.given:
            return
        for text in (markers.start, markers.end, markers.payload_start, markers.payload_end):
            for token in self._backend.tokenize(text, special=False, parse_special=True):
                if not self._backend.piece(token):
                    self._controls[token] = self._backend.written(token)

    def spoken(self, job: Job) -> Spoken | None:
        """Return what takes a request's tokens; ``None`` where all of them are text."""
        options = job.options
        asked = options.tool_calls
        thinking = self._thinking if options.thinking else None
        calls = self._tool_calls if asked or (asked is None and self._calls_by_default) else None
        if not any(markers and markers.given for markers in (thinking, calls)):
            return None
        matcher = SpanMatcher(
            thinking,
            calls,
            controls=self._controls,
            budget=options.thinking_budget,
            opened=thinking is not None and thinking.given and self._opens(job.todo, thinking),
        )
        return Spoken(matcher, job.stops, job.target, streamed=job.mode == "infer")

    def _opens(self, prompt: array[int], thinking: Markers) -> bool:
        """Whether a prompt ends with the start of thinking, as some templates have it."""
        tail = b"".join(map(self._backend.written, prompt[-_TAIL_TOKENS:]))
        return tail.rstrip().endswith(thinking.start.strip())
