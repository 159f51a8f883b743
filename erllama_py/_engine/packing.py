"""Packing a whole sequence, in one part or in several, into memory of its own.

What a *transfer* is for: a row leaves the cache as one payload, for a file, or a file's
payload comes in and leaves as the blocks and the tail that the cache stores.  Either way
the model process restores it into a free slot, packs it here in one go, between two
ticks, and the sequence is gone.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from erllama_py._backends.base import Backend, BackendError
from erllama_py._cache.checksum import crc
from erllama_py._engine.anonymous import anonymous_file
from erllama_py._engine.frames import Packed, PackedPart

__all__ = ("PackedParts", "bounds", "pack_parts")


class PackedParts(NamedTuple):
    """Parts in memory, one behind the other."""

    fd: int
    view: memoryview
    parts: list[tuple[int, int, int]]
    """Start, end, bytes."""
    took_ns: int

    def frame(self, number: int) -> Packed:
        """Sum the parts, and return the frame that announces them."""
        at, summed = 0, []
        for start, end, nbytes in self.parts:
            summed.append(PackedPart(start, end, nbytes, crc(self.view[at : at + nbytes])))
            at += nbytes
        return Packed(number, summed, self.took_ns)


def bounds(length: int, step: int) -> list[tuple[int, int]]:
    """Return [0, length) in runs of ``step``; the last one may be shorter."""
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def pack_parts(backend: Backend, slot: int, cuts: Sequence[tuple[int, int]]) -> PackedParts:
    """Pack parts of a sequence.

    :raises BackendError: ``window``: cells of a sliding window are gone; ``oom``.
    """
    began = time.perf_counter_ns()
    sizes = [backend.packed_size(slot, start, end) for start, end in cuts]
    if not all(sizes):
        raise BackendError(
            "window",
            f"cells of this row that its sliding window of {backend.info.n_swa} tokens still"
            " looks at are gone",
        )
    fd = -1
    try:
        fd = anonymous_file("erllama-parts")
        # Reserved before it is written, as every capture.
        os.posix_fallocate(fd, 0, sum(sizes))
        view = memoryview(mmap.mmap(fd, sum(sizes)))
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise BackendError("oom", f"{sum(sizes)} bytes for a copy: {error.strerror}") from error
    at, parts = 0, []
    for (start, end), size in zip(cuts, sizes, strict=True):
        written = backend.pack(slot, start, end, view[at : at + size])
        if written != size:
            os.close(fd)
            raise BackendError("pack_failed", f"tokens {start} to {end} could not be packed")
        parts.append((start, end, written))
        at += written
    return PackedParts(fd, view, parts, time.perf_counter_ns() - began)
