"""Whether a model and this build of the engine can restore parts of a sequence, or rows.

Blocks rest on what the engine does, not on what it promises.  So every load tries it:
two small blocks are computed, packed, wiped, restored and continued from, and the
logits must be those of the straight run, bit for bit.  It costs about fifty tokens,
and reads the weights in, which the first request would pay for otherwise.

Where blocks do not work, whole rows may: the same test with a sequence packed whole.
There other tokens are computed in between, since the engine does not wipe what it
clears: a restore that did nothing would find the right state still in its place.

The packed parts are handed on as samples of the layout.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from erllama_py._backends.base import BackendError, BackendInfo, Row

__all__ = ("SEQUENCE", "Part", "Verdict", "check_blocks", "check_whole_rows")

PART = 16
"""Tokens of a test block.  Two of them show that a second one is appended rightly."""
TAIL = 5
SEQUENCE = 0


class Part(NamedTuple):
    """Tokens [start, end) of a sequence, packed."""

    start: int
    end: int
    data: bytes


class Verdict(NamedTuple):
    """What the test found."""

    why_not: str
    """Why blocks, or whole rows, cannot be used; empty where they can."""
    parts: tuple[Part, ...] = ()
    """Packed parts, or whole rows, of different lengths."""


class Subject(Protocol):
    """The part of a backend the test uses."""

    info: BackendInfo

    def step(self, rows: list[Row]) -> None: ...
    def copy_logits(self, row: int, out: memoryview) -> None: ...
    def clear(self, seq: int) -> None: ...
    def length(self, seq: int) -> int: ...
    def packed_size(self, seq: int, start: int, end: int) -> int: ...
    def pack(self, seq: int, start: int, end: int, out: memoryview) -> int: ...
    def unpack(self, seq: int, start: int, end: int, data: memoryview) -> None: ...


def check_blocks(subject: Subject) -> Verdict:
    """Run the test on an empty backend.  Leaves it empty."""
    try:
        return _check(subject)
    except BackendError as error:
        return Verdict(f"the block self-test failed: {error}")
    finally:
        subject.clear(SEQUENCE)


def _check(subject: Subject) -> Verdict:
    tokens = _tokens(subject)
    end = 2 * PART
    _prefill(subject, tokens, 0, PART)
    first = _packed(subject, 0, PART)
    _prefill(subject, tokens, PART, end)
    second = _packed(subject, PART, end)
    straight = _prefill(subject, tokens, end, len(tokens))
    parts = (first, second, _packed(subject, 0, len(tokens)))
    subject.clear(SEQUENCE)
    for part in (first, second):
        subject.unpack(SEQUENCE, part.start, part.end, memoryview(part.data))
    if subject.length(SEQUENCE) != end:
        return Verdict(f"{end} restored tokens count {subject.length(SEQUENCE)}")
    if _prefill(subject, tokens, end, len(tokens)) != straight:
        return Verdict("logits after a restore differ from those of the straight run")
    return Verdict("", parts)


def check_whole_rows(subject: Subject) -> Verdict:
    """Run the test of whole rows on an empty backend.  Leaves it empty."""
    try:
        return _check_rows(subject)
    except BackendError as error:
        return Verdict(f"the self-test of whole rows failed: {error}")
    finally:
        subject.clear(SEQUENCE)


def _check_rows(subject: Subject) -> Verdict:
    tokens = _tokens(subject)
    end = 2 * PART
    _prefill(subject, tokens, 0, PART)
    short = _packed(subject, 0, PART)
    _prefill(subject, tokens, PART, end)
    row = _packed(subject, 0, end)
    straight = _prefill(subject, tokens, end, len(tokens))
    rows = (short, row, _packed(subject, 0, len(tokens)))
    subject.clear(SEQUENCE)
    _prefill(subject, tokens[::-1], 0, TAIL)
    subject.clear(SEQUENCE)
    subject.unpack(SEQUENCE, 0, end, memoryview(row.data))
    if _packed(subject, 0, end) != row:
        return Verdict("a restored row packs to other bytes")
    if _prefill(subject, tokens, end, len(tokens)) != straight:
        return Verdict("logits after a row's restore differ from those of the straight run")
    return Verdict("", rows)


def _tokens(subject: Subject) -> list[int]:
    """Return tokens spread over the vocabulary; which they are does not matter."""
    return [i * 7919 % subject.info.n_vocab for i in range(2 * PART + TAIL)]


def _packed(subject: Subject, start: int, end: int) -> Part:
    data = bytearray(subject.packed_size(SEQUENCE, start, end))
    if not data or subject.pack(SEQUENCE, start, end, memoryview(data)) != len(data):
        raise BackendError("pack_failed", f"tokens {start} to {end} could not be packed")
    return Part(start, end, bytes(data))


def _prefill(subject: Subject, tokens: list[int], start: int, end: int) -> bytes:
    """Compute tokens [start, end) and return the logits of the last."""
    for at in range(start, end, subject.info.n_batch):
        chunk = tokens[at : min(end, at + subject.info.n_batch)]
        subject.step([Row(SEQUENCE, at, chunk, at + len(chunk) == end)])
    logits = bytearray(subject.info.logits_bytes)
    subject.copy_logits(0, memoryview(logits))
    return bytes(logits)
