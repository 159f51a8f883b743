"""The engine thread: ticks, batches, captures and failures.

One *tick* is one call of the backend's ``step``: first a decode row for every sequence
that has a token pending, then prefill slices while the batch has room.  Decoding first
keeps running streams smooth; a slice is at most one chunk, so no prompt holds up the
others for longer than that.

Rules that everything here keeps (docs/design/scheduler.md):

* FIFO (see ``admission``).
* A request that fits into the context alone never fails for want of cells: parked
  sequences are dropped, then the youngest other request is preempted, goes to the front
  of the queue, and resumes from its captured blocks.
* A tick waits for no I/O, no hashing and no frame: plans arrive verified, captures are
  checksummed by the outbox's thread.
* The ledger's length equals the engine's own count before anything is captured.

Nothing here knows llama.cpp or the core: it speaks to a
:class:`~erllama_py._backends.base.Backend` and puts frames into an outbox.

The scheduler is built in layers that call downwards only: replies and their end, plans
into sequences (``resuming``), the queue (``admission``), and the ticks, here.
"""

from __future__ import annotations

import contextlib
import threading
import time

from erllama_py._backends.base import Backend, BackendError, NoSlot, Row, StepFailed
from erllama_py._cache.policy import Policy
from erllama_py._engine.admission import EARLY, Admission
from erllama_py._engine.channel import Sink
from erllama_py._engine.frames import Phase
from erllama_py._engine.job import Job, Stage
from erllama_py._engine.mailbox import Mailbox
from erllama_py._engine.sharedkv import SharedKv

__all__ = ("Scheduler",)

GRACE_S = 0.010
"""How long a step that only stores waits for a request: one right behind a reply comes
within a millisecond or two, and would else wait for the step."""

PLAN_WAIT_S = 0.002
"""How long such a step waits for the plan of one that has come."""


