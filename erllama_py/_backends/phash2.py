"""``erlang:phash2/1`` of the terms the stub backend hashes.

Erlang hashes a term by walking it with a state of 32 bits and mixing each part into
the state under a constant that names the part's kind (a multiple of the golden ratio).
Only three kinds of term are needed: a binary, and ``{embed, Tokens}`` with a list of
integers below 2^27.  The rules were checked against the runtime; the tests carry its
values.

A list has one rule of its own: leading elements that fit a byte are taken four at a
time as one big-endian number, since a text is such a list.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ("phash2_binary", "phash2_embed")

_MASK = 0xFFFFFFFF
_RANGE = 1 << 27
"""Values of ``phash2/1``: 0 to 2^27 - 1."""
_GOLDEN = 0x9E3779B9

_INTEGER = _GOLDEN
_NIL = 2 * _GOLDEN & _MASK
_ATOM = 3 * _GOLDEN & _MASK
_BYTES_OF_LIST = 4 * _GOLDEN & _MASK
_TUPLE = 9 * _GOLDEN & _MASK
_EMPTY_BINARY = 13708901
_BINARY_START = 13 * _GOLDEN & _MASK


def phash2_binary(data: bytes) -> int:
    """Return ``erlang:phash2(Data)`` of a binary.

    The empty binary has a value of its own in the runtime.
    """
    if not data:
        return _EMPTY_BINARY
    a = b = _GOLDEN
    c = _BINARY_START
    whole = len(data) - len(data) % 12
    for at in range(0, whole, 12):
        a = (a + int.from_bytes(data[at : at + 4], "little")) & _MASK
        b = (b + int.from_bytes(data[at + 4 : at + 8], "little")) & _MASK
        c = (c + int.from_bytes(data[at + 8 : at + 12], "little")) & _MASK
        a, b, c = _mix(a, b, c)
    rest = data[whole:]
    a = (a + int.from_bytes(rest[:4], "little")) & _MASK
    b = (b + int.from_bytes(rest[4:8], "little")) & _MASK
    # The lowest byte of c is the length's place, so the last bytes start at the second.
    c = (c + len(data) + (int.from_bytes(rest[8:], "little") << 8)) & _MASK
    return _mix(a, b, c)[2] % _RANGE


def phash2_embed(tokens: Sequence[int]) -> int:
    """Return ``erlang:phash2({embed, Tokens})``; tokens are below 2^27."""
    state = _hash_number(2, _TUPLE, 0)
    state = _hash_number(_atom_value(b"embed"), _ATOM, state)
    # A list: the bytes of an array's slice would be those of its memory.
    return _hash_list(list(tokens), state) % _RANGE


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    a = (a - b - c & _MASK) ^ (c >> 13)
    b = (b - c - a & _MASK) ^ (a << 8 & _MASK)
    c = (c - a - b & _MASK) ^ (b >> 13)
    a = (a - b - c & _MASK) ^ (c >> 12)
    b = (b - c - a & _MASK) ^ (a << 16 & _MASK)
    c = (c - a - b & _MASK) ^ (b >> 5)
    a = (a - b - c & _MASK) ^ (c >> 3)
    b = (b - c - a & _MASK) ^ (a << 10 & _MASK)
    c = (c - a - b & _MASK) ^ (b >> 15)
    return a, b, c


def _hash_number(value: int, kind: int, state: int) -> int:
    return _mix((kind + value) & _MASK, kind, state)[2]


def _hash_list(items: Sequence[int], state: int) -> int:
    at, end = 0, len(items)
    while at < end:
        first = at
        while at < end and 0 <= items[at] <= 255:
            at += 1
            if at - first == 4:
                state = _hash_number(
                    int.from_bytes(bytes(items[first:at]), "big"), _BYTES_OF_LIST, state
                )
                first = at
        if at > first:
            state = _hash_number(
                int.from_bytes(bytes(items[first:at]), "big"), _BYTES_OF_LIST, state
            )
        if at < end:
            state = _hash_number(items[at], _INTEGER, state)
            at += 1
    return _hash_number(2, _NIL, state)


def _atom_value(name: bytes) -> int:
    """Hash an atom's name the way the runtime's atom table does (PJW)."""
    value = 0
    for byte in name:
        value = (value << 4) + byte & _MASK
        high = value & 0xF0000000
        if high:
            value ^= high >> 24
            value ^= high
    return value
