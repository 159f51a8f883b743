"""KVC version 1: the file format of one whole row, as the original reads and writes it.

All integers are little-endian.

======  =====  ====================================================================
offset  bytes  field
======  =====  ====================================================================
0       4      ``KVC``, version 1
4       1      quant_bits
5       1      save reason: 0 unknown, 1 cold, 2 continued, 3 evict, 4 shutdown,
               5 finish
6       2      0
8       4      token count
12      4      hit count, the only field rewritten in place
16      4      context_size
20      4      0
24      16     creation time, last used time, unix seconds
40      8      payload length
48      16     payload offset, payload length again
64      4      CRC-32C of the payload
68      4      0
72      4 + n  length, prompt text
..      4 + n  length, records: tag, u32 length, value
..      n      payload, to the end of the file
======  =====  ====================================================================

Records the original knows: 01 fingerprint, 02 fingerprint mode, 03 quantisation code,
04 ctx_params_hash, 05 host name, 06 library version, 07 detail of the save reason, 08 token
count, 09 tokens.  Readers skip tags they do not know, so ours start at 0x40:

==  =================================================================================
40  identity of the engine that computed the payload
41  grade of the payload, as text
42  CRC-32C of all bytes before the payload, with the hit count and this value as 0.
    In every file with one of the others: an identity or a grade with flipped bits would
    pass for another's.
43  name of a quantisation that has no code of its own (the code is then 255, which the
    original cannot read back)
==  =================================================================================

What identifies a payload is checked with it: :func:`parse` derives the key from the
records and compares it with the one asked for.
"""

from __future__ import annotations

import itertools
import struct
from typing import Any, Final, NamedTuple

import msgspec

from erllama_py._cache import key as keys
from erllama_py._cache.checksum import crc
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom

__all__ = (
    "FIXED_BYTES",
    "HEADER_BYTES",
    "HITS_OFFSET",
    "MODES",
    "REASONS",
    "VERSION",
    "BadKvc",
    "Facts",
    "Kvc",
    "Meta",
    "build",
    "check_crc",
    "check_key",
    "header",
    "hits_of",
    "key_of",
    "parse",
    "parse_meta",
    "prefix",
    "prefix_length",
)

HEADER_BYTES: Final = 48
"""What an index row keeps of a file."""
FIXED_BYTES: Final = 72
HITS_OFFSET: Final = 12
VERSION: Final = 1
"""The only one there is."""

REASONS: Final = ("unknown", "cold", "continued", "evict", "shutdown", "finish")
MODES: Final = ("safe", "gguf_chunked", "fast_unsafe")
"""Position is the code."""

_HEADER: Final = struct.Struct("<3sBBBHIIIIQQQ")
_TRAILER: Final = struct.Struct("<QQII")
_LENGTH: Final = struct.Struct("<I")
_RECORD: Final = struct.Struct("<BI")

_FINGERPRINT, _MODE, _QUANT, _CONTEXT = 0x01, 0x02, 0x03, 0x04
_HOSTNAME, _LIBRARY, _DETAIL = 0x05, 0x06, 0x07
_COUNT, _TOKENS = 0x08, 0x09
_ENGINE, _GRADE, _PREFIX_CRC, _QUANT_NAME = 0x40, 0x41, 0x42, 0x43

_REQUIRED: Final = (
    (_FINGERPRINT, "fingerprint"),
    (_MODE, "fingerprint_mode"),
    (_QUANT, "quant_type"),
    (_CONTEXT, "ctx_params_hash"),
    (_TOKENS, "tokens"),
)
_SIZES: Final = {_FINGERPRINT: 32, _MODE: 1, _QUANT: 1, _CONTEXT: 32, _PREFIX_CRC: 4}
"""A known record of another size is skipped, as the original does."""

_U32: Final = 0xFFFFFFFF
_U64: Final = 0xFFFFFFFFFFFFFFFF

Bytes = bytes | bytearray | memoryview


