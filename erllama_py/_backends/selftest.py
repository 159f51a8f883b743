"""Whether a model and this build of the engine can restore parts of a sequence.

Blocks rest on what the engine does, not on what it promises.  So every load tries it:
two small blocks are computed, packed, wiped, restored and continued from, and the
logits must be those of the straight run, bit for bit.  It costs about fifty tokens,
and reads the weights in, which the first request would pay for otherwise.

The sizes of a few parts are taken along.  A layout that is a head plus so much a token
lets a restore check its input to the byte.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from erllama_py._backends.base import BLOCK, BackendError, BackendInfo, Row

__all__ = ("Verdict", "check_blocks")

PART = 16
"""Tokens of a test block.  Two of them show that a second one is appended rightly."""
TAIL = 5
SEQUENCE = 0


class Verdict(NamedTuple):
    """What the test found."""

    why_not: str
    """Why blocks cannot be used; empty where they can."""
    head: int = 0
    per_token: int = 0

    @property
    def block_bytes(self) -> int:
        """Bytes of a full block; 0 where blocks cannot be used."""
        return 0 if self.why_not else self.head + BLOCK * self.per_token


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
    # Spread over the vocabulary; which tokens they are does not matter.
    tokens = [i * 7919 % subject.info.n_vocab for i in range(2 * PART + TAIL)]
    parts = [(0, PART), (PART, 2 * PART)]
    packed = []
    for start, end in parts:
        _prefill(subject, tokens, start, end)
        data = memoryview(bytearray(subject.packed_size(SEQUENCE, start, end)))
        if not data or subject.pack(SEQUENCE, start, end, data) != data.nbytes:
            return Verdict(f"tokens {start} to {end} could not be packed")
        packed.append(data)
    straight = _prefill(subject, tokens, 2 * PART, len(tokens))
    sizes = {n: subject.packed_size(SEQUENCE, 0, n) for n in (PART, 2 * PART, len(tokens))}
    subject.clear(SEQUENCE)
    for (start, end), data in zip(parts, packed, strict=True):
        subject.unpack(SEQUENCE, start, end, data)
    if subject.length(SEQUENCE) != 2 * PART:
        return Verdict(f"{2 * PART} restored tokens count {subject.length(SEQUENCE)}")
    if _prefill(subject, tokens, 2 * PART, len(tokens)) != straight:
        return Verdict("logits after a restore differ from those of the straight run")
    per_token = (sizes[2 * PART] - sizes[PART]) // PART
    head = sizes[PART] - PART * per_token
    if any(size != head + n * per_token for n, size in sizes.items()):
        return Verdict("the size of a packed part is not a head plus so much a token")
    return Verdict("", head, per_token)


def _prefill(subject: Subject, tokens: list[int], start: int, end: int) -> bytes:
    """Compute tokens [start, end) and return the logits of the last."""
    for at in range(start, end, subject.info.n_batch):
        chunk = tokens[at : min(end, at + subject.info.n_batch)]
        subject.step([Row(SEQUENCE, at, chunk, at + len(chunk) == end)])
    logits = bytearray(subject.info.logits_bytes)
    subject.copy_logits(0, memoryview(logits))
    return bytes(logits)
