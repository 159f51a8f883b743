"""What rendering one chat may take."""

from __future__ import annotations

from typing import Final

__all__ = ("CPU_S", "MAX_CHARS", "MEMORY")

CPU_S: Final = 2.0
"""Seconds of processor.  Long chats of real templates take a hundredth of it."""

MEMORY: Final = 512 << 20
"""Bytes of address space, Python's own among them."""

MAX_CHARS: Final = 4 << 20
"""Of rendered text.  A character is a byte at least, and 4 MiB is the tokenizer's limit."""
