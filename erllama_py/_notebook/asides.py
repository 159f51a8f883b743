"""What a reply says besides its text, and how it is shown: set apart, where it was said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from erllama_py._notebook.harmless import harmless
from erllama_py._notebook.text import clean

__all__ = ("Aside", "as_markdown", "as_plain")

THINKING, TOOL_CALL = "thinking", "tool_call"


class Aside:
    """Thinking, or a tool call.

    :ivar at: how much of the reply's text came before it.
    """

    def __init__(self, kind: str, at: int) -> None:
        self.kind = kind
        self.at = at
        self.text = ""


def as_plain(text: str, asides: Iterable[Aside]) -> str:
    """Return a reply with thinking behind bars; more of it only ever adds to the end."""
    return "".join(_marked(text, asides, plain=True))


def as_markdown(text: str, asides: Iterable[Aside]) -> str:
    """Return a reply with thinking as quotes and tool calls as code."""
    return "".join(_marked(text, asides, plain=False))


def _marked(text: str, asides: Iterable[Aside], *, plain: bool) -> Iterator[str]:
    shown = [(kind, clean(part)) for kind, part in _parts(text, asides) if part.strip()]
    for number, (kind, part) in enumerate(shown):
        # Models leave lines empty around a span; what sets it apart here is one of ours.
        body = part.lstrip("\n") if number or kind else part
        yield "\n\n" if number else ""
        if kind == THINKING:
            bar = "| " if plain else "> "
            quoted = body if plain else harmless(body.rstrip("\n"))
            yield bar + quoted.replace("\n", f"\n{bar}")
        elif kind == TOOL_CALL:
            yield f"tool call: {body}" if plain else harmless(_fenced(body))
        else:
            yield body if plain else harmless(body)


def _fenced(text: str) -> str:
    """Return a text as a block of code, whatever fences it holds."""
    fence = "~" * max(6, 1 + max(map(len, re.findall("~+", text)), default=0))
    return f"{fence} text\n{text}\n{fence}"


def _parts(text: str, asides: Iterable[Aside]) -> Iterator[tuple[str, str]]:
    at = 0
    for aside in asides:
        yield "", text[at : aside.at]
        yield aside.kind, aside.text
        at = aside.at
    yield "", text[at:]
