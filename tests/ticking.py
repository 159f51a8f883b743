"""A scheduler over the stub, ticked by hand, with a cache that has whatever was computed.

For what is to be seen between two ticks, and for plans that come when a test says so.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from erllama_py._backends.base import BLOCK, BackendConfig, ContextOptions, Row, StubOptions
from erllama_py._backends.stub import StubBackend
from erllama_py._cache.checksum import crc
from erllama_py._cache.lease import Piece
from erllama_py._cache.policy import Policy
from erllama_py._cache.ram import Extent
from erllama_py._engine.frames import Closed, Frame, Lookup, Plan
from erllama_py._engine.job import Job
from erllama_py._engine.restore import Restore
from erllama_py._engine.scheduler import Scheduler
from erllama_py._engine.sharedkv import SharedKv
from erllama_py._engine.slots import common
from erllama_py.config import EVERYDAY_POLICY, GenerateOptions

__all__ = ("Ticking",)

MEMORY_BYTES = 8 << 20
CHUNK = 64


class Watched(Scheduler):
    """A scheduler that tells what each admission counted."""

    wanted: dict[int, int]

    def _start(self, job: Job) -> None:
        self.wanted[job.id] = self._slots.wanted(job)
        super()._start(job)

    def _grace(self, rows: list[tuple[Job, Row]]) -> float:
        del rows
        return 0.0  # what follows a reply waits for nobody: time plays no part here


class Ticking:
    """The scheduler, the jobs it was given, and the frames that came."""

    def __init__(self, n_ctx: int, slots: int, *, n_batch: int = 512, whole: bool = False) -> None:
        context = ContextOptions(n_ctx=n_ctx, n_seq_max=slots, n_batch=n_batch)
        stub = StubOptions(whole_rows=whole)
        self.backend = StubBackend(BackendConfig("stub", context=context, stub=stub))
        self._kv = SharedKv()
        fd = os.memfd_create("ticking")
        os.ftruncate(fd, MEMORY_BYTES)
        self._kv.add_segment(1, MEMORY_BYTES, fd)
        self._end = 0
        policy = Policy.from_map(EVERYDAY_POLICY)
        self.scheduler = Watched(self.backend, self._kv, self, policy, CHUNK, parking=True)
        self.scheduler.wanted = {}
        self.slots = self.scheduler._slots
        self.frames: list[Frame] = []
        self.jobs: dict[int, Job] = {}
        self.computed: list[array[int]] = []
        """What the cache has beside what requests have: sequences that were given back."""
        self.held: list[Lookup] | None = None
        """Lookups that wait for :meth:`answer`; ``None``: each is answered at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._kv.close()

    # -- the scheduler's sink ----------------------------------------------------------------

    def put(self, frame: Frame) -> None:
        self.frames.append(frame)
        if isinstance(frame, Closed) and (ledger := self.jobs[frame.id].ledger):
            self.computed.append(array("I", ledger))
        if isinstance(frame, Lookup):
            if self.held is None:
                self.answer(frame)
            else:
                self.held.append(frame)

    def defer(self, build: Callable[[], Frame], fd: int | None = None) -> None:
        del fd
        self.put(build())

    def together(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    # -- the core's part -----------------------------------------------------------------------

    def ask(
        self, number: int, tokens: Iterable[int], target: int = 0, *, session: int = 0, **options
    ) -> Job:
        """Submit a request."""
        prompt = array("I", tokens)
        asked = GenerateOptions(response_tokens=target, **options)
        mode = "infer" if target else "prefill_only"
        room = min(target, self.backend.info.n_ctx - len(prompt))
        sampler = self.backend.new_sampler(asked.sampler)
        job = self.jobs[number] = Job(number, mode, prompt, asked, sampler, room)
        job.session = session
        self.scheduler.submit(job)
        return job

    def answer(self, lookup: Lookup) -> None:
        """Send the plan for what the cache has; its pieces are verified by the next tick."""
        job = self.jobs[lookup.id]
        if lookup.held:
            plan = Plan(job.id, "sticky", lookup.held, 0, [], None, canonical=False, captured=0)
        else:
            there = [*self.computed, *(one.ledger for one in self.jobs.values() if one is not job)]
            found = max((common(one, job.todo) for one in there), default=0)
            keep = min(found, len(job.todo) - 1) // BLOCK * BLOCK
            pieces = [self._piece(job.todo, start) for start in range(0, keep, BLOCK)]
            kind = "partial" if keep else "cold"
            plan = Plan(job.id, kind, keep, keep, pieces, None, canonical=False, captured=0)
        restore = Restore(plan, self._kv, lambda: None)
        self.scheduler.mailbox.put(lambda: self.scheduler.plan(job.id, restore))
        while restore.loading:
            restore.load_next()

    def _piece(self, tokens: array[int], start: int) -> Piece:
        data = tokens[start : start + BLOCK].tobytes()
        extent = Extent(1, self._end, len(data))
        self._end += len(data)
        assert self._end <= MEMORY_BYTES
        self._kv.view(extent)[:] = data
        return Piece(self._end, extent, len(data), crc(data), start, start + BLOCK)

    # -- time ----------------------------------------------------------------------------------

    def tick(self, count: int = 1) -> None:
        """Do rounds, and check the books after each."""
        for _ in range(count):
            self.scheduler.mailbox.drain(0.0)
            self.scheduler.tick()
            assert self.slots.used() == self.cells_in_use
            assert self.slots.used() <= self.backend.info.n_ctx

    @property
    def cells_in_use(self) -> int:
        """What the engine itself would say."""
        return len(set().union(*self.backend._ids))

    def run(self, *numbers: int) -> None:
        """Tick until these requests hold nothing any more."""
        for _ in range(5000):
            if set(numbers) <= {one.id for one in self.of(Closed)}:
                return
            self.tick()
        raise AssertionError(f"{numbers} do not end: {self.frames[-5:]}")

    def of(self, kind: type[Frame]) -> list:
        return [one for one in self.frames if isinstance(one, kind)]
