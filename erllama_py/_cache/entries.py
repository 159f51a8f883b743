"""What a file tier says of what is in memory: the way back of ``loading``."""

from __future__ import annotations

import time
from typing import Final

from erllama_py._cache.blockfile import Entry
from erllama_py._cache.origin import UNKNOWN
from erllama_py._cache.queue import uses_of
from erllama_py._cache.row import Logits, Row
from erllama_py._cache.trie import TOKEN_BYTES, Payload, address

__all__ = ("block_entry", "row_entry")

_NO_KEY: Final = bytes(32)


def block_entry(payload: Payload) -> Entry:
    """Describe a payload.  A sequence in one piece has its tokens before its KV."""
    node = payload.node
    parent = node.parent
    assert parent is not None
    head = len(node.tokens) if node.whole else 0
    return Entry(
        kind="whole" if node.whole else "block",
        parent=address(parent),
        start=node.start,
        tokens=b"" if node.whole else node.tokens,
        length=node.end - node.start,
        grade=payload.grade,
        key=address(node) if node.whole else _NO_KEY,
        nbytes=head + payload.nbytes,
        crc=payload.crc,
        reason="",
        canonical=0,
        created=int(time.time()),
        hits=uses_of(node),
        used=int(time.time()),
        origin=payload.origin,
    )


def row_entry(row: Row, logits: Logits | None) -> Entry:
    """Describe a row, with the logits that are written behind its tokens."""
    node = row.node
    parent = node.parent
    assert parent is not None
    # A row hangs on the last whole block of its tokens, whatever node covers the rest.
    ends_here = node.whole or (node.end == row.length and len(node.tokens) == row.space.step)
    return Entry(
        kind="row",
        parent=address(node if ends_here else parent),
        start=row.length if ends_here else node.start,
        tokens=b"" if ends_here else node.tokens[: row.cut * TOKEN_BYTES],
        length=row.length,
        grade=None,
        key=row.key,
        nbytes=logits.nbytes if logits else 0,
        crc=logits.crc if logits else 0,
        reason=row.reason,
        canonical=row.canonical if logits else 0,
        created=row.created,
        hits=row.hits,
        used=int(time.time()),
        origin=logits.origin if logits else UNKNOWN,
    )
