"""From the core's plan to a sequence that can go on.

A plan may come before its job has a slot: then its first token is drawn all the same,
where its logits are stored, and the rest waits.  What another sequence of the context
has already is shared from there, which is metadata only; pieces are restored for the
rest.
"""

from __future__ import annotations

from erllama_py._backends.base import BLOCK, BackendError, NoSlot
from erllama_py._engine.frames import Restored
from erllama_py._engine.job import Job, Stage
from erllama_py._engine.packing import bounds, pack_parts
from erllama_py._engine.replies import Replies
from erllama_py._engine.restore import BadPiece, Restore

__all__ = ("Resuming",)

RESTORE_BYTES = 64 << 20
"""Bytes restored between two ticks while others run: about 5 ms of copying."""


class Resuming(Replies):
    """Plans, and what becomes of them."""

    _lacking = False
    """A verified piece found no free cells in this tick."""

    def plan(self, number: int, restore: Restore) -> None:
        """Take the answer to a lookup."""
        job = self._jobs.get(number)
        if job is None or job.stage is not Stage.LOOKUP:
            restore.drop()
            self._out.put(Restored(number, [], corrupt=False, load_ns=0))
            return
        plan = restore.plan
        if (plan.kind == "sticky") != bool(job.held):
            restore.drop()  # of before it was preempted
            return
        if job.held:
            restore.drop()
            self._run_on(job, plan.captured)
            return
        job.stage = Stage.RESTORE
        job.restore = restore
        if job.transfers and not plan.pieces:
            self._fail(job, "not_found", "the row was evicted meanwhile")
            return
        job.exact = plan.kind == "exact"
        job.last_save = max(job.last_save, plan.prefix_len)
        fresh = job.generates and job.pending is None
        if job.verifies:
            self._leave_last_cut(job, restore)
        if restore.logits is not None and fresh:
            # The stored logits are all that the first token needs: it goes out before
            # a byte of KV is restored.
            self._admit(job, plan.kind, plan.prefix_len)
            self._sample_stored(job, restore.logits)
        elif restore.keep == len(job.todo) and fresh:
            # The logits were damaged: the last token is decoded again, where the
            # sequence can be cut for that.  At bit all of the last cut is: a token that
            # is computed alone has other last bits than in it.
            if self._backend.info.blocks and job.options.bit:
                self._leave_last_cut(job, restore)
                job.last_save = min(job.last_save, restore.keep)  # the row wants logits
            elif self._backend.info.blocks:
                restore.keep -= 1
            else:
                self._forgo(job)
        elif restore.keep > len(job.todo):
            # It was preempted with a token drawn but not evaluated, and somebody else has
            # stored that one, too.
            if self._backend.info.blocks:
                restore.keep = len(job.todo)
            else:
                self._forgo(job)
        if job.active and job.restore is not None:
            self._place(job)

    # -- sessions ----------------------------------------------------------------------------

    def _go_on_in_session(self, job: Job) -> None:
        """Make the sequence of its session a job's own.

        A prompt of nothing else has its last token computed again, for its logits.  Where
        a sequence cannot be cut for that it goes, and the job the usual way.
        """
        have, job.inherited = job.held, 0
        if have == job.prompt_len and job.generates:
            have -= 1
            if not (have and self._slots.truncate(job.slot, have)):
                self._slots.clear(job.slot)
                job.held = 0
                return
        job.canonical = False
        job.ledger, job.todo = job.todo[:have], job.todo[have:]
        job.capturing = False  # until it is known from where on

    def _run_on(self, job: Job, captured: int) -> None:
        """Admit a job that goes on in the sequence of its session.

        :param captured: leading tokens that need no capture.
        """
        job.captured = min(captured, len(job.ledger)) // BLOCK * BLOCK
        job.capturing = job.cached
        job.last_save = job.held
        job.stage = Stage.RUN
        self._admit(job, "sticky", job.held)
        self._slots.origins.begin(job.slot, len(job.ledger))
        self._end_if_done(job)

    def _end_if_done(self, job: Job) -> None:
        """End a job that has nothing to compute and wants no tokens."""
        if not job.todo and not job.generates:
            self._finish_prompt(job)
            if job.active:  # no step will come by to close it
                self._close(job, None)

    def _leave_last_cut(self, job: Job, restore: Restore) -> None:
        """Have the last cut computed, as it is cold: the logits' bits are needed."""
        keep = (len(job.todo) - 1) // self._chunk * self._chunk
        if restore.keep > keep:
            restore.keep = keep
            if not keep:
                self._forgo(job)

    def _place(self, job: Job) -> None:
        """A job has a plan and a slot: take over what the context has of its tokens."""
        restore = job.restore
        assert restore is not None
        if restore.plan.pieces:
            job.canonical = job.canonical and restore.plan.canonical
        have = 0
        shares = job.cached and not job.options.bit and self._backend.info.blocks
        if restore.plan.pieces and shares:
            have = self._take_over(job, restore)
        if not have:
            self._clear_inherited(job)
        restore.skip(have)

    def _take_over(self, job: Job, restore: Restore) -> int:
        """Give the job's slot a head from the context; return its length."""
        own = restore.whole(min(job.inherited, restore.keep))
        live = self._slots.live(job)
        other = restore.whole(min(live.tokens, restore.keep)) if live else 0
        if own and own >= other and self._slots.truncate(job.slot, own):
            return own
        self._clear_inherited(job)
        if live and other and self._slots.share(live.slot, job.slot, other):
            return other
        return 0

    def _clear_inherited(self, job: Job) -> None:
        if job.inherited:
            self._slots.clear(job.slot)
            job.inherited = 0

    def _forgo(self, job: Job) -> None:
        """A plan is of no use: go on cold, or ask again with a slot to go on in."""
        self._drop_restore(job)
        if job.active:
            self._go_on_cold(job)
        else:
            job.exact = False
            job.last_save = 0
            job.stage = Stage.QUEUED

    def _go_on_cold(self, job: Job) -> None:
        """Start from nothing: no plan, or one that could not be restored."""
        self._slots.clear(job.slot)
        self._slots.origins.begin(job.slot, 0)
        job.inherited = job.captured = job.last_save = 0
        job.exact = False
        job.stage = Stage.RUN
        self._admit(job, "cold", 0)

    # -- every tick --------------------------------------------------------------------------

    def _restore_all(self) -> bool:
        running = self._slots.active()
        budget = None if len(running) == 1 else RESTORE_BYTES
        self._lacking = False
        moved = [self._restore(job, job.restore, budget) for job in running if job.restore]
        return any(moved)

    def _restore(self, job: Job, restore: Restore, budget: int | None) -> bool:
        """Move verified pieces into the sequence; return whether anything changed."""
        try:
            moved = restore.advance(self._backend, job.slot, budget, self._room_beside())
            if not restore.complete:
                return moved
            restore.cut(self._backend, job.slot)
            if not restore.complete:
                return True
        except NoSlot:
            self._lacking = job.crowded = True
        except BadPiece as bad:
            self._restore_failed(job, bad)
        else:
            self._restored(job, restore)
        finally:
            if job.active:
                self._slots.measure(job)
        return True

    def _room_beside(self) -> int | None:
        """Return how many cells are free; ``None`` where a job has the context alone."""
        if len(self._slots.running) == 1 and not self._slots.parked:
            return None
        return self._backend.info.n_ctx - self._slots.used()

    def _restored(self, job: Job, restore: Restore) -> None:
        """The sequence is what it should be: go on from there."""
        plan, keep = restore.plan, restore.keep
        self._slots.measure(job)  # it may end here, and leave its slot to others
        for start, origin in restore.put_in():
            self._slots.origins.put(job.slot, start, origin)
        self._drop_restore(job)
        self._slots.origins.begin(job.slot, keep)
        exactly = job.verifies or (job.options.bit and keep < plan.keep)
        if exactly and keep % self._chunk and job.stage is not Stage.CLOSING:
            # A sliding window could not be cut at the chunk: other cuts have other bits.
            job.canonical = len(self._slots.running) == 1 and not self._slots.parked
            self._go_on_cold(job)
            return
        job.ledger, job.todo = job.todo[:keep], job.todo[keep:]
        if job.transfers:
            self._hand_over(job)
            return
        job.captured = min(plan.captured, keep) // BLOCK * BLOCK if keep else plan.captured
        if keep:
            job.canonical = job.canonical and keep % self._chunk == 0
        if job.stage is Stage.CLOSING:
            if job.todo:
                self._release(job)  # the reply is out, and its KV is not worth a prefill
            return
        job.stage = Stage.RUN
        # Less the last token counts as whole: its logits were damaged, not its KV.
        if keep and keep >= plan.keep - 1:
            self._admit(job, plan.kind, plan.prefix_len)
        else:
            self._admit(job, "partial" if keep else "cold", keep)
        self._end_if_done(job)

    def _restore_failed(self, job: Job, bad: BadPiece) -> None:
        """Report the bad node and go on cold, with an empty sequence."""
        if job.transfers:
            self._transfer_failed(job, bad)
            return
        self._drop_restore(job, bad)
        if job.stage is Stage.CLOSING:
            self._release(job)
            return
        alone = len(self._slots.running) == 1 and not self._slots.parked
        job.canonical = alone and self._adapters.reproducible
        self._go_on_cold(job)

    # -- transfers ---------------------------------------------------------------------------

    def _hand_over(self, job: Job) -> None:
        """A transfer's sequence is whole: pack it as it is wanted, and let it go."""
        length, info = job.prompt_len, self._backend.info
        divides = info.blocks and (length <= info.n_swa or not info.n_swa)
        if job.todo or self._backend.length(job.slot) != length:
            self._fail(job, "window", "only part of the row could be restored")
            return
        try:
            cuts = bounds(length, BLOCK if divides and job.mode == "import" else length)
            packed = pack_parts(self._backend, job.slot, cuts)
        except BackendError as error:
            self._fail(job, error.reason, error.detail)
            return
        number = job.id
        self._out.defer(lambda: packed.frame(number), packed.fd)
        self._release(job)

    def _transfer_failed(self, job: Job, bad: BadPiece) -> None:
        """A transfer's piece is damaged, or was refused, maybe only for want of cells."""
        self._slots.clear(job.slot)
        if bad.corrupt:
            reason, detail = "damaged", "the payload is not what its checksum says"
        elif self._slots.used() + job.prompt_len > self._backend.info.n_ctx:
            reason, detail = "busy", f"there are no cells for its {job.prompt_len} tokens now"
        else:
            reason, detail = "rejected", f"the engine does not take this payload: {bad.__cause__}"
        self._drop_restore(job, None if reason == "busy" else bad)
        self._fail(job, reason, detail)
