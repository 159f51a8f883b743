"""Terms as Erlang source, for messages and logs."""

from __future__ import annotations

from typing import Any

__all__ = ("term_to_text",)


def term_to_text(term: Any, *, limit: int = 400) -> str:
    """Render ``term`` as Erlang would print it, cut off at ``limit`` characters."""
    raise NotImplementedError
