"""Capture for models whose sequences cannot be cut: recurrent and hybrid ones.

There are no blocks.  A row is the whole sequence at its exact length, packed into
anonymous memory of its own, since how much it takes is only known then; the descriptor
goes to the core, which keeps it.  The moments are those of
:class:`~erllama_py._engine.capture.Recorder`, but for *cold*: a prompt's row is that of
its end, where the prefill stops anyway.  A request that is preempted leaves a row too,
or it would have to be computed again from its first token.
"""

from __future__ import annotations

import mmap
import os
import time

from erllama_py._backends.base import Backend
from erllama_py._cache.checksum import crc
from erllama_py._cache.policy import Policy, should_continued_save
from erllama_py._engine.anonymous import anonymous_file
from erllama_py._engine.capture import copy_logits, count_again
from erllama_py._engine.channel import Sink
from erllama_py._engine.frames import SavedWhole, Stored
from erllama_py._engine.job import Job
from erllama_py._engine.origins import Origins
from erllama_py._engine.sharedkv import SharedKv

__all__ = ("WholeRecorder",)


class WholeRecorder:
    """The engine thread's captures.  Checksums are made on the sink's thread."""

    def __init__(
        self, backend: Backend, kv: SharedKv, out: Sink, policy: Policy, origins: Origins
    ) -> None:
        self._backend = backend
        self._origins = origins
        self._kv = kv
        self._out = out
        self._policy = policy

    def capture_blocks(self, job: Job) -> None:
        """Do nothing: there are none."""

    def before_preempting(self, job: Job) -> None:
        """Save what is computed, for the job to go on from."""
        if job.ledger and not self.holds(job):
            self.save(job, "evict", len(job.ledger), None)

    def holds(self, job: Job) -> bool:
        """Whether the job's sequence was saved at its present length."""
        return job.last_save == len(job.ledger)

    def count_again(self, job: Job, reason: str, length: int) -> None:
        """Announce a row that is there already, to be counted."""
        count_again(self._out, job, reason, length)

    def save_due_rows(self, job: Job, logits_row: int | None) -> None:
        """Save the prompt's row and continued rows when their moment has come."""
        length = len(job.ledger)
        if job.cold_row is not None and length >= job.prompt_len:
            job.cold_row = None
            if length == job.prompt_len:
                self.save(job, "cold", length, logits_row)
        if job.goes_on and should_continued_save(length, job.last_save, self._policy):
            self.save(job, "continued", length, None)

    def save(self, job: Job, reason: str, length: int, logits_row: int | None) -> None:
        """Save the row of the job's first ``length`` tokens, which are all it has."""
        if not job.capturing:
            return
        if length == job.last_save:
            count_again(self._out, job, reason, length)
            return
        if length != len(job.ledger) or self._backend.length(job.slot) != length:
            job.capturing = False  # the ledger rule: what fails a check is not stored
            return
        try:
            fd = anonymous_file("erllama-row")
        except OSError:
            return  # a missed save, and no more
        began = time.perf_counter_ns()
        packed = self._pack(job.slot, length, fd)
        took = time.perf_counter_ns() - began
        if packed is None:
            os.close(fd)
            return
        job.last_save = length
        view = packed
        logits, logits_view = copy_logits(self._backend, self._kv, logits_row)
        number, canonical = job.id, job.canonical and length == job.prompt_len
        origin = self._origins.of(job.slot, 0, length).own

        def build() -> SavedWhole:
            stored = Stored(logits, len(logits_view), crc(logits_view)) if logits else None
            return SavedWhole(
                *(number, reason, length, len(view), crc(view), stored, canonical, took, origin)
            )

        self._out.defer(build, fd)

    def _pack(self, slot: int, length: int, fd: int) -> memoryview | None:
        """Pack a sequence into a file; return the mapped bytes."""
        size = self._backend.packed_size(slot, 0, length)
        if not size:
            return None
        try:
            # Reserved before it is written: what cannot be reserved is a missed save,
            # while a write into a hole that cannot be filled is the end of the process.
            os.posix_fallocate(fd, 0, size)
            view = memoryview(mmap.mmap(fd, size))
        except OSError:
            return None
        written = self._backend.pack(slot, 0, length, view)
        return view[:written] if written else None
