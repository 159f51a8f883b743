"""Tokens as frames carry them: little-endian u32 bytes, the layout that cache keys hash."""

from __future__ import annotations

from array import array

__all__ = ("unpack_tokens",)

# An array's own bytes are then the encoded tokens: true of every platform llama.cpp builds for.
if array("I", [1]).tobytes() != b"\x01\0\0\0":  # pragma: no cover
    raise ImportError("erllama_py needs a little-endian machine with 32-bit ints")


def unpack_tokens(data: bytes) -> array[int]:
    """Return encoded tokens as an array, whose ``tobytes`` encodes them again."""
    tokens = array("I")
    tokens.frombytes(data)
    return tokens
