"""The build map of a saved row, with what the original fills in."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Mapping
from typing import Any

from erllama_py._cache.kvc import Meta

__all__ = ("meta_of",)


def meta_of(given: Mapping[str, Any]) -> Meta:
    """Return the facts of a build map; times, host and version are ours where left out.

    :raises ErllamaError: ``{missing_key, K}``.
    :raises BadCall: a value is of the wrong kind.
    """
    now = int(time.time())
    ours = {
        "creation_time": now,
        "last_used_time": now,
        "hostname": (platform.node() or "unknown").encode(),
        "erllama_version": _version().encode(),
    }
    return Meta.from_map({**ours, **given})


def _version() -> str:
    try:
        return importlib.metadata.version("erllama-py")
    except importlib.metadata.PackageNotFoundError:  # run from its source, not installed
        return "unknown"
