"""Tokens, the end of a request, and what it leaves behind.

The reply is sent as soon as its last token is drawn.  What is left to store follows in
CLOSING, and only then is the slot free.
"""

from __future__ import annotations

import collections
import time
from array import array
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from erllama_py._backends.base import BLOCK, Backend, BackendError, Sampler
from erllama_py._cache.policy import Policy, cold_save_split, should_finish_save
from erllama_py._engine.adapterset import AdapterSet
from erllama_py._engine.adapting import Adapting
from erllama_py._engine.capture import Recorder
from erllama_py._engine.channel import Sink
from erllama_py._engine.frames import (
    Admitted,
    Closed,
    Done,
    Failed,
    Kept,
    Restored,
    Scored,
    Token,
    Trace,
    Verified,
)
from erllama_py._engine.guessing import Guessing
from erllama_py._engine.job import Job, Stage
from erllama_py._engine.measures import Measures
from erllama_py._engine.origins import Origins
from erllama_py._engine.restore import BadPiece
from erllama_py._engine.sharedkv import SharedKv
from erllama_py._engine.slots import Slots
from erllama_py._engine.spans import Part
from erllama_py._engine.speculation import compare
from erllama_py._engine.stops import cut_at
from erllama_py._engine.trace import LogitsTrace
from erllama_py._engine.whole import WholeRecorder

__all__ = ("Replies",)

REPEAT_S = 2.0
"""How long a finish row counts as just stored: nothing evicts it that soon."""
REPEATS = 16


class _Finished(NamedTuple):
    """A finish row, as far as it tells whether a reply needs another."""

    adapters: int
    bit: bool
    tokens: bytes


