"""GGUF files written by hand: what the engine would load and what it would not."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

TEXT, ARRAY, U32, U64, F32 = 8, 9, 4, 10, 6


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def number(key: bytes, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def texts(key: bytes, values: Sequence[bytes]) -> bytes:
    head = struct.pack("<IQ", TEXT, len(values))
    return pair(key, ARRAY, head + b"".join(map(text, values)))


def gguf(
    pairs: Sequence[bytes] = (),
    tensors: Mapping[bytes, bytes] | None = None,
    shapes: Mapping[bytes, Sequence[int]] | None = None,
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """Return a file of these pairs and tensors (name to data, 32-bit floats).

    :param shapes: of tensors with more than one dimension, the innermost first.
    """
    records, data = b"", b""
    for name, content in (tensors or {}).items():
        data += bytes(-len(data) % alignment)
        shape = (shapes or {}).get(name, (len(content) // 4,))
        records += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        records += struct.pack("<IQ", 0, len(data))
        data += content
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors or {}), len(pairs))
    head += b"".join(pairs) + records
    return head + bytes(-len(head) % alignment) + data
