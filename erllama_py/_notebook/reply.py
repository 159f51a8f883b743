"""What a ``%%erllama`` cell leaves behind: the reply with everything known about it."""

from __future__ import annotations

import json
from typing import Any, Final

from erllama_py._notebook.asides import THINKING, TOOL_CALL, Aside, as_markdown, as_plain
from erllama_py._notebook.harmless import harmless
from erllama_py._notebook.text import clean
from erllama_py.types import Ref

__all__ = ("Reply", "bundle")

_NO_STATS: Final[dict[str, Any]] = {}


class Reply:
    """A reply, whole or interrupted.  Displaying it shows what its cell showed.

    :ivar model: the model's id.
    :ivar text: the reply as generated.
    :ivar tokens: its token ids, without those of thinking and tool calls told apart.
    :ivar thinking: what was told apart from the text as thinking.
    :ivar tool_calls: what was told apart as tool calls.
    :ivar prompt_tokens: how many tokens the prompt had.
    :ivar stats: the map of the stream's ``done`` event; empty where an interrupted
        request had not answered yet.
    :ivar first_token_ms: from sending the prompt to the first token; ``None`` without one.
    :ivar limit: the most tokens it might have.
    :ivar ref: of the request, for ``erllama_py.api.explain``.
    :ivar logprobs: a map for each token, where they were asked for.
    """

    def __init__(self, model: str, fingerprint: str, prompt_tokens: int, limit: int) -> None:
        self.model = model
        self.fingerprint = fingerprint
        self.prompt_tokens = prompt_tokens
        self.limit = limit
        self.format = "markdown"
        self.text = ""
        self.tokens: list[int] = []
        self.asides: list[Aside] = []
        self.shows_thinking = True
        self.stats = _NO_STATS
        self.first_token_ms: float | None = None
        self.interrupted = False
        self.ref: Ref | None = None
        self.logprobs: list[dict[str, Any]] = []

    def aside(self, kind: str, *, fresh: bool) -> Aside:
        """Return what is being said besides the text; ``fresh``: it has just begun."""
        if fresh:
            self.asides.append(Aside(kind, len(self.text)))
        return self.asides[-1]

    @property
    def thinking(self) -> str:
        """All thinking, block after block."""
        return "".join(aside.text for aside in self.asides if aside.kind == THINKING)

    @property
    def tool_calls(self) -> list[str]:
        """The text of each tool call."""
        return [aside.text for aside in self.asides if aside.kind == TOOL_CALL]

    @property
    def shown_asides(self) -> list[Aside]:
        """What is shown besides the text."""
        return [one for one in self.asides if self.shows_thinking or one.kind != THINKING]

    @property
    def shown(self) -> str:
        """Everything that is shown, as plain text; it only ever grows at its end."""
        return as_plain(self.text, self.shown_asides) if self.shown_asides else self.text

    @property
    def finish_reason(self) -> str:
        """``stop``, ``length``, ``cancelled``, …; empty while that is not known."""
        return str(self.stats.get("finish_reason", "cancelled" if self.interrupted else ""))

    @property
    def finish_key(self) -> bytes | None:
        """The key of the saved row over prompt and reply, for ``parent_key``."""
        key: bytes | None = self.stats.get("finish_key")
        return key

    @property
    def hit(self) -> str:
        """``cold``, ``exact`` or another kind of hit; empty while that is not known."""
        return str(self.stats.get("cache_hit_kind", ""))

    @property
    def prefix_len(self) -> int:
        """How many tokens of the prompt came from the cache."""
        return int(self.stats.get("prefix_len", 0))

    @property
    def metadata(self) -> dict[str, Any]:
        """What is kept with the output in the notebook file: nothing that times vary."""
        return {
            "erllama": {
                "model": self.model,
                "fingerprint": self.fingerprint,
                "finish_reason": self.finish_reason,
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": len(self.tokens),
                "cache_hit_kind": self.hit,
                "prefix_len": self.prefix_len,
            }
        }

    @property
    def summary(self) -> str:
        """One line: what the cache gave, how fast it went, why it ended."""
        parts = [_hit_words(self)]
        if self.first_token_ms is not None:
            parts.append(f"first token after {_milliseconds(self.first_token_ms)}")
        count = len(self.tokens)
        if not self.interrupted:
            parts.append(_count(count, "token") + _rate(self))
        if thought := self.stats.get("thinking_tokens"):
            parts.append(f"thought for {_count(thought, 'token')}")
        parts.append(_end_words(self))
        return " · ".join(part for part in parts if part)

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else f"{self.text[:57]}..."
        return f"<Reply of {self.model}, {_count(len(self.tokens), 'token')}: {text!r}>"

    def __str__(self) -> str:
        return self.text

    def _repr_mimebundle_(
        self,
        include: object = None,  # noqa: ARG002 - IPython's protocol; it filters afterwards
        exclude: object = None,  # noqa: ARG002
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.bundle(self.format), self.metadata

    def bundle(self, form: str) -> dict[str, Any]:
        """Return what is shown in the types that front ends choose from.

        JSON is the reply's text alone: what else was said would make it none.
        """
        asides = self.shown_asides
        if not asides or form == "json":
            return bundle(self.text, form)
        shown = {"text/plain": as_plain(self.text, asides)}
        if form == "markdown":
            shown["text/markdown"] = as_markdown(self.text, asides)
        return shown


def bundle(text: str, form: str) -> dict[str, Any]:
    """Return a reply's text in the types that front ends choose from."""
    shown = clean(text)
    match form:
        case "markdown":
            return {"text/plain": shown, "text/markdown": harmless(shown)}
        case "json":
            value = _json_in(text)
            # Front ends draw a JSON tree of maps and lists only.
            if isinstance(value, (dict, list)):
                pretty = json.dumps(value, indent=2, ensure_ascii=False)
                return {"text/plain": pretty, "application/json": value}
    return {"text/plain": shown}


def _json_in(text: str) -> Any:
    """Return the JSON value a text is, perhaps inside a code fence."""
    inner = text.strip()
    if inner.startswith("```") and inner.endswith("```"):
        inner = inner[3:-3].removeprefix("json")
    try:
        return json.loads(inner)
    except ValueError:
        return None


def _hit_words(reply: Reply) -> str:
    prompt = _count(reply.prompt_tokens, "prompt token")
    if not reply.hit:
        return prompt
    if reply.prefix_len == 0:
        return f"cold: {prompt} computed"
    found = "all" if reply.prefix_len >= reply.prompt_tokens else f"{reply.prefix_len} of"
    place = "context" if reply.hit == "sticky" else "cache"
    return f"warm ({reply.hit}): {found} {prompt} from the {place}"


def _end_words(reply: Reply) -> str:
    count = len(reply.tokens)
    if reply.interrupted:
        return f"interrupted after {_count(count, 'token')}"
    if "stop_sequence" in reply.stats:
        return f"stop at {reply.stats['stop_sequence']!r}"
    if reply.finish_reason != "length":
        return reply.finish_reason
    if count >= reply.limit:
        return f"stopped at the limit of {_count(reply.limit, 'token')} (--max)"
    return "length: the context is full"


def _rate(reply: Reply) -> str:
    # The first token is the prompt's work: what is timed here is what follows it.
    seconds = reply.stats.get("generation_ms", 0) / 1000
    return f" at {(len(reply.tokens) - 1) / seconds:.0f}/s" if seconds and reply.tokens[1:] else ""


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
