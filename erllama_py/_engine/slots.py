"""Slots: which sequence is whose, which are parked, and the cells they take.

A *parked* sequence is that of a request which is over: its cells stay until somebody
needs the slot or the cells.  A request whose prompt begins like it goes on from there,
without restoring anything.

A parked sequence may be a *session's*.  Then it waits for that session's next request
and is nobody else's to go on in; others may share its head.  It goes when all that is
parked otherwise has gone and room is still wanted, the one that was used longest ago
first.  So sessions hold up nobody.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import NamedTuple

from erllama_py._backends.base import BLOCK, Backend
from erllama_py._engine.cells import Cells
from erllama_py._engine.job import Job, Stage
from erllama_py._engine.origins import Origins

__all__ = ("Head", "Slots", "common")


class Head(NamedTuple):
    """Tokens that a sequence of the context has in common with a request."""

    slot: int
    tokens: int


class Slots:
    """The sequences of a context.

    :param ended: called with a session whose sequence is gone.
    """

    def __init__(self, backend: Backend, ended: Callable[[int], None] | None = None) -> None:
        self._backend = backend
        self._ended = ended
        self._empty = list(range(backend.info.n_seq_max - 1, -1, -1))
        self.running: dict[int, Job] = {}
        """Jobs that hold a slot, by slot."""
        self.parked: dict[int, array[int]] = {}
        """Tokens of parked sequences by slot, oldest first."""
        self._sessions: dict[int, int] = {}
        """Slots of the parked sequences that are a session's, by session."""
        self._cells = Cells()
        self.origins = Origins()

    def active(self) -> list[Job]:
        """Jobs that hold a slot, in the order of slots."""
        return [job for _, job in sorted(self.running.items())]

    @property
    def free(self) -> bool:
        """Whether a job can have a slot."""
        return bool(self._empty or self.parked)

    # -- taking and giving up ---------------------------------------------------------------

    def take(self, job: Job) -> None:
        """Give a job the slot that serves it best; there must be one.

        That is the sequence of its session, the parked one most like its prompt, an empty
        slot, or else the one that was parked first.
        """
        like = self.like(job)
        if like:
            if self.goes_on(job):
                job.held = like.tokens
                del self._sessions[job.session]
            job.slot, job.inherited = like.slot, like.tokens
            del self.parked[like.slot]
        else:
            if not self._empty:
                self.drop_parked()
            job.slot, job.inherited = self._empty.pop(), 0
        self.running[job.slot] = job

    def give_up(self, job: Job, *, park: bool = False, keep: bool = False) -> None:
        """Take a job's slot back; its sequence is cleared, or kept as parked.

        :param keep: for the job's session.
        """
        slot, job.slot = job.slot, -1
        del self.running[slot]
        if park or keep:
            self.parked[slot] = job.ledger
        else:
            self.clear(slot)
            self._empty.append(slot)
        if keep:
            self._sessions[job.session] = slot

    def drop_parked(self, spare: Head | None = None) -> bool:
        """Clear the sequence parked first, other than ``spare``; whether there was one.

        Those of sessions come after all others.
        """
        slots = [slot for slot in self.parked if spare is None or slot != spare.slot]
        if not slots:
            return False
        owners = {slot: session for session, slot in self._sessions.items()}
        slot = min(slots, key=lambda one: one in owners)
        if slot in owners:
            self.end(owners[slot])
        else:
            self._drop(slot)
        return True

    def _drop(self, slot: int) -> None:
        del self.parked[slot]
        self.clear(slot)
        self._empty.append(slot)

    # -- sessions ----------------------------------------------------------------------------

    def kept(self, session: int) -> int:
        """Return how many tokens of a session wait for its next request; 0: none do."""
        slot = self._sessions.get(session)
        return 0 if slot is None else len(self.parked[slot])

    def keeps_stream(self, session: int) -> bool:
        """Whether what waits for a session's next request is what one stream computed."""
        slot = self._sessions.get(session)
        return slot is not None and self.origins.is_stream(slot, len(self.parked[slot]))

    def goes_on(self, job: Job) -> bool:
        """Whether a job can go on in the sequence of its session.

        Not at ``bit``: what is parked was decoded, or had company.
        """
        slot = self._sessions.get(job.session)
        if slot is None or job.options.bit:
            return False
        tokens = self.parked[slot]
        return bool(tokens == job.todo[: len(tokens)])

    def end(self, session: int) -> None:
        """Clear the sequence that waits for a session's next request, if one does."""
        slot = self._sessions.pop(session, None)
        if slot is not None:
            self._drop(slot)
            if self._ended:
                self._ended(session)

    # -- heads in the context ----------------------------------------------------------------

    def like(self, job: Job) -> Head | None:
        """Return the parked sequence that a job should go on in.

        That of its session, or else the one that shares most with its prompt.
        """
        if self.goes_on(job):
            return Head(self._sessions[job.session], self.kept(job.session))
        if job.options.bit or not job.cached:
            return None
        owned = set(self._sessions.values())
        heads = [
            Head(slot, common(tokens, job.todo))
            for slot, tokens in self.parked.items()
            if slot not in owned
        ]
        best = max(heads, key=lambda head: head.tokens, default=None)
        return best if best and best.tokens >= BLOCK else None

    def live(self, job: Job) -> Head | None:
        """Return the sequence of the context that shares most with a job's prompt."""
        heads = [
            Head(other.slot, common(other.ledger, job.todo))
            for other in self.running.values()
            if other is not job
        ]
        heads += [Head(slot, common(tokens, job.todo)) for slot, tokens in self.parked.items()]
        return max(heads, key=lambda head: head.tokens, default=None)

    # -- cells ---------------------------------------------------------------------------------

    def wanted(self, job: Job, spare: int = 0, *, parked: bool = True) -> int:
        """Return the cells of the context once a job has its own and ``spare`` more.

        So have the others that run: those that still wait for their plan, too.  What a
        job begins with and the context has already counts once, whoever else holds it.

        :param parked: False counts as if what is parked had gone, but for what the job
            itself goes on in.
        """
        like = self.like(job)
        cuts = {} if parked else dict.fromkeys(self.parked, 0)
        fill = spare
        waiting = [one for one in self.active() if one.stage is Stage.LOOKUP and not one.held]
        heads = [(job, like), *((one, Head(one.slot, one.inherited)) for one in waiting)]
        for one, own in heads:
            stays, shared = self._begins_with(one, own)
            if own:
                cuts[own.slot] = stays
            fill += one.cells() - stays - shared
        for one in self.active():
            if one not in waiting:
                fill += max(0, one.cells() - self._cells.length(one.slot))
        return self._cells.used(cuts) + fill

    def _begins_with(self, job: Job, own: Head | None) -> tuple[int, int]:
        """Return how many of its tokens a job keeps in its slot, or else has from another's.

        As far as that can be known before its plan is there.

        :param own: what its slot has of them, or will have.
        """
        if self.goes_on(job):
            return (own.tokens if own else 0), 0
        if job.crowded or not (job.cached and self._backend.info.blocks) or job.options.bit:
            return 0, 0
        live = self.live(job)
        stays, shared = (head.tokens // BLOCK * BLOCK if head else 0 for head in (own, live))
        return (stays, 0) if stays >= shared else (0, shared)

    def measure(self, job: Job) -> None:
        """Note how many cells a job's sequence has now."""
        self._cells.resize(job.slot, self._backend.length(job.slot))

    def clear(self, slot: int) -> None:
        """Remove every cell of a slot."""
        self._backend.clear(slot)
        self._cells.resize(slot, 0)
        self.origins.clear(slot)

    def truncate(self, slot: int, length: int) -> bool:
        """Cut a slot; see :meth:`erllama_py._backends.base.Backend.truncate`."""
        done = self._backend.truncate(slot, length)
        left = self._backend.length(slot)
        self._cells.resize(slot, left)
        self.origins.cut(slot, left)
        return done

    def share(self, source: int, target: int, length: int) -> bool:
        """Give an empty slot the head of another; whether the engine could."""
        if not self._backend.share(source, target, length):
            return False
        self._cells.share(source, target, length)
        self.origins.share(source, target, length)
        return True

    def used(self) -> int:
        """Return how many cells are taken."""
        return self._cells.used()


def common(one: array[int], other: array[int]) -> int:
    """Return the length of the longest common prefix."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
