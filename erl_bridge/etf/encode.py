"""Terms to bytes."""

from __future__ import annotations

from typing import Any

__all__ = ("binary_term", "encode", "encode_body", "tuple_head")


def encode(term: Any, *, version: bool = True) -> bytes:
    """Encode one term."""
    raise NotImplementedError


def encode_body(term: Any) -> bytes:
    """Encode one term without the version byte."""
    raise NotImplementedError


def tuple_head(arity: int, *items: Any, version: bool = True) -> bytes:
    """Encode the start of a tuple and its first items; the rest is appended by the caller."""
    raise NotImplementedError


def binary_term(data: Any) -> bytes:
    """Encode one binary without the version byte."""
    raise NotImplementedError
