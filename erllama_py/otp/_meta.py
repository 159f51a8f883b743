"""The build map of a saved row, with what the original fills in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erllama_py._cache.kvc import Meta
from erllama_py._engine.exchange import provenance

__all__ = ("meta_of",)


def meta_of(given: Mapping[str, Any]) -> Meta:
    """Return the facts of a build map; times, host and version are ours where left out.

    :raises ErllamaError: ``{missing_key, K}``.
    :raises BadCall: a value is of the wrong kind.
    """
    return Meta.from_map({**provenance(), **given})
