"""The option ``speculate``, of requests and of loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from erllama_py._backends.base import GUESSED_TOKENS
from erllama_py.config._values import bytes_of, invalid, is_text, options_of

__all__ = ("MAX_DRAFT", "Speculate", "parse_speculate")

MAX_DRAFT: Final = GUESSED_TOKENS - 1
"""Most tokens of a draft: with the one before it, what a step has logits for."""

_LOOKUP_TOKENS: Final = 3

_DRAFT_TOKENS: Final = 8
"""``max`` of a draft model, whose tokens cost more than those of a lookup."""


class Speculate(msgspec.Struct, frozen=True):
    """Where a request's drafts come from: from one of two places."""

    most: int
    """Tokens of a draft at most."""
    lookup: int = 0
    """From the context itself, where so many tokens are the same; 0: not."""
    draft: str = ""
    """From the model of this id."""


def parse_speculate(options: Mapping[str, Any], default: Speculate | None) -> Speculate | None:
    """Check ``speculate``: ``lookup``, ``#{lookup => N}``, ``#{draft => Id}``, or off."""
    if "speculate" not in options:
        return default
    value = options["speculate"]
    if isinstance(value, (str, bytes, bool)):
        word = value.decode(errors="replace") if isinstance(value, bytes) else str(value).lower()
        if word in ("false", "none"):
            return None
        if word in ("lookup", "true"):
            return Speculate(MAX_DRAFT, lookup=_LOOKUP_TOKENS)
    expected = "lookup, false, or a map with lookup or draft, and max"
    given = options_of(value, "speculate") if isinstance(value, Mapping) else {}
    if set(given) not in ({"lookup"}, {"lookup", "max"}, {"draft"}, {"draft", "max"}):
        raise invalid("speculate", value, expected)
    most = given.get("max", MAX_DRAFT if "lookup" in given else _DRAFT_TOKENS)
    if type(most) is not int or not 1 <= most <= MAX_DRAFT:
        raise invalid("speculate", value, f"a max from 1 to {MAX_DRAFT}")
    if "draft" in given:
        name = given["draft"]
        if not is_text(name) or not name:
            raise invalid("speculate", value, "the id of a loaded model as draft")
        return Speculate(most, draft=bytes_of(name).decode(errors="surrogateescape"))
    size = _LOOKUP_TOKENS if given["lookup"] is True else given["lookup"]
    if type(size) is not int or not 1 <= size <= MAX_DRAFT:
        raise invalid("speculate", value, f"tokens to look up, from 1 to {MAX_DRAFT}")
    return Speculate(most, lookup=size)