class BadKvc(ErllamaError):
    """These bytes are no whole file of the version, or not the one asked for."""


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says besides its payload."""

    save_reason: str
    """One of :data:`REASONS`."""
    quant_bits: int
    fingerprint: bytes
    """Effective, 32 bytes."""
    fingerprint_mode: str
    """One of :data:`MODES`."""
    quant_type: str
    ctx_params_hash: bytes
    """32 bytes."""
    tokens: bytes
    """Encoded, see :mod:`erllama_py._cache.key`."""
    context_size: int
    creation_time: int = 0
    """Unix seconds, as ``last_used_time``."""
    last_used_time: int = 0
    hit_count: int = 0
    prompt_text: bytes = b""
    hostname: bytes = b""
    erllama_version: bytes = b""
    save_reason_detail: bytes = b""
    engine: bytes = b""
    """Identity of the engine that computed the payload; empty where nobody said."""
    grade: str = ""


class Facts(NamedTuple):
    """What the bytes before a payload say."""

    meta: Meta
    token_count: int
    """As in the header; the tokens themselves count."""
    payload_offset: int
    payload_length: int
    payload_crc: int

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.payload_offset + self.payload_length


class Kvc(NamedTuple):
    """A parsed file."""

    facts: Facts
    payload: memoryview
    """Of the bytes that were parsed; not copied."""


# -- building -----------------------------------------------------------------------------


def key_of(meta: Meta) -> bytes:
    """Return the key a file of these facts is found by.

    :raises BadCall: a hash is not 32 bytes, or the tokens are not whole.
    """
    return keys.make(meta.fingerprint, meta.quant_type, meta.ctx_params_hash, meta.tokens)


def build(meta: Meta, payload: Bytes) -> bytes:
    """Return the whole file.

    For large payloads write :func:`prefix` and the payload one after the other.
    """
    return b"".join((prefix(meta, payload), payload))


def prefix(meta: Meta, payload: Bytes) -> bytes:
    """Return everything before the payload; the payload is summed, not copied.

    :raises BadCall: ``meta`` could not be read back.
    """
    _check(meta)
    prompt = _section(meta.prompt_text)
    own = _own_records(meta)
    records = b"".join((_records(meta), own))
    offset = FIXED_BYTES + len(prompt) + _LENGTH.size + len(records)
    size = memoryview(payload).nbytes
    trailer = _TRAILER.pack(offset, size, crc(payload), 0)
    whole = b"".join((header(meta, size), trailer, prompt, _section(records)))
    if not own:
        return whole
    return whole[: -_LENGTH.size] + _LENGTH.pack(_prefix_crc(whole, len(whole) - _LENGTH.size))


def header(meta: Meta, payload_length: int) -> bytes:
    """Return the first 48 bytes of a file."""
    return _HEADER.pack(
        b"KVC",
        VERSION,
        meta.quant_bits & 0xFF,
        REASONS.index(meta.save_reason),
        0,
        len(meta.tokens) // keys.TOKEN_BYTES,
        meta.hit_count & _U32,
        meta.context_size & _U32,
        0,
        meta.creation_time & _U64,
        meta.last_used_time & _U64,
        payload_length,
    )


def hits_of(head: bytes) -> int:
    """Return the hit count in a header; 0 for one too short to have it."""
    if len(head) < HITS_OFFSET + _LENGTH.size:
        return 0
    return int.from_bytes(head[HITS_OFFSET : HITS_OFFSET + _LENGTH.size], "little")


def _check(meta: Meta) -> None:
    key_of(meta)
    for name, value, known in (
        ("save_reason", meta.save_reason, REASONS),
        ("fingerprint_mode", meta.fingerprint_mode, MODES),
    ):
        if value not in known:
            raise BadCall("function_clause", f"{name} {value!r} is not one of {', '.join(known)}")


def _section(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _record(tag: int, value: bytes) -> bytes:
    return _RECORD.pack(tag, len(value)) + value


def _records(meta: Meta) -> bytes:
    count = _LENGTH.pack(len(meta.tokens) // keys.TOKEN_BYTES)
    needed = (
        (_FINGERPRINT, meta.fingerprint),
        (_MODE, bytes((MODES.index(meta.fingerprint_mode),))),
        (_QUANT, bytes((keys.quant_byte(meta.quant_type),))),
        (_CONTEXT, meta.ctx_params_hash),
        (_COUNT, count),
        (_TOKENS, meta.tokens),
    )
    optional = (
        (_HOSTNAME, meta.hostname),
        (_LIBRARY, meta.erllama_version),
        (_DETAIL, meta.save_reason_detail),
    )
    given = (item for item in optional if item[1])
    return b"".join(_record(tag, value) for tag, value in itertools.chain(needed, given))


def _own_records(meta: Meta) -> bytes:
    """Return the records the original skips.  The last is the sum, yet to be filled in."""
    unlisted = keys.quant_byte(meta.quant_type) == keys.UNKNOWN_QUANT
    own = (
        (_QUANT_NAME, meta.quant_type.encode() if unlisted else b""),
        (_ENGINE, meta.engine),
        (_GRADE, meta.grade.encode()),
    )
    given = [_record(tag, value) for tag, value in own if value]
    return b"".join((*given, _record(_PREFIX_CRC, bytes(_LENGTH.size)))) if given else b""


def _prefix_crc(whole: Bytes, at: int) -> int:
    """Sum the bytes before a payload; the sum itself is at ``at``."""
    blank = bytearray(whole)
    for start in (HITS_OFFSET, at):
        blank[start : start + _LENGTH.size] = bytes(_LENGTH.size)
    return crc(blank)


# -- parsing ------------------------------------------------------------------------------


def prefix_length(head: Bytes, size: int) -> int:
    """Return how many bytes of a file :func:`parse_meta` needs, from its first 72.

    :param size: bytes of the whole file.
    """
    if len(head) < FIXED_BYTES:
        return size
    return min(size, int.from_bytes(head[HEADER_BYTES : HEADER_BYTES + 8], "little"))


def parse_meta(data: Bytes, size: int | None = None) -> Facts:
    """Read everything but the payload, which is not checked.

    :param data: the file, or at least its :func:`prefix_length` first bytes.
    :param size: bytes of the whole file where ``data`` is less.
    :raises BadKvc: with the original's reasons.
    """
    view = memoryview(data)
    head = _read_header(view)
    if len(view) < FIXED_BYTES:
        raise _bad("bad_trailer")
    offset, length, checksum, _ = _TRAILER.unpack_from(view, HEADER_BYTES)
    prompt, at = _read_section(view, FIXED_BYTES)
    start, at = at + _LENGTH.size, _read_section(view, at)[1]
    records = _read_records(view[:at], start)
    meta = _read_meta(head, bytes(prompt), records)
    _check_extent(head.payload, offset, length, at, len(view) if size is None else size)
    for tag, name in _REQUIRED:
        if tag not in records:
            raise _bad((Atom("missing_tlv"), Atom(name)))
    _check_prefix(view[:offset], records)
    return Facts(meta, head.tokens, offset, length, checksum)


def parse(data: Bytes, expected_key: bytes) -> Kvc:
    """Read a whole file, with its checksum and its key.

    :raises BadKvc: with the original's reasons.
    """
    facts = parse_meta(data)
    payload = memoryview(data)[facts.payload_offset : facts.size]
    check_crc(facts, crc(payload))
    check_key(facts, expected_key)
    return Kvc(facts, payload)


def check_crc(facts: Facts, actual: int) -> None:
    """Compare a payload's checksum.

    :raises BadKvc: ``{crc_mismatch, Expected, Actual}``.
    """
    if actual != facts.payload_crc:
        raise _bad((Atom("crc_mismatch"), facts.payload_crc, actual))


def check_key(facts: Facts, expected: bytes) -> None:
    """Compare a file's key.

    :raises BadKvc: ``{key_mismatch, Expected, Actual}``.
    """
    actual = key_of(facts.meta)
    if actual != expected:
        raise _bad((Atom("key_mismatch"), expected, actual))


class _Head(NamedTuple):
    quant_bits: int
    reason: int
    tokens: int
    hits: int
    context_size: int
    created: int
    used: int
    payload: int


class _Records(dict[int, bytes]):
    """Values by tag, and where the sum of the prefix is."""

    sum_at = 0


def _read_header(view: memoryview) -> _Head:
    if len(view) < HEADER_BYTES or bytes(view[:3]) != b"KVC":
        raise _bad("bad_header")
    _, version, bits, reason, _, *rest = _HEADER.unpack_from(view)
    tokens, hits, context_size, _, created, used, payload = rest
    if version != VERSION:
        raise _bad((Atom("unsupported_version"), version))
    if reason >= len(REASONS):
        raise _bad((Atom("unknown_save_reason"), reason))
    return _Head(bits, reason, tokens, hits, context_size, created, used, payload)


def _read_section(view: memoryview, at: int) -> tuple[memoryview, int]:
    """Return a section's bytes and where the next one starts."""
    start = at + _LENGTH.size
    if start > len(view):
        raise _bad("bad_length_prefixed_section")
    end = start + int(_LENGTH.unpack_from(view, at)[0])
    if end > len(view):
        raise _bad("bad_length_prefixed_section")
    return view[start:end], end


