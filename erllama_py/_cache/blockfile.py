"""The bytes of a container: a file that holds many blocks of one engine identity.

======================  ===========================================================
head, 4096 bytes        who wrote it, for which engine identity; a checksum
table, N rows           one row for each payload: what it is and where; or all zero
data                    payloads, each at a multiple of 4096
======================  ===========================================================

Numbers are little-endian.  A head's checksum covers all of the head.  A row's covers the
row but for its last eight bytes, its hits and its time of last use, which are rewritten
in place; it also covers the identity and the row's number, so that a row which ends up
in another file or place is no row.  Payloads have their own checksum, in their row.

Before those eight bytes are sixteen of the payload's origin
(:mod:`erllama_py._cache.origin`).  Zeros, as files of before there were any have there,
say that it is unknown; who knows nothing of them skips them.

A head is one of three things: ours and good; ours and *damaged*; or *foreign*: some
other format, or a later version of this one, which is left alone.
"""

from __future__ import annotations

import functools
import struct
from typing import Final, NamedTuple

import msgspec

from erllama_py._cache.checksum import crc
from erllama_py._cache.grade import Grade
from erllama_py._cache.origin import UNKNOWN, Origin, interned

__all__ = (
    "ALIGN",
    "Damaged",
    "Entry",
    "Foreign",
    "Head",
    "Spot",
    "pack_head",
    "pack_row",
    "pack_use",
    "unpack_head",
    "unpack_row",
)

MAGIC: Final = b"erllamaB"
VERSION: Final = 1

ALIGN: Final = 4096
"""Of the head, the table's end and all payloads, in bytes."""

HASH_BYTES: Final = 32
TOKEN_BYTES: Final = 4
MAX_BLOCK: Final = 1 << 16
MAX_ROWS: Final = 1 << 20

_HEAD: Final = struct.Struct("<8sIIIIQQ32sI")
_ROW: Final = struct.Struct("<IBBBxIIIIIIQQQIIQ32s32s")
_ORIGIN: Final = struct.Struct("<QQ")
_USE: Final = struct.Struct("<II")
_U32: Final = struct.Struct("<I")
_ROW_BYTES: Final = 256
"""Of a row, besides its tokens."""

MAX_DESCRIPTION: Final = ALIGN - _HEAD.size - _U32.size

_KINDS: Final = ("", "block", "row", "whole")
_REASONS: Final = ("", "cold", "continued", "evict", "shutdown", "finish")
_GRADES: Final = ("", "P", "T", "S")
_NO_KEY: Final = bytes(HASH_BYTES)


class Foreign(Exception):
    """The bytes are none of ours, or of a later version."""


class Damaged(Exception):
    """The bytes were ours and are not whole."""


class Spot(NamedTuple):
    """Where a payload is, or where one may be written."""

    file: int
    """Number of the container."""
    slot: int
    """Row of its table."""
    offset: int
    """Of the payload in the file; 0 for an entry without one."""
    size: int
    """Bytes set aside, a multiple of 4096."""


class Entry(msgspec.Struct, frozen=True):
    """What a row of a table says.

    ``block`` is a block or a tail shorter than one.  ``row`` says that some tokens were a
    whole context; its payload, if any, is the logits of the last position.  ``whole`` is
    such a context's KV in one piece, its tokens at the beginning of the payload.
    """

    kind: str
    """``block``, ``row`` or ``whole``."""
    parent: bytes
    """Address of the node before, 32 bytes."""
    start: int
    """Position of its first token."""
    tokens: bytes
    """Encoded, at most one block; of a row, what is behind its last whole block."""
    length: int
    """Tokens: of a block its own, else of the whole context."""
    grade: Grade | None
    """Of a block and a whole context."""
    key: bytes
    """Of a row and a whole context, 32 bytes; zeros for a block."""
    nbytes: int
    """Of the payload, 0 without one."""
    crc: int
    """Of the payload, 0 without one."""
    reason: str
    """Why a row was saved; empty for anything else."""
    canonical: int
    """Chunk of the canonical prefill that made a row's logits, else 0."""
    created: int
    """Unix seconds."""
    hits: int = 0
    used: int = 0
    """Unix seconds."""
    origin: Origin = UNKNOWN
    """Of the payload; of a row's logits only ``own``."""