class Scheduler(Admission):
    """Everything about requests that happens on the engine thread."""

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
        """See :class:`~erllama_py._engine.replies.Replies`."""
        super().__init__(backend, kv, out, policy, chunk, parking=parking)
        self.mailbox = Mailbox()
        self.ended = threading.Event()
        """Set when the loop has ended."""
        self._cancelled = []
        self._steps = 0
        self._phase = "idle"
        self._stopped = False

    def stop(self) -> None:
        """End the loop before the next tick; rows of replies that are out are stored."""
        self._stopped = True

    @property
    def busy(self) -> bool:
        """Whether requests are computing or about to; any thread may ask."""
        return self._phase != "idle"

    def save_live(self, reason: str) -> None:
        """Save the contexts of running requests as rows; ``evict`` frees their KV, too.

        Between two ticks.  A request whose reply is out leaves its finish row anyway;
        one that is just being restored has nothing that is not stored.
        """
        running = [j for j in self._slots.active() if j.stage is Stage.RUN and j.ledger]
        saved = []
        for job in running:
            recorder = self._recorder_of(job)
            if recorder is not None:
                recorder.capture_blocks(job)
                recorder.save(job, reason, len(job.ledger), None)
                if recorder.holds(job) and not job.options.bit:
                    saved.append(job)
        if reason != "evict":
            return
        # The youngest first, so that the oldest is first in the queue.  At ``bit`` a reply
        # has to be decoded in one go: computed again it would be a prefill, with other
        # last bits.
        for job in sorted(saved, key=lambda one: -one.order):
            self._preempt(job)
        while self._slots.drop_parked():
            pass

    # -- the loop -----------------------------------------------------------------------

    def run(self) -> None:
        """Tick until stopped."""
        wait_s: float | None = None
        try:
            while not self._stopped:
                self.mailbox.drain(wait_s)
                if not self._stopped:
                    wait_s = self.tick()
            self._store_replies()
        finally:
            self.ended.set()

    def tick(self) -> float | None:
        """Do one round; return how long to wait for news: seconds, or ``None`` for ever."""
        self._end_cancelled()
        self._dispatch()
        moved = self._restore_all()
        if self._lacking:
            # Others took the cells that it was admitted with.  They make room as for a step.
            moved = self._make_room()
        self._report_phase()
        self._guessing.prove(self._slots.active())
        rows = self._batch()
        grace = 0.0 if moved else self._grace(rows)
        if grace > 0:
            return grace
        if rows:
            self._evaluate(rows)
        self._report_phase()
        return 0.0 if rows or moved else None

    def _grace(self, rows: list[tuple[Job, Row]]) -> float:
        """Seconds for which a step that only stores what was said may still wait.

        Its request has its reply.  Another that comes now may need nothing of the step,
        but has to be told so by the core before it begins.
        """
        if not rows or any(job.stage is not Stage.CLOSING for job, _ in rows):
            return 0.0
        now = time.monotonic()
        for job in self._queue:
            if job.stage is Stage.LOOKUP:
                return job.asked + PLAN_WAIT_S - now
            if job.stage is not Stage.CLOSING:
                return 0.0
        if len(self._queue) >= EARLY:
            return 0.0
        return min(job.closing for job, _ in rows) + GRACE_S - now

    def _store_replies(self) -> None:
        """Store what follows replies that are out, before the end."""
        rows = [(job, row) for job, row in self._batch() if job.stage is Stage.CLOSING]
        if rows:
            self._evaluate(rows)

    def _report_phase(self) -> None:
        working = [j for j in self._slots.running.values() if j.stage is not Stage.CLOSING]
        working += [j for j in self._queue if j.stage in (Stage.LOOKUP, Stage.RESTORE)]
        working = [job for job in working if not job.transfers]
        if not working:
            phase = "idle"
        else:
            phase = "prefilling" if any(j.prefilling for j in working) else "generating"
        if phase != self._phase:
            self._phase = phase
            self._out.put(Phase(phase))

    # -- the batch --------------------------------------------------------------------------

    def _batch(self) -> list[tuple[Job, Row]]:
        """Rows of the next step: pending tokens first, then prefill slices."""
        budget = self._backend.info.n_batch
        rows: list[tuple[Job, Row]] = []
        ready = [
            j
            for j in self._slots.active()
            if j.stage in (Stage.RUN, Stage.CLOSING) and j.restore is None
        ]
        if len(ready) > budget:
            # More requests than the batch has tokens: the ones served longest ago go first.
            ready = sorted(ready, key=lambda j: j.served)[:budget]
        decoders = [j for j in ready if not j.todo and j.pending is not None]
        drafted = self._guessing.draft(ready, decoders)
        if drafted:
            # Last, so that the cells of what is wrong of it are the last: others' next
            # tokens would else lie before their earlier ones, and be added up in that order.
            decoders = [job for job in decoders if job is not drafted.job] + [drafted.job]
        for job in decoders:
            assert job.pending is not None
            wanted = job.stage is Stage.RUN or job.capturing
            tokens = [job.pending]
            if drafted and job is drafted.job:
                tokens += drafted.tokens
            row = Row(job.slot, len(job.ledger), tokens, wanted, every=len(tokens) > 1)
            rows.append((job, row))
            budget -= len(tokens)
        # In the order of admission: by slots, whoever comes into a low one would go first.
        for job in sorted(ready, key=lambda j: j.order):
            if job.todo and job.stage is Stage.RUN and budget > 0:
                size = job.slice_end(self._chunk, budget)
                last = size == len(job.todo)
                wanted = last and job.pending is None
                wanted = wanted and (job.generates or job.cached or job.verifies)
                rows.append((job, Row(job.slot, len(job.ledger), job.todo[:size], wanted)))
                budget -= size
        return rows

    def _evaluate(self, rows: list[tuple[Job, Row]]) -> None:
        while rows:
            began = time.perf_counter_ns()
            try:
                self._backend.step([row for _, row in rows])
            except NoSlot:
                self._guessing.paused = True
                if not any(row.every for _, row in rows) and not self._make_room():
                    self._fail(rows[0][0], "context_overflow", "the context is full")
                rows = self._batch()
            except StepFailed as error:
                self._isolate(rows, error)
                return
            else:
                took_ns = time.perf_counter_ns() - began
                self._measure(rows, took_ns)
                self._apply(rows, took_ns)
                return

    def _measure(self, rows: list[tuple[Job, Row]], took_ns: int) -> None:
        if any(row.every for _, row in rows):
            return
        if all(not job.todo for job, _ in rows):
            self._measures.decoded(took_ns)
        elif len(rows) == 1:
            job, row = rows[0]
            job.prefill_ns += took_ns
            job.prefill_tokens += len(row.tokens)

    def _apply(self, rows: list[tuple[Job, Row]], took_ns: int) -> None:
        """Take in a step's results: tokens go out first, captures follow."""
        # A verify may evaluate more, and no token waits for that.
        verifies = any(job.verifies for job, _ in rows)
        self._steps += 1
        for job, _ in rows:
            job.served = self._steps
        with contextlib.nullcontext() if verifies else self._out.together():
            self._take_in(rows, took_ns)
        for index, (job, row) in enumerate(rows):
            recorder = self._recorder_of(job)
            if job.active and recorder:
                recorder.capture_blocks(job)
                # Of a row with a draft, the last logits need not be those of what is kept.
                last = row.logits and not row.every
                recorder.save_due_rows(job, index if last else None)
            if job.active and job.stage is Stage.CLOSING and job.pending is None:
                self._close(job, index if row.logits else None)

    def _take_in(self, rows: list[tuple[Job, Row]], took_ns: int) -> None:
        """Note what was evaluated, and draw what follows."""
        for index, (job, row) in enumerate(rows):
            if row.every:
                self._check_draft(job, row, index, took_ns)
                continue
            size = len(row.tokens)
            job.ledger.extend(row.tokens)
            self._slots.measure(job)
            if job.todo:
                job.slices.append((row.pos, row.pos + size))
                job.todo = job.todo[size:]
            else:
                job.pending = None
                self._guessing.stepped(job, index, took_ns)
            if job.stage is Stage.RUN and not job.todo and job.pending is None:
                self._prompt_done(job, index)

    def _check_draft(self, job: Job, row: Row, index: int, took_ns: int) -> None:
        """Take the tokens that a row with a draft gives, and cut off what is wrong of it."""
        first, *draft = row.tokens
        job.ledger.append(first)
        right = self._guessing.check(job, draft, index, took_ns)
        while right:
            token = right.pop(0)
            self._take(job, lambda _, token=token: token, lambda _: None)  # type: ignore[misc]
            if job.stage is not Stage.RUN:
                break  # it is over; its last token is evaluated as if it had been drawn alone
            if right:
                job.ledger.append(token)
                job.pending = None
        if job.active and not self._slots.truncate(job.slot, len(job.ledger)):
            # The sequence is of no use any more.  Its blocks are in the cache.
            if job.stage is Stage.RUN:
                job.speculation = None
                self._preempt(job)
            else:
                self._release(job)

    # -- failures ---------------------------------------------------------------------------

    def _make_room(self) -> bool:
        """Free cells: parked ones, else of the youngest of several; whether that was possible."""
        if self._slots.drop_parked():
            return True
        active = self._slots.active()
        closing = [j for j in active if j.stage is Stage.CLOSING]
        if len(active) < 2:
            return False
        if closing:
            # Its reply is out: only the finish row is lost.
            self._release(closing[0])
            return True
        self._preempt(max(active, key=lambda j: j.order))
        return True

    def _isolate(self, rows: list[tuple[Job, Row]], error: StepFailed) -> None:
        """After a failed batch: fail only the requests whose row fails alone."""
        for job, row in rows:
            intact = self._backend.length(job.slot) == row.pos
            if row.every:
                row = Row(row.seq, row.pos, row.tokens[:1], row.logits)  # noqa: PLW2901
            elif len(rows) == 1:
                self._fail(job, error.reason, error.detail)
                continue
            if not (intact or self._slots.truncate(job.slot, row.pos)):
                self._fail(job, error.reason, error.detail)
                continue
            try:
                self._backend.step([row])
            except BackendError as alone:
                self._fail(job, alone.reason, alone.detail)
            else:
                self._apply([(job, row)], 0)