def _read_records(view: memoryview, at: int) -> _Records:
    records = _Records()
    while at < len(view):
        start = at + _RECORD.size
        if start > len(view):
            raise _bad("bad_tlv")
        tag, length = _RECORD.unpack_from(view, at)
        at = start + length
        if at > len(view):
            raise _bad("bad_tlv")
        fits = (
            length % keys.TOKEN_BYTES == 0 if tag == _TOKENS else length == _SIZES.get(tag, length)
        )
        if fits:
            records[tag] = bytes(view[start:at])
            records.sum_at = start if tag == _PREFIX_CRC else records.sum_at
    return records


def _read_meta(head: _Head, prompt: bytes, records: _Records) -> Meta:
    mode = records.get(_MODE, b"\0")[0]
    if mode >= len(MODES):
        raise _bad((Atom("unknown_fingerprint_mode"), mode))
    return Meta(
        save_reason=REASONS[head.reason],
        quant_bits=head.quant_bits,
        fingerprint=records.get(_FINGERPRINT, b""),
        fingerprint_mode=MODES[mode],
        quant_type=_quant_name(records),
        ctx_params_hash=records.get(_CONTEXT, b""),
        tokens=records.get(_TOKENS, b""),
        context_size=head.context_size,
        creation_time=head.created,
        last_used_time=head.used,
        hit_count=head.hits,
        prompt_text=prompt,
        hostname=records.get(_HOSTNAME, b""),
        erllama_version=records.get(_LIBRARY, b""),
        save_reason_detail=records.get(_DETAIL, b""),
        engine=records.get(_ENGINE, b""),
        grade=_text(records.get(_GRADE, b"")),
    )


