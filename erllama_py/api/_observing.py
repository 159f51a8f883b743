"""Reads that wait for nothing, and cost microseconds."""

from __future__ import annotations

from typing import Any

from erllama_py._engine.registry import core, id_text
from erllama_py.api._asking import ModelArg, Tokens, token_array
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom

__all__ = (
    "cache_snapshot",
    "counters",
    "last_cache_hit",
    "list_cached_prefixes",
    "model_totals",
    "pending_len",
    "phase",
    "queue_depth",
)


def phase(model_id: str | bytes) -> Atom:
    """Return ``idle``, ``prefilling`` or ``generating``; ``idle`` if not loaded."""
    host = core().find(id_text(model_id))
    return Atom(host.phase if host else "idle")


def pending_len(model_id: str | bytes) -> int:
    """Return how many requests are queued behind the running ones; 0 if not loaded."""
    host = core().find(id_text(model_id))
    return host.pending_len if host else 0


def queue_depth(model_id: str | bytes | None = None) -> int:
    """Return the number of admitted streams, of one model or of all."""
    if model_id is None:
        return sum(host.streams for host in core().hosts())
    host = core().find(id_text(model_id))
    return host.streams if host else 0


def last_cache_hit(model_id: str | bytes) -> dict[str, Any] | None:
    """Return ``kind`` and ``prefix_len`` of the latest admission, or ``None``."""
    host = core().find(id_text(model_id))
    return dict(host.last_hit) if host and host.last_hit else None


def model_totals(model: ModelArg) -> dict[str, Any]:
    """Return what a model has done since it was loaded.

    ====================  =============================================================
    key                   value
    ====================  =============================================================
    ``starts``            how often its process has come up: 1, and once for each crash
    ``requests``          those that are over, by ``stop``, ``length``, ``cancelled``,
                          ``error``
    ``hits``              admissions by ``exact``, ``partial``, ``sticky``, ``cold``
    ``prompt_tokens``     of the prompts that were admitted, found and computed ones
    ``restored_tokens``   of these, those found in the cache
    ``generated_tokens``  of running requests, too
    ``restores``          requests that had something restored, and ``restore_s`` seconds
    ``prefill_s``         seconds, and ``generation_s``, of the requests that are over
    ====================  =============================================================

    :raises ModelGone: unknown model.
    """
    host = core().host(model)
    return host.tally.read(host.requests)


def list_cached_prefixes(model_id: str | bytes, tokens: Tokens) -> int:
    """Return how many leading tokens of a prompt the next admission would find cached.

    What follows a reply counts once it is stored, a moment after the reply was sent; an
    admission waits for it.

    :raises ErllamaError: ``model_not_loaded``.
    """
    prompt = token_array(tokens)
    if not prompt:
        return 0
    host = core().find(id_text(model_id))
    if host is None:
        raise ErllamaError("model_not_loaded")
    return host.cache.probe(prompt.tobytes())


def counters() -> dict[str, int]:
    """Return the cache's 20 counters, over all models of this process."""
    counts: dict[str, int] = core().cache.counters.snapshot()
    return counts


def cache_snapshot(limit: int = 100, offset: int = 0) -> dict[str, Any]:
    """Return the cache for display: tiers, block totals, and rows, last used first.

    Not in erllama: its tables were readable; this is what a view needs of ours.
    """
    snapshot: dict[str, Any] = core().cache.snapshot(limit, offset)
    return snapshot
