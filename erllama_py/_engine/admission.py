"""The queue: who gets a slot, and when it may ask the cache.

First in, first out: nothing overtakes the head.  It is admitted when a slot and its
cells are free; parked sequences make room for it.  Five rules shape that:

* A request with exactness ``bit`` computes alone: it waits for the others to drain, and
  nothing is admitted beside it.
* *One head, one prefill*: what another job is just prefilling is waited for, not
  prefilled twice.
* A request whose *session* has its sequence in the context goes on in that, and needs no
  slot but its own.  So it overtakes one that waits for its head.  It overtakes nobody else:
  who waits for cells, or for all others to drain, would wait for ever behind a session that
  never pauses.
* A context computes with one set of adapters at a time: a request with another than the
  running ones waits for them to drain.
* While slots only *close* (their replies are out, and a last token and a row remain to
  be stored), the head asks the cache already.  A request right behind a reply then has
  its first token without waiting for a step of which it needs nothing.
"""

from __future__ import annotations

import time
from array import array

from erllama_py._backends.base import BLOCK
from erllama_py._engine.adapterset import AdapterSet
from erllama_py._engine.frames import Lookup
from erllama_py._engine.guessing import speculation_of
from erllama_py._engine.job import Job, Stage
from erllama_py._engine.resuming import Resuming
from erllama_py._engine.slots import common

__all__ = ("Admission",)

HEADROOM = 64
"""Free cells beyond the prompt that admission asks for, so that a fresh request does
not preempt another with its first tokens."""

EARLY = 8
"""Requests that may have asked before they have a slot: all but the last are over, and
only their finish rows are to come."""