class Replies:
    """The state of a scheduler, and what sends tokens and ends requests."""

    def __init__(
        self,
        backend: Backend,
        kv: SharedKv,
        out: Sink,
        policy: Policy | None,
        chunk: int,
        *,
        parking: bool | None = None,
    ) -> None:
        """Take what the engine thread works with.

        :param policy: ``None`` where nothing is to be cached.
        :param parking: whether sequences that could be parked are; ``None``: where that
            is worth it.
        """
        self._backend = backend
        self._out = out
        self._policy = policy
        self._chunk = chunk
        self._parking = parking
        self._slots = Slots(backend, lambda session: out.put(Kept(session, 0)))
        self._recorder = (
            _recorder(backend, kv, out, policy, chunk, self._slots.origins) if policy else None
        )
        self._adapters = Adapting(backend)
        self._guessing = Guessing(backend, self._slots, out, policy)
        self._measures = Measures()
        self._queue: collections.deque[Job] = collections.deque()
        self._jobs: dict[int, Job] = {}
        """Every live job by request id, queued ones too."""
        self._finished: collections.deque[tuple[float, _Finished]] = collections.deque(
            maxlen=REPEATS
        )
        """Finish rows just stored, and when."""

    def _recorder_of(self, job: Job) -> Recorder | WholeRecorder | None:
        return self._recorder if job.cached else None

    def _set_of(self, job: Job) -> AdapterSet:
        """Return the adapters a job has; the first to ask is its admission."""
        if job.adapters is None:
            job.adapters = self._adapters.coming
        return job.adapters

    # -- tokens ------------------------------------------------------------------------------

    def _admit(self, job: Job, kind: str, prefix_len: int) -> None:
        """Tell the core how a request was admitted, once; a preempted one stays admitted.

        What it adds to what was found gets a row at the prompt's boundary: without one,
        a repeat of a prompt that shares its head with another would never be exact.
        """
        if job.admitted:
            return
        job.admitted = True
        stream = kind == "sticky" and self._slots.origins.is_stream(job.slot, len(job.ledger))
        self._out.put(Admitted(job.id, kind, prefix_len, self._set_of(job).number, stream))
        if not job.cached or job.verifies or self._policy is None:
            return
        boundary = cold_save_split(job.prompt_len, self._policy) or 0
        if boundary > prefix_len and should_finish_save(boundary, self._policy):
            job.cold_row = boundary

    def _prompt_done(self, job: Job, index: int) -> None:
        """A row's logits are there: draw from them, or end what wants no tokens."""
        if job.verifies:
            self._verify(job, index)
            return
        if not job.generates:
            self._finish_prompt(job)
            return
        self._take(
            job,
            lambda sampler: self._backend.sample(sampler, index),
            lambda out: self._backend.copy_logits(index, out),
        )

    def _verify(self, job: Job, index: int) -> None:
        """Compare a job's candidates with the model's own tokens, and end it."""
        recorder = self._recorder_of(job)
        if recorder:  # before the candidates are in the sequence, too
            recorder.capture_blocks(job)
        try:
            accepted, following = compare(self._backend, job, index)
        except BackendError as error:
            self._fail(job, error.reason, error.detail)
            return
        self._out.put(Verified(job.id, accepted, following))
        self._release(job)

    def _sample_stored(self, job: Job, logits: memoryview) -> None:
        """Draw the first token from logits that were saved with a row."""

        def copy(out: memoryview) -> None:
            out[:] = logits

        self._take(job, lambda sampler: self._backend.sample_stored(sampler, logits), copy)

    def _finish_prompt(self, job: Job) -> None:
        """End a request that wants nothing generated."""
        job.prefilled = job.prefilled or time.monotonic()
        self._finish(job, "stop" if job.mode == "prefill_only" else "length")

    def _take(
        self, job: Job, draw: Callable[[Sampler], int], copy: Callable[[memoryview], None]
    ) -> None:
        """Draw a token, send it, and end the request if it was the last."""
        assert job.sampler is not None
        job.prefilled = job.prefilled or time.monotonic()
        logits = None
        try:
            if job.options.trace or job.options.logprobs is not None:
                logits = bytearray(self._backend.info.logits_bytes)
                copy(memoryview(logits))
            if job.options.trace and logits:
                self._keep_logits(job, logits)
            if job.spoken:
                job.sampler.syntax = job.spoken.syntax
            token = draw(job.sampler)
        except BackendError as error:  # such as a grammar that no token can follow
            self._fail(job, error.reason, error.detail)
            return
        job.pending = token
        job.generated.append(token)
        ends = self._backend.is_eog(token)
        self._tell(job, token, ends=ends)
        if job.options.logprobs is not None and logits:
            self._out.put(self._scored(job, token, logits, job.options.logprobs))
        if job.stops.matched is not None:
            self._finish(job, "stop")
        elif job.said >= job.target or len(job.generated) >= job.room:
            self._finish(job, "length")
        elif ends:
            self._finish(job, "stop")

    def _tell(self, job: Job, token: int, *, ends: bool) -> None:
        """Send a token that was drawn."""
        if job.spoken:
            parts = job.spoken.take(token, self._backend.piece(token), ends=ends)
            self._out.put(Token(job.id, b"", token, self._signed(job, parts)))
            return
        streamed = job.mode == "infer"
        text = b""
        if streamed or job.stops.active:
            text = job.stops.feed(self._backend.piece(token))
        self._out.put(Token(job.id, text if streamed else b"", token))

    def _signed(self, job: Job, parts: list[Part]) -> list[Part]:
        """Put the backend's own signature to thinking that ends, where it has one."""
        if not any(part.kind == "thinking_end" for part in parts):
            return parts
        signature = self._backend.thinking_signature(max(job.slot, 0))
        return [
            msgspec.structs.replace(part, signature=signature)
            if part.kind == "thinking_end"
            else part
            for part in parts
        ]

    def _scored(self, job: Job, token: int, logits: bytearray, count: int) -> Scored:
        # Here only: the core, which imports this module too, can do without numpy.
        from erllama_py._engine.logprobs import scores  # noqa: PLC0415

        logprob, top = scores(logits, token, count)
        piece = self._backend.piece
        return Scored(
            job.id, token, piece(token), logprob, [(one, piece(one), value) for one, value in top]
        )

    def _keep_logits(self, job: Job, logits: bytearray) -> None:
        try:
            job.trace = job.trace or LogitsTrace()
            job.trace.add(logits)
        except OSError as error:
            raise BackendError("oom", f"no memory for the trace: {error.strerror}") from error

    # -- the end of a request ----------------------------------------------------------------

    def _finish(self, job: Job, reason: str) -> None:
        """Send the reply; what is left to store follows in CLOSING."""
        self._tell_rest(job)
        reply = b""
        if job.mode == "complete" and job.spoken:
            reply = job.spoken.reply(self._backend)
        elif job.mode == "complete":
            reply = cut_at(self._backend.detokenize(job.generated), job.stops.matched)
        # Mid-prefill, what counts is what is in the KV; later, all that was said.
        complete = not job.todo or job.pending is not None
        committed = job.cells() if complete else len(job.ledger)
        saving = bool(
            self._policy
            and job.cached
            and job.stage in (Stage.RESTORE, Stage.RUN)
            and should_finish_save(committed, self._policy)
        )
        self._send_trace(job)
        prefill_ms, generation_ms = job.milliseconds()
        self._out.put(
            Done(
                job.id,
                reason,
                job.stops.matched,
                reply,
                prefill_ms,
                generation_ms,
                committed,
                saving,
                self._guessing.facts(job),
            )
        )
        job.stage = Stage.CLOSING
        job.closing = time.monotonic()
        if not (saving or self._stays(job)):
            self._release(job)
        elif complete:
            self._end_repeat(job)
        elif job.restore is None and saving:
            self._close(job, None)
        else:
            self._release(job, keep=self._stays(job))

    def _tell_rest(self, job: Job) -> None:
        """Send what was held back and will be nothing else any more."""
        if job.stops.matched is not None:
            return
        if job.spoken:
            if parts := job.spoken.close():
                self._out.put(Token(job.id, b"", None, self._signed(job, parts)))
        elif job.mode == "infer" and (held := job.stops.flush()):
            self._out.put(Token(job.id, held, None))

    def _send_trace(self, job: Job) -> None:
        trace, job.trace = job.trace, None
        if trace is not None:
            frame = Trace(job.id, trace.rows)
            self._out.defer(lambda: frame, trace.hand_over())

    def _fail(self, job: Job, reason: object, detail: str) -> None:
        if job.stage is not Stage.CLOSING:
            self._out.put(Failed(job.id, reason, detail))
        self._release(job)

    def _end_repeat(self, job: Job) -> bool:
        """End a job that says what was just stored; return whether it was one.

        A prompt that the cache has whole, answered by the same tokens: their row is
        there, and nothing has to be restored or evaluated to store it again.
        """
        if not job.exact or job.stage is not Stage.CLOSING or job.session:
            return False
        recorder, row = self._recorder_of(job), self._finished_row(job, job.context())
        since = time.monotonic() - REPEAT_S
        if recorder is None or not any(
            when > since and stored == row for when, stored in self._finished
        ):
            return False
        recorder.count_again(job, "finish", job.cells())
        self._release(job)
        return True

    def _close(self, job: Job, logits_row: int | None) -> None:
        """Store the finish row and give everything back."""
        recorder = self._recorder_of(job)
        if recorder and self._policy and should_finish_save(len(job.ledger), self._policy):
            recorder.capture_blocks(job)
            recorder.save(job, "finish", len(job.ledger), logits_row)
            self._finished.append((time.monotonic(), self._finished_row(job, job.ledger)))
        self._release(job, park=self._parks(job), keep=self._stays(job))

    def _finished_row(self, job: Job, tokens: array[int]) -> _Finished:
        return _Finished(self._set_of(job).number, job.options.bit, tokens.tobytes())

    def _parks(self, job: Job) -> bool:
        info = self._backend.info
        if job.options.bit or not job.cached or not job.capturing or not info.blocks:
            return False
        if self._backend.length(job.slot) != len(job.ledger):
            return False  # the ledger rule
        if self._parking is not None:
            return self._parking
        return self._measures.worth_parking(len(job.ledger) * info.block_bytes / BLOCK)

    def _stays(self, job: Job) -> bool:
        """Whether a job's sequence is kept for the next request of its session."""
        if not job.session or not job.active or job.options.bit or job.restore is not None:
            return False
        length = len(job.ledger)
        return length > 0 and self._backend.length(job.slot) == length

    def _release(self, job: Job, *, park: bool = False, keep: bool = False) -> None:
        self._drop_restore(job)
        if job.sampler:
            job.sampler.close()
        if job.trace:
            job.trace.close()
        if job.active:
            self._slots.give_up(job, park=park, keep=keep)
        elif job in self._queue:
            self._queue.remove(job)
        self._jobs.pop(job.id, None)
        if job.session:
            kept = self._slots.kept(job.session)
            self._out.put(Kept(job.session, kept, self._slots.keeps_stream(job.session)))
        self._out.put(Closed(job.id, job.prefill_ns, job.prefill_tokens))

    def _drop_restore(self, job: Job, bad: BadPiece | None = None) -> None:
        """Tell the core that a plan's pieces are not needed any more."""
        restore, job.restore = job.restore, None
        if restore is not None:
            restore.drop()
            self._measures.restored(restore.spent_ns, restore.unpacked_bytes)
            nodes, corrupt = ([bad.node], bad.corrupt) if bad else ([], False)
            took = restore.spent_ns, restore.read_ns
            stream = job.active and self._slots.origins.is_stream(job.slot, restore.keep)
            self._out.put(
                Restored(job.id, nodes, corrupt, *took, restore.shared, stream, restore.unread)
            )


def _recorder(
    backend: Backend, kv: SharedKv, out: Sink, policy: Policy, chunk: int, origins: Origins
) -> Recorder | WholeRecorder:
    """Choose how a model's sequences are captured."""
    if backend.info.blocks:
        return Recorder(backend, kv, out, policy, chunk, origins)
    return WholeRecorder(backend, kv, out, policy, origins)
