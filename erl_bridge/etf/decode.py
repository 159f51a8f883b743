"""Bytes to terms."""

from __future__ import annotations

from typing import Any

from erl_bridge.etf.limits import DEFAULT_LIMITS, Limits

__all__ = ("decode", "decode_prefix")


def decode(data: Any, *, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Decode exactly one term, version byte first."""
    raise NotImplementedError


def decode_prefix(data: Any, offset: int = 0, *, limits: Limits = DEFAULT_LIMITS) -> tuple[Any, int]:
    """Decode one term at ``offset`` and return it with the offset behind it."""
    raise NotImplementedError
