"""``erllama_cache``: counters, eviction and prefix lookup for operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erllama_py.config import policy_settings
from erllama_py.otp import cache_counters, cache_meta_srv
from erllama_py.otp.cache_meta_srv import evict_bytes, gc
from erllama_py.types import Atom

__all__ = ("evict_bytes", "gc", "get_counters", "lookup_longest_prefix", "reset_counters")


def get_counters() -> dict[str, int]:
    """Return the 20 counters by name."""
    return cache_counters.snapshot()


def reset_counters() -> Atom:
    """Set what counts events to zero; the ``bytes_*`` tell what there is.

    :return: ``ok``.
    """
    return cache_counters.reset()


def lookup_longest_prefix(
    key_meta: Mapping[str, Any],
    tokens: list[int],
    stride: int | None = None,
    min_tokens: int | None = None,
) -> tuple[int, tuple[Any, ...]] | Atom:
    """Find the longest row that is a prefix of ``tokens``, at multiples of ``stride``.

    See :func:`erllama_py.otp.cache_meta_srv.lookup_longest_prefix`; stride and floor are
    ``boundary_align_tokens`` and ``min_tokens`` of the environment where left out.
    """
    default = policy_settings()
    return cache_meta_srv.lookup_longest_prefix(
        key_meta,
        tokens,
        default.boundary_align_tokens if stride is None else stride,
        default.min_tokens if min_tokens is None else min_tokens,
    )
