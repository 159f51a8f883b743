"""What a request hit and why not more: the records behind ``api.explain``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from erllama_py._cache.divergence import Divergence
from erllama_py.types import Atom

if TYPE_CHECKING:
    from erllama_py._engine.request import Request

__all__ = ("Lookup", "explanation")

AROUND = 4
"""Tokens of context shown before the first that differs."""


class Lookup(msgspec.Struct):
    """What a lookup found, and what it did not."""

    tokens: bytes
    """The prompt."""
    kind: str
    via: str
    prefix_len: int
    exactness: str | None
    wanted: str
    """The exactness asked for."""
    tiers: dict[str, int]
    floor: int
    took_ns: int
    divergence: Divergence | None
    """None for an exact hit."""
    others: list[dict[str, Any]]
    gated: int
    """Tokens that were there but quicker to compute."""


def explanation(
    found: Lookup, text_of: Callable[[bytes], str | bytes], request: Request | None
) -> dict[str, Any]:
    """Return what ``api.explain`` answers.

    :param text_of: renders encoded tokens.
    :param request: which has run, or None for one that has not.
    """
    total = len(found.tokens) // 4
    kind, prefix_len = found.kind, found.prefix_len
    if request is not None and request.admitted:
        kind, prefix_len = request.kind, request.prefix_len
    answer: dict[str, Any] = {
        "kind": Atom(kind),
        "prompt_tokens": total,
        "prefix_len": prefix_len,
        "tiers": {Atom(tier): tokens for tier, tokens in found.tiers.items()},
        "exactness": Atom(found.exactness) if found.exactness else None,
        "lookup_ms": found.took_ns / 1e6,
        "restore_ms": request.restore_ns / 1e6 if request else None,
        "nearest": None,
        "other_keys": found.others,
    }
    apart = found.divergence
    if apart is not None and apart.shared < total:
        answer["nearest"] = _nearest(found.tokens, apart, text_of)
    answer["why"] = _why(found, kind, total, answer["nearest"])
    return answer


def _nearest(
    tokens: bytes, apart: Divergence, text_of: Callable[[bytes], str | bytes]
) -> dict[str, Any]:
    at = apart.shared
    cached = apart.cached_token
    return {
        "key": apart.nearest_key,
        "length": apart.nearest_length,
        "shared": at,
        "index": at,
        "prompt_token": apart.prompt_token,
        "prompt_text": text_of(tokens[at * 4 : at * 4 + 4]),
        "cached_token": cached,
        "cached_text": text_of(cached.to_bytes(4, "little")) if cached is not None else None,
        "before": text_of(tokens[max(0, at - AROUND) * 4 : at * 4]),
    }


def _why(found: Lookup, kind: str, total: int, nearest: dict[str, Any] | None) -> str:
    if kind == "exact":
        return f"a row of exactly these {total} tokens is cached"
    if found.kind != "cold" and kind == "cold":
        return "what was found could not be restored, and was computed instead"
    parts = [] if kind == "cold" else [f"{found.prefix_len} of {total} tokens are cached"]
    apart = found.divergence
    if found.gated:
        parts.append(f"{found.gated} more are cached, but quicker to compute than to restore")
    elif apart is not None and apart.shared > found.prefix_len and apart.shared < total:
        parts.append(_unused(found, apart))
    if nearest and nearest["shared"] and nearest["cached_token"] is not None:
        parts.append(
            f"token {nearest['index']} is {nearest['prompt_text']!r}, "
            f"where the nearest cached context has {nearest['cached_text']!r}"
        )
    elif nearest and not nearest["shared"]:
        parts.append("no cached context begins with its first token")
    for other in found.others[:1]:
        names = ", ".join(other["differs"])
        parts.append(f"{other['shared']} tokens are cached under another key: {names} differs")
    return "; ".join(parts) or "nothing of it is cached"


def _unused(found: Lookup, apart: Divergence) -> str:
    if apart.shared < found.floor:
        return f"{apart.shared} tokens are cached, below min_tokens ({found.floor})"
    grades = ", ".join(apart.grades)
    if found.wanted == "bit":
        return f"{apart.shared} tokens are cached, but only part of them bit for bit ({grades})"
    return f"{apart.shared} tokens are cached, some of them computed in another way ({grades})"