class Admission(Resuming):
    """The queue and its rules."""

    _cancelled: list[Job]
    _admissions = 0

    # -- called by the control thread through the mailbox ------------------------------

    def submit(self, job: Job) -> None:
        """Queue a checked request."""
        job.cached = self._policy is not None and job.options.cached
        if job.verifies and not (self._backend.info.blocks and job.prompt_len > self._chunk):
            job.cached = False  # its last cut is always computed: there is nothing to restore
        job.capturing = job.cached
        job.speculation = speculation_of(job, self._backend, self._guessing.costs)
        self._jobs[job.id] = job
        self._queue.append(job)

    def cancel(self, number: int) -> None:
        """Stop a request; unknown and finished ones are ignored."""
        if job := self._jobs.get(number):
            self._cancelled.append(job)

    def drafted(self, number: int, length: int, tokens: array[int]) -> None:
        """Take another model's draft for a request; it may be over."""
        if job := self._jobs.get(number):
            self._guessing.offered(job, length, tokens)

    def adapt(self, adapters: AdapterSet) -> None:
        """Let requests admitted from now on compute with these adapters.

        :raises BackendError: nothing has changed.
        """
        idle = not self._slots.running
        if idle:
            self._drop_all_parked()
        self._adapters.change(adapters, tried=idle)

    def end_session(self, session: int) -> None:
        """Keep nothing for a session any more; its number is not used again."""
        self._slots.end(session)
        for job in self._jobs.values():
            if job.session == session:
                job.session = 0

    # -- every tick --------------------------------------------------------------------------

    def _end_cancelled(self) -> None:
        for job in self._cancelled:
            if job.id not in self._jobs or job.stage is Stage.CLOSING:
                continue
            if job.transfers:
                self._fail(job, "cancelled", "")
                continue
            job.begin(time.monotonic())
            self._admit(job, "sticky" if job.held else "cold", job.held)
            self._finish(job, "cancelled")
        self._cancelled.clear()

    def _dispatch(self) -> None:
        if self._adapters.surplus:
            self._free_adapters()
        for job in [one for one in self._queue if one.stage is Stage.CLOSING]:
            self._end_repeat(job)
        self._end_diverged()
        while self._queue and self._may_start(self._queue[0]):
            self._start(self._queue.popleft())
        if self._queue and self._queue[0].awaits is not None:
            for job in [one for one in self._queue if self._slots.goes_on(one)]:
                if self._may_start(job):
                    self._queue.remove(job)
                    self._start(job)
        self._ask_early()

    def _end_diverged(self) -> None:
        """Let go of sessions whose next request cannot go on in their sequence."""
        for job in self._queue:
            if self._slots.kept(job.session) and not self._slots.goes_on(job):
                self._slots.end(job.session)

    def _follows(self, job: Job) -> bool:
        """Whether the request of its session before it has something left to store."""
        return bool(job.session) and any(
            one.session == job.session and one.stage is Stage.CLOSING
            for one in self._jobs.values()
            if one is not job
        )

    def _free_adapters(self) -> None:
        """Free adapters that were detached, once no request uses them."""
        if not self._slots.running:
            self._drop_all_parked()
            self._adapters.switch(self._adapters.coming)
        used = [job.adapters for job in self._jobs.values() if job.adapters is not None]
        self._adapters.free_all_but(used)

    # -- slots ---------------------------------------------------------------------------------

    def _may_start(self, job: Job) -> bool:
        active = self._slots.active()
        if not self._slots.free or any(one.options.bit for one in active):
            return False
        if job.stage is not Stage.CLOSING and self._follows(job):
            return False
        if active and all(one.stage is Stage.CLOSING for one in active):
            # Each is a step from its end.  Beside them a request would have other last bits
            # than alone, and with a seed say something else each time.
            return False
        if job.options.bit:
            if active:
                return False
            self._drop_all_parked()
        if not self._has_adapters(job, active):
            return False
        if self._waits_for_its_head(job, active):
            return False
        return self._has_cells(job, alone=not active)

    def _has_adapters(self, job: Job, active: list[Job]) -> bool:
        """Whether the context computes with a job's adapters, or does from now on."""
        if job.transfers:  # it computes nothing
            return True
        wanted = self._adapters.coming if job.adapters is None else job.adapters
        if wanted != self._adapters.present:
            if active:
                return False
            # What is parked was computed with others, and is nothing to go on from.
            self._drop_all_parked()
            self._adapters.switch(wanted)
        return True

    def _drop_all_parked(self) -> None:
        while self._slots.drop_parked():
            pass

    def _has_cells(self, job: Job, *, alone: bool) -> bool:
        """Whether there are cells for a job, or can be without the parked sequences."""
        n_ctx = self._backend.info.n_ctx
        if not alone and self._slots.wanted(job, HEADROOM, parked=False) > n_ctx:
            return False  # it waits for those that run, and nothing parked goes for that
        while self._slots.wanted(job, HEADROOM) > n_ctx:
            if not self._slots.drop_parked(spare=self._slots.like(job)):
                return alone
        return True

    def _waits_for_its_head(self, job: Job, active: list[Job]) -> bool:
        """Whether another is about to compute what this job's prompt begins with.

        Then the lookup comes when that is done, and finds it.
        """
        if job.options.bit or not job.cached or job.stage is not Stage.QUEUED:
            return False
        if self._slots.goes_on(job):
            return False
        if job.awaits is None:
            job.awaits = self._head_in_progress(job, active)
        if job.awaits is None:
            return False
        other, upto = job.awaits
        if other.active and other.capturing and other.prefilling and len(other.ledger) < upto:
            return True
        job.awaits = None
        return self._waits_for_its_head(job, active)

    def _head_in_progress(self, job: Job, active: list[Job]) -> tuple[Job, int] | None:
        """Return who computes at least a block of this job's head, and up to where."""
        assert self._policy is not None
        for other in active:
            if not other.prefilling or not other.capturing or other.options.bit:
                continue
            done = len(other.ledger)
            if other.restore is not None:
                done = other.restore.keep
            tokens = other.ledger + other.todo
            shared = common(tokens, job.todo) // BLOCK * BLOCK
            if shared - done >= BLOCK and shared >= self._policy.min_tokens:
                return other, shared
        return None

    def _start(self, job: Job) -> None:
        """Give a job its slot."""
        active = self._slots.active()
        self._set_of(job)
        alone = not active and not self._slots.parked
        job.canonical = alone and self._adapters.reproducible
        self._slots.take(job)
        for other in active:
            other.canonical = False
        self._admissions += 1
        job.order = self._admissions
        if job.restore is not None:
            self._place(job)
        elif job.stage is Stage.QUEUED:
            if job.held:
                self._go_on_in_session(job)
            self._ask(job)

    def _ask(self, job: Job) -> None:
        now = time.monotonic()
        job.begin(now)
        if not (job.cached or job.transfers):
            if job.held:
                self._run_on(job, 0)
            else:
                self._go_on_cold(job)
            return
        job.stage = Stage.LOOKUP
        job.asked = now
        resume = job.context().tobytes() if job.preempted else None
        self._out.put(Lookup(job.id, resume, self._set_of(job).number, job.held))

    # -- before there is a slot ------------------------------------------------------------------

    def _ask_early(self) -> None:
        closing = self._slots.active()
        if not closing or any(job.stage is not Stage.CLOSING for job in closing):
            return
        for place, job in enumerate(self._queue):
            if job.stage is Stage.CLOSING:
                closing.append(job)
                continue
            if place < EARLY and job.stage is Stage.QUEUED and self._knows_enough(job, closing):
                self._ask(job)
            return

    def _knows_enough(self, job: Job, closing: list[Job]) -> bool:
        """Whether what is yet to be stored would not change the answer to a lookup."""
        if not job.cached or job.preempted or job.asked:
            return False
        if self._slots.kept(job.session) or self._follows(job):
            return False
        return all(common(one.context(), job.todo) <= one.stored for one in closing if one.cached)

    # -- back into the queue -----------------------------------------------------------------------

    def _preempt(self, job: Job) -> None:
        if job.transfers:  # nobody waits for its tokens: whoever asked may ask again
            self._fail(job, "busy", "running requests needed the cells")
            return
        if job.restore:
            self._drop_restore(job)
        elif job.ledger and (recorder := self._recorder_of(job)):
            # Without a ledger it waits for its plan, and what its slot has is another's.
            recorder.before_preempting(job)
        self._slots.give_up(job)
        job.todo = job.ledger + job.todo
        job.ledger = array("I")
        job.slices.clear()
        job.captured = job.inherited = 0
        # What had not been told how it was admitted asks as if it were new.
        job.preempted = job.admitted or not job.held
        if not job.preempted:
            job.capturing = job.cached
        job.held = 0
        job.stage = Stage.QUEUED
        self._queue.appendleft(job)
