"""What the tests of the backends do with sequences."""

from __future__ import annotations

from erllama_py._backends.base import BLOCK, Backend, Row

CHUNK = 128
"""Absolute multiples of this are where prefill is cut."""


def prompt(backend: Backend, n: int) -> list[int]:
    """Return ``n`` tokens that repeat nothing for a while."""
    return [(i * i * 31 + i * 17 + 11) % min(backend.info.n_vocab, 20_000) for i in range(n)]


def prefill(backend: Backend, tokens: list[int], start: int, end: int, seq: int = 0) -> bytes:
    """Compute [start, end) in slices cut at multiples of CHUNK; return the last logits."""
    at = start
    while at < end:
        upto = min(end, at + CHUNK - at % CHUNK)
        backend.step([Row(seq, at, tokens[at:upto], upto == end)])
        at = upto
    return logits(backend)


def logits(backend: Backend, row: int = 0) -> bytes:
    """Copy a row's logits."""
    out = bytearray(backend.info.logits_bytes)
    backend.copy_logits(row, memoryview(out))
    return bytes(out)


def pack(backend: Backend, start: int, end: int, seq: int = 0) -> bytes:
    """Pack a part of a sequence into bytes of its own."""
    out = bytearray(backend.info.block_bytes * -(-(end - start) // BLOCK))
    size = backend.pack(seq, start, end, memoryview(out))
    assert size == backend.packed_size(seq, start, end) > 0
    return bytes(out[:size])


def unpack(backend: Backend, blocks: dict[int, bytes], upto: int, seq: int = 0) -> None:
    """Restore the blocks of [0, upto)."""
    for start in range(0, upto, BLOCK):
        backend.unpack(seq, start, start + BLOCK, memoryview(blocks[start]))


def prefill_and_capture(
    backend: Backend, tokens: list[int], seq: int = 0
) -> tuple[dict[int, bytes], bytes]:
    """Compute all tokens, packing every whole block as soon as it is there."""
    blocks = {}
    last = b""
    for at in range(0, len(tokens), CHUNK):
        upto = min(at + CHUNK, len(tokens))
        last = prefill(backend, tokens, at, upto, seq)
        for start in range(at, upto - BLOCK + 1, BLOCK):
            blocks[start] = pack(backend, start, start + BLOCK, seq)
    return blocks, last
