"""Capture: what a job has computed goes into granted extents, off to the cache.

A block is captured in the tick that completes it, which costs a fraction of a
millisecond and leaves nothing to pack when the request ends but a tail.  Rows have the
original's moments: *cold* at the trimmed and aligned length of a prompt that was
prefilled, *continued* every so many decoded tokens, *finish* at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from erllama_py._backends.base import BLOCK, Backend
from erllama_py._cache.checksum import crc
from erllama_py._cache.policy import Policy, should_continued_save
from erllama_py._cache.ram import Extent
from erllama_py._engine.channel import Sink
from erllama_py._engine.frames import Captured, Saved, Stored
from erllama_py._engine.job import Job
from erllama_py._engine.origins import Origins
from erllama_py._engine.sharedkv import SharedKv

__all__ = ("Recorder", "copy_logits", "count_again")


class Recorder:
    """The engine thread's captures.  Checksums are made on the sink's thread."""

    def __init__(
        self,
        backend: Backend,
        kv: SharedKv,
        out: Sink,
        policy: Policy,
        chunk: int,
        origins: Origins,
    ) -> None:
        self._backend = backend
        self._origins = origins
        self._kv = kv
        self._out = out
        self._policy = policy
        self._chunk = chunk

    def before_preempting(self, job: Job) -> None:
        """Capture what is computed, for the job to go on from."""
        self.capture_blocks(job)

    def holds(self, job: Job) -> bool:
        """Whether all that the job has computed was captured, but for less than a block."""
        return job.capturing and job.captured + BLOCK > len(job.ledger)

    def capture_blocks(self, job: Job) -> None:
        """Capture every whole block that is computed and not yet stored.

        Where no extent is granted the block is left for a later tick: on full attention
        it is still there then.
        """
        if not job.capturing:
            return
        if self._backend.length(job.slot) != len(job.ledger):
            job.capturing = False  # the ledger rule: what fails a check is not stored
            return
        while job.captured + BLOCK <= len(job.ledger):
            captured = self._pack(job, job.captured, job.captured + BLOCK)
            if captured is None:
                break
            self._out.defer(captured)
            job.captured += BLOCK
        job.forget_slices()

    def _pack(self, job: Job, start: int, end: int) -> Callable[[], Captured] | None:
        extent = self._kv.take_block()
        if extent is None:
            return None
        view = self._kv.view(extent)
        began = time.perf_counter_ns()
        written = self._backend.pack(job.slot, start, end, view)
        took = time.perf_counter_ns() - began
        if not written:
            self._kv.give_back_block(extent)
            job.capturing = False
            return None
        threads = self._backend.info.n_threads
        number, grade = job.id, job.grade(start, end, self._chunk, threads)
        origin = self._origins.of(job.slot, start, end)

        def build() -> Captured:
            stored = Stored(extent, written, crc(view[:written]))
            return Captured(number, start, end, stored, grade, took, origin)

        return build

    def save_due_rows(self, job: Job, logits_row: int | None) -> None:
        """Save the cold row and continued rows when their moment has come."""
        policy = self._policy
        if job.cold_row is not None and len(job.ledger) >= job.cold_row:
            length, job.cold_row = job.cold_row, None
            at_end = length == len(job.ledger)
            self.save(job, "cold", length, logits_row if at_end else None)
        if job.goes_on and should_continued_save(len(job.ledger), job.last_save, policy):
            self.save(job, "continued", len(job.ledger), None)

    def count_again(self, job: Job, reason: str, length: int) -> None:
        """Announce a row that is there already, to be counted."""
        count_again(self._out, job, reason, length)

    def save(self, job: Job, reason: str, length: int, logits_row: int | None) -> None:
        """Announce a row of the first ``length`` tokens, with its tail and logits."""
        start = length - length % BLOCK
        tail = logits = None
        view = memoryview(b"")
        if length != job.last_save:  # else the row is there already, and only counted
            if start != length and job.captured == start:
                tail = self._pack(job, start, length)
            logits, view = copy_logits(self._backend, self._kv, logits_row)
        job.last_save = length
        number, canonical = job.id, job.canonical and length == job.prompt_len
        origin = self._origins.of(job.slot, 0, length).own

        def build() -> Saved:
            stored = Stored(logits, len(view), crc(view)) if logits else None
            packed = tail() if tail else None
            return Saved(number, reason, length, packed, stored, canonical, origin)

        self._out.defer(build)


def count_again(out: Sink, job: Job, reason: str, length: int) -> None:
    """Announce a row without anything in it."""
    number = job.id
    out.defer(lambda: Saved(number, reason, length, None, None, canonical=False))


def copy_logits(
    backend: Backend, kv: SharedKv, row: int | None
) -> tuple[Extent | None, memoryview]:
    """Copy a row's logits into a granted extent, where there is one; return it and its bytes.

    The bytes are given now: a segment may be forgotten before their checksum is made.
    """
    extent = kv.take_logits() if row is not None else None
    if extent is None or row is None:
        return None, memoryview(b"")
    view = kv.view(extent, backend.info.logits_bytes)
    backend.copy_logits(row, view)
    return extent, view
