"""A cache with an engine's part played by the test: it writes what it would compute.

Blocks are four tokens, chunks eight, so that a few tokens have structure.  A payload's
bytes are the tokens it stands for, each repeated to fill :data:`TOKEN_BYTES`; what a
lease hands out can therefore be read back and compared with the prompt.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from erllama_py._cache.checksum import crc
from erllama_py._cache.grade import Grade, last_slice, streamed, whole_chunk
from erllama_py._cache.identity import Identity
from erllama_py._cache.key import encode_tokens
from erllama_py._cache.lease import Lease, NewLogits, Tail
from erllama_py._cache.ram import Extent
from erllama_py._cache.store import Cache

BLOCK = 4
CHUNK = 8
THREADS = 2
TOKEN_BYTES = 64
"""Stored bytes of one token: an extent's alignment, so that sizes are easy to reckon."""
LOGITS_BYTES = 128

IDENTITY = Identity(bytes([1]) * 32, "f16", bytes(32), (("build", "1"),))


class Result(NamedTuple):
    """What a request saw."""

    kind: str
    via: str
    prefix_len: int
    keep: int
    label: str | None
    logits: bool
    key: bytes | None


class Lab:
    """One cache, one namespace, and a clock that moves at every look."""

    def __init__(
        self,
        quota: int = 1 << 20,
        *,
        segment_bytes: int = 1 << 16,
        identity: Identity = IDENTITY,
        path: Path | None = None,
        disk: int = 1 << 22,
        moves: dict[str, bool] | None = None,
    ) -> None:
        self.now = 0
        self.cache = Cache(
            quota, BLOCK, segment_bytes=segment_bytes, clock=self._tick, **(moves or {})
        )
        if path is not None:
            self.cache.home = self.cache.add_tier("disk", "disk", path, disk, file_bytes=1 << 16)
        self.space = self.cache.namespace(identity)

    def _tick(self) -> int:
        self.now += 1
        return self.now

    def lookup(self, ids: Sequence[int], **options) -> Lease:
        options = {"chunk": CHUNK, "threads": THREADS, **options}
        return self.space.lookup(encode_tokens(ids), **options)

    def key(self, ids: Sequence[int]) -> bytes:
        return self.space.key(encode_tokens(ids))

    def probe(self, ids: Sequence[int], **options) -> int:
        options = {"chunk": CHUNK, "threads": THREADS, **options}
        return self.space.probe(encode_tokens(ids), **options)

    def put(self, data: bytes) -> Extent | None:
        extent = self.cache.reserve(len(data))
        if extent is not None:
            self.cache.view(extent)[: len(data)] = data
        return extent

    # -- a request from lookup to close -------------------------------------------------

    def request(
        self,
        ids: Sequence[int],
        reply: Sequence[int] = (),
        *,
        exactness: str = "token",
        chunk: int = CHUNK,
        threads: int = THREADS,
        alone: bool = True,
        reason: str = "finish",
        logits: bool = True,
        **options,
    ) -> Result:
        """Serve a prompt and a reply, and save a row of the prompt and one of both."""
        lease = self.lookup(ids, exactness=exactness, chunk=chunk, threads=threads, **options)
        with lease:
            check_pieces(self.cache, lease, ids)
            result = Result(
                lease.kind,
                lease.via,
                lease.prefix_len,
                lease.keep,
                lease.label,
                lease.logits is not None,
                None,
            )
            lease.restored()
            canonical = alone and (lease.kind == "cold" or lease.label == "bit")
            run = Run(self, lease, ids, reply, exactness, chunk, threads, canonical=canonical)
            if not reply:
                return result._replace(key=run.save(len(ids), reason, logits=logits))
            run.save(len(ids), "cold", logits=logits)
            total = len(ids) + len(reply)
            return result._replace(key=run.save(total, reason, logits=logits))


class Run:
    """The computing half of a request."""

    def __init__(
        self,
        lab: Lab,
        lease: Lease,
        ids: Sequence[int],
        reply: Sequence[int],
        exactness: str,
        chunk: int,
        threads: int,
        *,
        canonical: bool,
    ) -> None:
        self.lab = lab
        self.lease = lease
        self.ids = [*ids, *reply]
        self.prompt = len(ids)
        self.bit = exactness == "bit"
        self.chunk = chunk
        self.threads = threads
        self.canonical = canonical
        self.at = lease.captured

    def grade(self, start: int, end: int) -> Grade:
        if self.canonical:
            whole = self.prompt // self.chunk * self.chunk
            if end <= whole and (end - start) == BLOCK:
                return whole_chunk(self.chunk)
            if self.bit and start >= whole and end <= self.prompt:
                return last_slice(self.chunk, self.prompt)
        return streamed(self.threads)

    def capture(self, length: int) -> None:
        """Capture whole blocks up to ``length`` tokens."""
        while self.at + BLOCK <= length:
            start, end = self.at, self.at + BLOCK
            data = content(self.ids[start:end])
            extent = self.lab.put(data)
            if extent is not None:
                tokens = encode_tokens(self.ids[start:end])
                grade = self.grade(start, end)
                self.lease.add_block(start, tokens, grade, extent, len(data), crc(data))
            self.at = end

    def save(self, length: int, reason: str, *, logits: bool) -> bytes | None:
        """Capture and publish a row of the first ``length`` tokens."""
        self.capture(length)
        start = length - length % BLOCK
        tail = last = None
        if start != length:
            data = content(self.ids[start:length])
            extent = self.lab.put(data)
            if extent is not None:
                tail = Tail(start, extent, len(data), crc(data), self.grade(start, length))
        if logits:
            data = logits_of(self.ids[:length])
            extent = self.lab.put(data)
            if extent is not None:
                canonical = self.canonical and length == self.prompt
                last = NewLogits(extent, crc(data), canonical)
        tokens = encode_tokens(self.ids[:length])
        return self.lease.add_row(tokens, reason, tail=tail, logits=last)


def read(cache: Cache, extent: Extent, nbytes: int) -> bytes:
    """Read what an extent holds as a model process would, from memory or from a file."""
    fd, _, is_file = cache.segment(extent.segment)
    if not is_file:
        return bytes(cache.view(extent)[:nbytes])
    try:
        return os.pread(fd, nbytes, extent.offset)
    finally:
        os.close(fd)


def content(ids: Sequence[int]) -> bytes:
    return b"".join(encode_tokens([one]) * (TOKEN_BYTES // 4) for one in ids)


def logits_of(ids: Sequence[int]) -> bytes:
    return hashlib.sha256(encode_tokens(ids)).digest() * (LOGITS_BYTES // 32)


def check_pieces(cache: Cache, lease: Lease, ids: Sequence[int]) -> None:
    """Read what a lease offers, as an engine would, and compare it with the prompt."""
    restored = b""
    for piece in lease.pieces:
        assert piece.start * TOKEN_BYTES == len(restored), "the pieces leave a gap"
        data = read(cache, piece.extent, piece.nbytes)
        assert crc(data) == piece.crc
        assert len(data) == (piece.end - piece.start) * TOKEN_BYTES
        restored += data
    assert restored[: lease.keep * TOKEN_BYTES] == content(ids[: lease.keep])
    assert len(restored) >= lease.keep * TOKEN_BYTES
    if lease.logits is not None:
        data = read(cache, lease.logits.extent, lease.logits.nbytes)
        assert data == logits_of(ids)
        assert crc(data) == lease.logits.crc
        assert lease.keep == len(ids)