class Head(NamedTuple):
    """What the head of a container says."""

    block: int
    """Tokens of a block."""
    rows: int
    """Rows of the table."""
    digest: bytes
    """Of the engine identity, 32 bytes."""
    description: bytes
    """Of the engine identity, the caller's own encoding."""
    created: int
    """Unix seconds."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return row_bytes(self.block)

    @property
    def data(self) -> int:
        """Where the payloads begin."""
        return data_offset(self.block, self.rows)

    def row_at(self, slot: int) -> int:
        """Return where a row begins."""
        return ALIGN + slot * self.row_bytes


def row_bytes(block: int) -> int:
    """Return the size of a row for blocks of so many tokens."""
    return _ROW_BYTES + TOKEN_BYTES * block


@functools.lru_cache(maxsize=64)  # a scan asks twice a row
def data_offset(block: int, rows: int) -> int:
    """Return where the payloads begin behind a table of ``rows`` rows."""
    return ALIGN + round_up(rows * row_bytes(block))


def round_up(nbytes: int) -> int:
    """Return ``nbytes`` as whole pages."""
    return -(-nbytes // ALIGN) * ALIGN


# -- heads --------------------------------------------------------------------------------


def pack_head(head: Head) -> bytes:
    """Return the first 4096 bytes of a container.

    :raises ValueError: the digest is not 32 bytes, or the description does not fit.
    """
    if len(head.digest) != HASH_BYTES:
        raise ValueError(f"an identity's digest has 32 bytes, this one {len(head.digest)}")
    if len(head.description) > MAX_DESCRIPTION:
        raise ValueError(
            f"an identity's description has at most {MAX_DESCRIPTION} bytes, "
            f"this one {len(head.description)}"
        )
    fixed = _HEAD.pack(
        *(MAGIC, VERSION, head.block, head.rows, 0, head.data, head.created, head.digest),
        len(head.description),
    )
    body = (fixed + head.description).ljust(ALIGN - _U32.size, b"\0")
    return body + _U32.pack(crc(body))


def unpack_head(data: bytes) -> Head:
    """Read what :func:`pack_head` made.

    :raises Foreign: it begins otherwise, or its version is a later one.
    :raises Damaged: it begins so and the rest is not whole.
    """
    if len(data) < _HEAD.size or not data.startswith(MAGIC):
        raise Foreign("not a container")
    _, version, block, rows, _, start, created, digest, length = _HEAD.unpack_from(data)
    if version != VERSION:
        raise Foreign(f"a container of version {version}")
    if len(data) < ALIGN or crc(data[: ALIGN - 4]) != _U32.unpack_from(data, ALIGN - 4)[0]:
        raise Damaged("the head's checksum is wrong")
    if not (0 < block <= MAX_BLOCK and 0 < rows <= MAX_ROWS and length <= MAX_DESCRIPTION):
        raise Damaged("the head's numbers make no sense")
    head = Head(block, rows, digest, data[_HEAD.size : _HEAD.size + length], created)
    if head.data != start:
        raise Damaged("the head's numbers contradict each other")
    return head


# -- rows ---------------------------------------------------------------------------------


def pack_row(head: Head, slot: int, entry: Entry, offset: int, size: int) -> bytes:
    """Return the bytes of a row.

    :raises ValueError: the entry is not as :class:`Entry` says.
    """
    if (wrong := _what_is_wrong(head, entry, offset, size)) is not None:
        raise ValueError(f"{entry.kind!r} entry: {wrong}")
    grade = entry.grade or Grade("", 0)
    fixed = _ROW.pack(
        *(0, _KINDS.index(entry.kind), _REASONS.index(entry.reason), _GRADES.index(grade.kind)),
        *(len(entry.tokens), entry.start, entry.length, entry.canonical),
        *(grade.number, grade.end, offset, size, entry.nbytes, entry.crc, 0),
        *(entry.created, entry.parent, entry.key),
    )
    edge = head.row_bytes - _USE.size
    body = (fixed + entry.tokens).ljust(edge - _ORIGIN.size, b"\0") + _ORIGIN.pack(*entry.origin)
    stable = body[4:]
    return _U32.pack(_row_crc(head, slot, stable)) + stable + pack_use(entry.hits, entry.used)


def pack_use(hits: int, used: int) -> bytes:
    """Return the last eight bytes of a row."""
    return _USE.pack(min(max(hits, 0), 0xFFFFFFFF), min(max(used, 0), 0xFFFFFFFF))


def unpack_row(head: Head, slot: int, row: bytes) -> tuple[Entry, int, int] | None:
    """Read what :func:`pack_row` made: entry, offset and size; None for a free row.

    :raises Damaged: it is neither.
    """
    stable, use = row[: -_USE.size], row[-_USE.size :]
    if not any(stable):
        return None
    found = _ROW.unpack_from(row)
    if _row_crc(head, slot, stable[4:]) != found[0]:
        raise Damaged("the row's checksum is wrong")
    _, kind, reason, mark, ntokens, start, length, canonical, number, end, *rest = found
    offset, size, nbytes, payload_crc, _, created, parent, key = rest
    if kind >= len(_KINDS) or reason >= len(_REASONS) or mark >= len(_GRADES):
        raise Damaged("the row has a code that means nothing")
    if ntokens > head.block * TOKEN_BYTES:
        raise Damaged("the row has more tokens than a block")
    tokens = row[_ROW.size : _ROW.size + ntokens]
    grade = Grade(_GRADES[mark], number, end) if mark else None
    hits, used = _USE.unpack(use)
    origin = interned(*_ORIGIN.unpack_from(stable, len(stable) - _ORIGIN.size))
    entry = Entry(
        *(_KINDS[kind], parent, start, tokens, length, grade, key, nbytes, payload_crc),
        *(_REASONS[reason], canonical, created, hits, used, origin),
    )
    if (wrong := _what_is_wrong(head, entry, offset, size)) is not None:
        raise Damaged(f"the row contradicts itself: {wrong}")
    return entry, offset, size


def _row_crc(head: Head, slot: int, body: bytes) -> int:
    return crc(head.digest + _U32.pack(slot) + body)


def _what_is_wrong(head: Head, entry: Entry, offset: int, size: int) -> str | None:
    if entry.kind not in _KINDS[1:]:
        return "the kind is none of block, row and whole"
    if len(entry.parent) != HASH_BYTES or len(entry.key) != HASH_BYTES:
        return "addresses and keys have 32 bytes"
    if len(entry.tokens) % TOKEN_BYTES or len(entry.tokens) > head.block * TOKEN_BYTES:
        return f"{len(entry.tokens)} bytes are not the tokens of one block"
    if size % ALIGN or entry.nbytes > size or (size and (offset < head.data or offset % ALIGN)):
        return f"a payload of {entry.nbytes} bytes cannot be at {offset} in {size} bytes"
    if not entry.nbytes and entry.crc:
        return "a checksum without a payload"
    return _what_is_wrong_of_kind(entry)


def _what_is_wrong_of_kind(entry: Entry) -> str | None:
    own = len(entry.tokens) // TOKEN_BYTES
    if entry.kind == "block":
        if entry.length != own or not own or not entry.nbytes:
            return "a block has tokens, as many as its length says, and a payload"
        if entry.key != _NO_KEY:
            return "a block has no key"
    if entry.kind == "whole" and (own or not 0 < entry.length * TOKEN_BYTES <= entry.nbytes):
        return "the tokens of a whole context are in its payload"
    if entry.kind == "row" and own > entry.length:
        return "a row's last tokens are part of its length"
    if (entry.grade is None) != (entry.kind == "row"):
        return "blocks and whole contexts have a grade, rows have none"
    if entry.reason and entry.kind != "row":
        return "a reason is a row's"
    return None if entry.reason in _REASONS else f"{entry.reason!r} is no reason"
