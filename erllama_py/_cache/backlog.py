"""What waits to be written to files, and when it is to be written.

A save takes a core that a model may be computing on: its threads wait for each other, so
that all of them stand still meanwhile.  So nothing is written while requests are running,
but what has waited for :data:`LATEST_S`, or is a whole batch with what came behind it.
Once all are over it is written after :data:`SETTLE_S`.

What is written together needs the same two syncs as a single block, and one waking of the
thread: under load there are a few batches where there was one for each block.

Not thread-safe, but that items may be added while others are taken.
"""

from __future__ import annotations

import collections
import math
from typing import Final

from erllama_py._cache.row import Row
from erllama_py._cache.saver import BATCH_BYTES, Job

__all__ = ("LATEST_S", "SETTLE_S", "Backlog")

SETTLE_S: Final = 0.2
"""How long a new payload waits before it is written: a tail is often replaced by a block,
and logits by better ones, within moments."""

LATEST_S: Final = 2.0
"""How long it waits at most for the running requests to end: so much of what they compute
is lost with the process, or the power."""

_MEMORY_PART: Final = 8
"""This part of the memory tier is never all that waits: who needs memory that holds what
is not written waits for the writing."""


class Backlog:
    """Jobs in the order in which they came.

    :param memory: bytes of the memory tier.
    """

    def __init__(self, memory: int) -> None:
        self._jobs: collections.deque[Job] = collections.deque()
        self._most = min(BATCH_BYTES, memory // _MEMORY_PART)
        self._came = 0
        self._taken = 0

    def __len__(self) -> int:
        """Count what waits."""
        return len(self._jobs)

    @property
    def full(self) -> bool:
        """Whether so much waits that it is a batch."""
        return self._came - self._taken >= self._most

    def add(self, job: Job) -> bool:
        """Add a job; return whether the writer has to learn of it now.

        It knows of the first one that it has to look again, and when.
        """
        before = self.full
        self._came += _bytes(job)
        self._jobs.append(job)
        return len(self._jobs) == 1 or (self.full and not before)

    def due(self, idle_since: float | None) -> float:
        """Return when to write, in seconds of the monotonic clock; infinity if there is nothing.

        :param idle_since: when the last request ended; ``None`` while there are any.
        """
        if not self._jobs:
            return math.inf
        oldest = self._jobs[0].stored
        if self.full:
            return oldest + SETTLE_S
        latest = oldest + LATEST_S
        return latest if idle_since is None else min(latest, max(oldest, idle_since) + SETTLE_S)

    def take(self, now: float, *, all_of_it: bool = False) -> list[Job]:
        """Take what is to be written together: a full backlog, else what has settled."""
        until = math.inf if all_of_it or self.full else now - SETTLE_S
        taken: list[Job] = []
        while self._jobs and self._jobs[0].stored <= until:
            taken.append(self._jobs.popleft())
        self._taken += sum(map(_bytes, taken))
        return taken


def _bytes(job: Job) -> int:
    return 0 if isinstance(job.item, Row) else job.item.nbytes
