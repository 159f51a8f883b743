"""What a chat request begins with, whoever is going to say what.

System text and tools stand in front; how far what they render to is the same for every
conversation is a matter of the template.  So it is found by trying: the same request with
two first messages that have nothing in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ("opening_of", "openings")

_FIRST_WORDS = ("A", "\n\n1")
"""The second begins as what follows a role's name does in most templates: where tokens
would merge across that place, the two differ before it."""


def opening_of(request: Mapping[str, Any]) -> list[Any]:
    """Return what of a chat request stands in front of every conversation.

    That is its system text, its tools, and system messages before any other.  Empty where
    it has none of these.
    """
    system, tools = request.get("system"), request.get("tools")
    leading = _leading(request.get("messages"))
    has_text = isinstance(system, (str, bytes)) and system
    has_tools = isinstance(tools, (list, tuple)) and tools
    return [system, tools, leading] if has_text or has_tools or leading else []


def openings(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return requests that have a request's opening in common, and nothing else."""
    leading = _leading(request.get("messages"))
    return [
        {**request, "messages": [*leading, {"role": "user", "content": words}]}
        for words in _FIRST_WORDS
    ]


def _leading(messages: Any) -> list[Any]:
    leading: list[Any] = []
    for message in messages if isinstance(messages, (list, tuple)) else ():
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("system", b"system"):
            break
        leading.append(message)
    return leading