def _quant_name(records: _Records) -> str:
    code = records.get(_QUANT, b"\0")[0]
    name = keys.quant_atom(code)
    if name is None and code == keys.UNKNOWN_QUANT:
        name = Atom(_text(records.get(_QUANT_NAME, b"")))
        if keys.quant_byte(name) != code:
            name = None
    if not name:
        raise _bad((Atom("unknown_quant_byte"), code))
    return name


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _bad("malformed") from None


def _check_extent(counted: int, offset: int, length: int, end: int, size: int) -> None:
    if length != counted:
        raise _bad("payload_length_mismatch")
    if size < offset + length:
        raise _bad("truncated")
    if size > offset + length:
        raise _bad("trailing_bytes")
    if offset < end:
        raise _bad("payload_out_of_bounds")


def _check_prefix(whole: memoryview, records: _Records) -> None:
    ours = any(tag in records for tag in (_ENGINE, _GRADE, _QUANT_NAME))
    given = records.get(_PREFIX_CRC)
    if given is None:
        if ours:
            raise _bad("malformed")
        return
    if _LENGTH.unpack(given)[0] != _prefix_crc(whole, records.sum_at):
        raise _bad("malformed")


def _bad(reason: Any) -> BadKvc:
    return BadKvc(reason, f"not a usable KVC file: {_words(reason)}", "it can be deleted")


def _words(reason: Any) -> str:
    if not isinstance(reason, tuple):
        return str(reason)
    return " ".join(part.hex() if isinstance(part, bytes) else str(part) for part in reason)
