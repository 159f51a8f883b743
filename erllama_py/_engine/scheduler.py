"""The engine thread: admission, ticks, captures.

One *tick* is one call of the backend's ``step``: first a decode row for every sequence
that has a token pending, then prefill slices while the batch has room.  Decoding first
keeps running streams smooth; a slice is at most one chunk, so no prompt holds up the
others for longer than that.

Rules that everything here keeps (docs/design/scheduler.md):

* FIFO.  The head of the queue is admitted when a slot and its cells are free; nothing
  overtakes it.
* A request that fits into the context alone never fails for want of cells: the
  youngest other request is preempted, goes to the front of the queue, and resumes from
  its captured blocks.
* A request with exactness ``bit`` computes alone: it waits for the others to drain, and
  nothing is admitted beside it.
* A tick waits for no I/O, no hashing and no frame: plans arrive verified, captures are
  checksummed by the outbox's thread.
* The ledger's length equals the engine's own count before anything is captured.

Nothing here knows llama.cpp or the core: it speaks to a
:class:`~erllama_py._backends.base.Backend` and puts frames into an outbox.
"""

from __future__ import annotations

import collections
import time
from array import array
from collections.abc import Callable

from erllama_py._backends.base import (
    BLOCK,
    Backend,
    BackendError,
    NoSlot,
    Row,
    Sampler,
    StepFailed,
)
from erllama_py._cache.policy import (
    Policy,
    cold_save_split,
    should_finish_save,
)
from erllama_py._engine.capture import Recorder
from erllama_py._engine.channel import Sink
from erllama_py._engine.frames import (
    Admitted,
    Closed,
    Done,
    Failed,
    Lookup,
    Phase,
    Restored,
    Token,
)
from erllama_py._engine.job import Job, Stage
from erllama_py._engine.mailbox import Mailbox
from erllama_py._engine.restore import BadPiece, Restore
from erllama_py._engine.sharedkv import SharedKv
from erllama_py._engine.stops import cut_at

__all__ = ("Scheduler",)

HEADROOM = 64
"""Free cells beyond the prompt that admission asks for, so that a fresh request does
not preempt another with its first tokens."""

RESTORE_BYTES = 64 << 20
"""Bytes restored between two ticks while others run: about 5 ms of copying."""


