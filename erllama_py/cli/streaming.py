"""Stream a reply to standard output, and keep what there is of it however it ends."""

from __future__ import annotations

import codecs
import contextlib
import time
from collections.abc import Callable
from typing import Any

import click

from erllama_py import api
from erllama_py.cli.progress import Progress

__all__ = ("Reply", "Thinking", "chat_tokens", "stream", "thinking_request")

_POLL_S = 0.1
_FIRST = ("token", "token_id", "thinking_delta")
_SETTLE_S = 0.5
"""How long an interrupted request may take to say what it came to."""


class Reply:
    """A reply, whole or interrupted."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.text = ""
        self.thinking = ""
        """What was told apart from the text."""
        self.count = 0
        """Tokens generated."""
        self.logprobs: list[dict[str, Any]] | None = None
        """Of each token, where they were asked for."""
        self.first_ms: float | None = None
        """From sending the prompt to the first token."""
        self.stats: dict[str, Any] = {}
        """Of the ``done`` event; empty where an interrupted request had not answered."""
        self.interrupted = False

    @property
    def hit(self) -> str:
        """``exact``, ``partial`` or ``cold``; empty while that is not known."""
        return str(self.stats.get("cache_hit_kind", ""))

    @property
    def summary(self) -> str:
        """One line: what the cache gave, how fast it went, why it ended."""
        parts = [self._hit_words()]
        if self.first_ms is not None:
            parts.append(f"first token after {self.first_ms:.0f} ms")
        seconds = self.stats.get("generation_ms", 0) / 1000
        rate = f" at {(self.count - 1) / seconds:.0f}/s" if seconds and self.count > 1 else ""
        parts.append(f"{self.count} tokens{rate}")
        if thought := self.stats.get("thinking_tokens"):
            parts.append(f"thought for {thought}")
        parts.append("interrupted" if self.interrupted else self.stats.get("finish_reason", ""))
        return " · ".join(part for part in parts if part)

    @property
    def facts(self) -> dict[str, Any]:
        """What a script wants of it."""
        facts = {
            "reply": self.text,
            "thinking": self.thinking or None,
            "cache_hit_kind": self.hit,
            "prompt_tokens": self.prompt_tokens,
            "prefix_len": self.stats.get("prefix_len", 0),
            "tier": self.stats.get("tier"),
            "tokens": self.count,
            "first_token_ms": None if self.first_ms is None else round(self.first_ms, 1),
            "finish_reason": "cancelled" if self.interrupted else self.stats.get("finish_reason"),
            "finish_key": self.stats.get("finish_key"),
            "interrupted": self.interrupted,
            **({} if self.logprobs is None else {"logprobs": self.logprobs}),
        }
        if "speculation" in self.stats:
            facts["speculation"] = self.stats["speculation"]
        return facts

    def _hit_words(self) -> str:
        found = self.stats.get("prefix_len", 0)
        if not self.hit or not found:
            return f"{self.hit or 'prompt'}: {self.prompt_tokens} prompt tokens"
        tier = self.stats.get("tier")
        where = "" if tier is None else f" from {tier}"
        return f"{self.hit}: {found} of {self.prompt_tokens} prompt tokens{where}"


def chat_tokens(
    model: str,
    messages: list[dict[str, str]],
    system: str | None,
    template: str | None = None,
) -> list[int]:
    """Return a chat's tokens, as a template has them: the model's where none is given.

    :raises ErllamaError: ``no_template``, ``template_failed``.
    """
    request: dict[str, Any] = {"messages": messages}
    if template is not None:
        request["chat_template"] = template
    if system:
        request["system"] = system
    return api.apply_chat_template(model, request)


def thinking_request(mode: str | None, budget: int | None) -> dict[str, Any]:
    """Return the request's options of ``--thinking`` and ``--thinking-budget``."""
    if mode == "off":
        return {}
    return {"thinking": "enabled", "thinking_budget_tokens": budget}


class Thinking:
    """Shows thinking on standard error, dimmed, and what comes after it apart from it."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._open = False

    def say(self, text: str) -> None:
        """Show more of it."""
        if self._shown:
            self._open = True
            click.secho(text, dim=True, nl=False, err=True)

    def end(self) -> None:
        """The block is over."""
        if self._open:
            self._open = False
            click.echo("\n", err=True)


def stream(
    model: str,
    tokens: list[int],
    options: dict[str, Any],
    say: Callable[[str], None],
    thinking: Thinking | None = None,
) -> Reply:
    """Generate, handing each piece of text to ``say``; return the reply.

    :param thinking: shows what is told apart as that, where it was asked for.
    An interrupt ends the reply and is not raised: ``interrupted`` tells.

    :raises ErllamaError: the request was refused, or the model ended.
    """
    reply = Reply(len(tokens))
    given = {key: value for key, value in options.items() if value is not None}
    if "logprobs" in given:
        reply.logprobs = []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    thought = codecs.getincrementaldecoder("utf-8")("replace")
    thinking = thinking or Thinking(shown=False)
    started = time.monotonic()

    def waiting() -> str:
        return f"{api.phase(model)}: {len(tokens)} tokens of prompt"

    def take(event: Any) -> None:
        text = ""
        if event.kind in _FIRST and reply.first_ms is None:
            progress.end()
            reply.first_ms = (time.monotonic() - started) * 1000
        match event.kind:
            case "token":
                text = decoder.decode(event.data)
            case "token_id":
                reply.count += 1
            case "thinking_delta" | "thinking_end":
                part = thought.decode(event.data, final=event.kind == "thinking_end")
                reply.thinking += part
                thinking.say(part)
                if event.kind == "thinking_end":
                    thinking.end()
            case "logprobs" if reply.logprobs is not None:
                reply.logprobs.append(event.logprobs)
            case "done" | "error":
                text = decoder.decode(b"", final=True)
                reply.stats = event.stats or {}
        if text:
            reply.text += text
            say(text)

    with Progress(waiting) as progress, api.infer(model, tokens, given) as running:
        try:
            with contextlib.suppress(StopIteration):
                while True:
                    if event := running.get(_POLL_S):
                        take(event)
        except KeyboardInterrupt:
            reply.interrupted = True
            running.cancel()
            deadline = time.monotonic() + _SETTLE_S
            with contextlib.suppress(StopIteration):
                while (left := deadline - time.monotonic()) > 0:
                    if event := running.get(left):
                        take(event)
        if running.error and not reply.interrupted:
            raise running.error
    return reply