class Scheduler:
    """Everything about requests that happens on the engine thread."""

    def __init__(
        self,
        backend: Backend,
        kv: SharedKv,
        out: Sink,
        policy: Policy | None,
        chunk: int,
    ) -> None:
        """``policy`` is ``None`` where nothing is to be cached."""
        self._backend = backend
        self._kv = kv
        self._out = out
        self._policy = policy
        self._recorder = Recorder(backend, kv, out, policy, chunk) if policy else None
        self._chunk = chunk
        self.mailbox = Mailbox()
        self._queue: collections.deque[Job] = collections.deque()
        self._jobs: dict[int, Job] = {}
        """Every live job by request id, queued ones too."""
        self._cancelled: list[Job] = []
        self._running: dict[int, Job] = {}
        """Jobs that hold a slot, by slot."""
        self._slots = list(range(backend.info.n_seq_max - 1, -1, -1))
        self._admissions = 0
        self._phase = "idle"
        self._stopped = False

    # -- called by the control thread through the mailbox ------------------------------

    def submit(self, job: Job) -> None:
        """Queue a checked request."""
        self._jobs[job.id] = job
        self._queue.append(job)

    def cancel(self, number: int) -> None:
        """Stop a request; unknown and finished ones are ignored."""
        if job := self._jobs.get(number):
            self._cancelled.append(job)

    def plan(self, number: int, restore: Restore) -> None:
        """Take the answer to a lookup."""
        job = self._jobs.get(number)
        if job is None or job.stage is not Stage.LOOKUP:
            restore.drop()
            self._out.put(Restored(number, [], corrupt=False, load_ns=0))
            return
        self._begin_restore(job, restore)

    def stop(self) -> None:
        """End the loop before the next tick."""
        self._stopped = True

    # -- the loop -----------------------------------------------------------------------

    def run(self) -> None:
        """Tick until stopped."""
        busy = False
        while not self._stopped:
            self.mailbox.drain(wait=not busy)
            busy = self.tick()

    def tick(self) -> bool:
        """Do one round; return whether there is more to do at once."""
        self._end_cancelled()
        self._dispatch()
        moved = self._restore_all()
        self._report_phase()
        rows = self._batch()
        if rows:
            self._evaluate(rows)
        self._report_phase()
        return bool(rows) or moved

    def _active(self) -> list[Job]:
        return [job for _, job in sorted(self._running.items())]

    def _report_phase(self) -> None:
        active = [j for j in self._running.values() if j.stage is not Stage.CLOSING]
        if not active:
            phase = "idle"
        else:
            phase = "prefilling" if any(j.prefilling for j in active) else "generating"
        if phase != self._phase:
            self._phase = phase
            self._out.put(Phase(phase))

    # -- admission ------------------------------------------------------------------------

    def _end_cancelled(self) -> None:
        for job in self._cancelled:
            if job.id not in self._jobs or job.stage is Stage.CLOSING:
                continue
            job.begin(time.monotonic())
            self._admit(job, "cold", 0)
            if job.stage is Stage.QUEUED:
                self._queue.remove(job)
            self._finish(job, "cancelled")
        self._cancelled.clear()

    def _dispatch(self) -> None:
        while self._queue and self._slots:
            job, active = self._queue[0], self._active()
            if any(j.options.bit for j in active) or (job.options.bit and active):
                return
            used = sum(j.cells() for j in active)
            if active and used + job.cells() + HEADROOM > self._backend.info.n_ctx:
                return
            self._queue.popleft()
            job.slot = self._slots.pop()
            self._running[job.slot] = job
            self._admissions += 1
            job.order = self._admissions
            job.begin(time.monotonic())
            for other in active:
                other.canonical = False
            job.canonical = not active
            job.stage = Stage.LOOKUP
            if self._policy is None:
                self._admit_cold(job)
            else:
                resume = job.todo.tobytes() if job.preempted else None
                self._out.put(Lookup(job.id, resume))

    def _admit_cold(self, job: Job) -> None:
        """Start from nothing: no plan, or one that could not be restored."""
        job.stage = Stage.RUN
        job.captured = 0
        self._admit(job, "cold", 0)

    def _admit(self, job: Job, kind: str, prefix_len: int) -> None:
        """Tell the core how a request was admitted, once; a preempted one stays admitted.

        What it adds to what was found gets a row at the prompt's boundary: without one,
        a repeat of a prompt that shares its head with another would never be exact.
        """
        if job.admitted:
            return
        job.admitted = True
        self._out.put(Admitted(job.id, kind, prefix_len))
        boundary = cold_save_split(job.prompt_len, self._policy) if self._policy else None
        if boundary is not None and boundary > prefix_len:
            job.cold_row = boundary

    def _begin_restore(self, job: Job, restore: Restore) -> None:
        plan = restore.plan
        if plan.kind == "cold":
            restore.drop()
            self._out.put(Restored(job.id, [], corrupt=False, load_ns=0))
            self._admit_cold(job)
            job.captured = plan.captured
            return
        job.stage = Stage.RESTORE
        job.restore = restore
        job.canonical = job.canonical and plan.canonical
        if restore.logits and job.generates and job.pending is None:
            # The stored logits are all that the first token needs: it goes out before
            # a byte of KV is restored.
            self._admit(job, plan.kind, plan.prefix_len)
            self._sample_stored(job, restore.logits)
        elif restore.keep == len(job.todo) and job.generates and job.pending is None:
            # The logits were damaged: the last token is decoded again.
            restore.keep -= 1

    def _restore_all(self) -> bool:
        running = self._active()
        budget = None if len(running) == 1 else RESTORE_BYTES
        moved = [self._restore(job, job.restore, budget) for job in running if job.restore]
        return any(moved)

    def _restore(self, job: Job, restore: Restore, budget: int | None) -> bool:
        """Move verified pieces into the sequence; return whether anything changed."""
        try:
            moved = restore.advance(self._backend, job.slot, budget)
            if not restore.complete:
                return moved
            restore.cut(self._backend, job.slot)
            if not restore.complete:
                return True
        except BadPiece as bad:
            self._restore_failed(job, bad)
        else:
            self._restored(job, restore)
        return True

    def _restored(self, job: Job, restore: Restore) -> None:
        """The sequence is what it should be: go on from there."""
        plan, keep = restore.plan, restore.keep
        self._drop_restore(job)
        job.ledger, job.todo = job.todo[:keep], job.todo[keep:]
        job.captured = min(plan.captured, keep) // BLOCK * BLOCK
        job.canonical = job.canonical and (keep == plan.keep or keep % self._chunk == 0)
        if job.stage is Stage.CLOSING:
            if job.todo:
                self._release(job)  # the reply is out, and its KV is not worth a prefill
            return
        job.stage = Stage.RUN
        job.last_save = max(job.last_save, plan.prefix_len)
        # Less the last token counts as whole: its logits were damaged, not its KV.
        whole = keep >= plan.keep - 1
        self._admit(job, plan.kind if whole else "partial", plan.prefix_len if whole else keep)
        if not job.todo and not job.generates:
            self._finish_prompt(job)
            if job.active:  # no step will come by to close it
                self._close(job, None)

    def _restore_failed(self, job: Job, bad: BadPiece) -> None:
        """Report the bad node and go on cold, with an empty sequence."""
        self._drop_restore(job, bad)
        self._backend.clear(job.slot)
        if job.stage is Stage.CLOSING:
            self._release(job)
            return
        job.canonical = len(self._running) == 1
        self._admit_cold(job)

    def _drop_restore(self, job: Job, bad: BadPiece | None = None) -> None:
        """Tell the core that a plan's pieces are not needed any more."""
        restore, job.restore = job.restore, None
        if restore is not None:
            restore.drop()
            nodes, corrupt = ([bad.node], bad.corrupt) if bad else ([], False)
            self._out.put(
                Restored(job.id, nodes, corrupt, restore.spent_ns, restore.read_ns, restore.shared)
            )

    # -- the batch --------------------------------------------------------------------------

    def _batch(self) -> list[tuple[Job, Row]]:
        """Rows of the next step: pending tokens first, then prefill slices."""
        budget = self._backend.info.n_batch
        rows: list[tuple[Job, Row]] = []
        ready = [
            j for j in self._active() if j.stage in (Stage.RUN, Stage.CLOSING) and j.restore is None
        ]
        decoders = [j for j in ready if not j.todo and j.pending is not None]
        if len(decoders) > budget:
            # More streams than the batch holds: the ones served longest ago go first.
            decoders = sorted(decoders, key=lambda j: len(j.generated))[:budget]
        for job in decoders:
            assert job.pending is not None
            wanted = job.stage is Stage.RUN or (job.capturing and self._policy is not None)
            rows.append((job, Row(job.slot, len(job.ledger), [job.pending], wanted)))
        budget -= len(rows)
        for job in ready:
            if job.todo and job.stage is Stage.RUN and budget > 0:
                size = job.slice_end(self._chunk, budget)
                tokens = job.todo[:size]
                last = size == len(job.todo)
                wanted = last and job.pending is None and (job.generates or bool(self._policy))
                rows.append((job, Row(job.slot, len(job.ledger), tokens, wanted)))
                budget -= size
        return rows

    def _evaluate(self, rows: list[tuple[Job, Row]]) -> None:
        while rows:
            try:
                self._backend.step([row for _, row in rows])
            except NoSlot:
                if not self._make_room():
                    self._fail(rows[0][0], "context_overflow", "the context is full")
                rows = self._batch()
            except StepFailed as error:
                self._isolate(rows, error)
                return
            else:
                self._apply(rows)
                return

    def _make_room(self) -> bool:
        """Preempt the youngest of several; return whether that freed cells."""
        active = self._active()
        closing = [j for j in active if j.stage is Stage.CLOSING]
        if len(active) < 2:
            return False
        if closing:
            # Its reply is out: only the finish row is lost.
            self._release(closing[0])
            return True
        self._preempt(max(active, key=lambda j: j.order))
        return True

    def _preempt(self, job: Job) -> None:
        if job.restore:
            self._drop_restore(job)
        elif self._recorder:
            self._recorder.capture_blocks(job)
        self._give_up_slot(job)
        job.todo = job.ledger + job.todo
        job.ledger = array("I")
        job.slices.clear()
        job.captured = 0
        job.cold_row = None
        job.preempted = True
        job.stage = Stage.QUEUED
        self._queue.appendleft(job)

    def _isolate(self, rows: list[tuple[Job, Row]], error: StepFailed) -> None:
        """After a failed batch: fail only the requests whose row fails alone."""
        for job, row in rows:
            intact = self._backend.length(job.slot) == row.pos
            if len(rows) == 1 or not (intact or self._backend.truncate(job.slot, row.pos)):
                self._fail(job, error.reason, error.detail)
                continue
            try:
                self._backend.step([row])
            except BackendError as alone:
                self._fail(job, alone.reason, alone.detail)
            else:
                self._apply([(job, row)])

    def _apply(self, rows: list[tuple[Job, Row]]) -> None:
        """Take in a step's results: tokens go out first, captures follow."""
        for index, (job, row) in enumerate(rows):
            size = len(row.tokens)
            job.ledger.extend(row.tokens)
            if job.todo:
                job.slices.append((row.pos, row.pos + size))
                job.todo = job.todo[size:]
            else:
                job.pending = None
            if job.stage is Stage.RUN and not job.todo and job.pending is None:
                self._prompt_done(job, index)
        for index, (job, row) in enumerate(rows):
            if job.active and self._recorder:
                self._recorder.capture_blocks(job)
                self._recorder.save_due_rows(job, index if row.logits else None)
            if job.active and job.stage is Stage.CLOSING and job.pending is None:
                self._close(job, index if row.logits else None)

    def _prompt_done(self, job: Job, index: int) -> None:
        """A row's logits are there: draw from them, or end what wants no tokens."""
        if not job.generates:
            self._finish_prompt(job)
            return
        job.prefilled = job.prefilled or time.monotonic()
        self._take(job, lambda sampler: self._backend.sample(sampler, index))

    def _sample_stored(self, job: Job, logits: memoryview) -> None:
        """Draw the first token from logits that were saved with a row."""
        job.prefilled = job.prefilled or time.monotonic()
        self._take(job, lambda sampler: self._backend.sample_stored(sampler, logits))

    def _finish_prompt(self, job: Job) -> None:
        """End a request that wants nothing generated."""
        job.prefilled = job.prefilled or time.monotonic()
        self._finish(job, "stop" if job.mode == "prefill_only" else "length")

    def _take(self, job: Job, draw: Callable[[Sampler], int]) -> None:
        """Draw a token, send it, and end the request if it was the last."""
        assert job.sampler is not None
        try:
            token = draw(job.sampler)
        except BackendError as error:  # such as a grammar that no token can follow
            self._fail(job, error.reason, error.detail)
            return
        job.pending = token
        job.generated.append(token)
        streamed = job.mode == "infer"
        text = b""
        if streamed or job.stops.active:
            text = job.stops.feed(self._backend.piece(token))
        self._out.put(Token(job.id, text if streamed else b"", token))
        if job.stops.matched is not None:
            self._finish(job, "stop")
        elif len(job.generated) >= job.target:
            self._finish(job, "length")
        elif self._backend.is_eog(token):
            self._finish(job, "stop")

    # -- the end of a request ----------------------------------------------------------------

    def _finish(self, job: Job, reason: str) -> None:
        """Send the reply; what is left to store follows in CLOSING."""
        if job.mode == "infer" and job.stops.matched is None:
            held = job.stops.flush()
            if held:
                self._out.put(Token(job.id, held, None))
        reply = b""
        if job.mode == "complete":
            reply = cut_at(self._backend.detokenize(job.generated), job.stops.matched)
        # Mid-prefill, what counts is what is in the KV; later, all that was said.
        complete = not job.todo or job.pending is not None
        committed = job.cells() if complete else len(job.ledger)
        saving = bool(
            self._policy
            and job.active
            and job.stage is not Stage.LOOKUP
            and should_finish_save(committed, self._policy)
        )
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
            )
        )
        job.stage = Stage.CLOSING
        if not saving:
            self._release(job)
        elif not complete:
            if job.restore is None:
                self._close(job, None)
            else:
                self._release(job)

    def _fail(self, job: Job, reason: object, detail: str) -> None:
        if job.stage is not Stage.CLOSING:
            self._out.put(Failed(job.id, reason, detail))
        self._release(job)

    def _close(self, job: Job, logits_row: int | None) -> None:
        """Store the finish row and give everything back."""
        if self._recorder and self._policy and should_finish_save(len(job.ledger), self._policy):
            self._recorder.capture_blocks(job)
            self._recorder.save(job, "finish", len(job.ledger), logits_row)
        self._release(job)

    def _release(self, job: Job) -> None:
        self._drop_restore(job)
        if job.sampler:
            job.sampler.close()
        if job.active:
            self._give_up_slot(job)
        self._jobs.pop(job.id, None)
        self._out.put(Closed(job.id))

    def _give_up_slot(self, job: Job) -> None:
        self._backend.clear(job.slot)
        del self._running[job.slot]
        self._slots.append(job.slot)
        job.slot = -1
