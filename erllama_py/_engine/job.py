"""One request inside the engine: its tokens, its slot, and how each was computed.

Invariant (the *ledger*): ``ledger`` holds exactly the tokens that are in the KV of the
job's sequence, in order.  A sampled token is ``pending`` until a step has evaluated it;
it is part of ``generated`` and of the reply at once.
"""

from __future__ import annotations

import enum
import time
from array import array
from typing import TYPE_CHECKING

from erllama_py._backends.base import BLOCK, Sampler
from erllama_py._cache.grade import Grade, last_slice, streamed, whole_chunk
from erllama_py._engine.adapterset import AdapterSet
from erllama_py._engine.prompt import GENERATING
from erllama_py._engine.restore import Restore
from erllama_py._engine.spoken import Spoken
from erllama_py._engine.stops import StopScanner
from erllama_py._engine.trace import LogitsTrace
from erllama_py.config import GenerateOptions

if TYPE_CHECKING:
    from erllama_py._engine.guessing import Speculation

__all__ = ("Job", "Stage")


class Stage(enum.Enum):
    """Where a job is; each arrow is made by the scheduler method named.

    ::

        QUEUED --ask--> LOOKUP --plan--> RESTORE --restore--> RUN --finish--> CLOSING
          ^                                                    |                 |
          +------------------------preempt---------------------+              release
    """

    QUEUED = enum.auto()
    LOOKUP = enum.auto()
    """Waits for the core's plan; holds a slot, or is about to get one."""
    RESTORE = enum.auto()
    """Has a plan.  Without a slot so far, it may have its first token all the same."""
    RUN = enum.auto()
    """Prefilling while ``todo`` lasts, then decoding."""
    CLOSING = enum.auto()
    """The reply is out; the last token and the finish row remain to be stored."""


class Job:
    """Plain state; the scheduler moves it."""

    cached = False
    """Whether it uses the cache: looks up, captures and leaves rows."""

    def __init__(
        self,
        number: int,
        mode: str,
        prompt: array[int],
        options: GenerateOptions,
        sampler: Sampler | None,
        target: int,
    ) -> None:
        self.id = number
        self.mode = mode
        self.options = options
        self.sampler = sampler
        self.session = 0
        """Whose sequence it goes on in, and leaves its own to; 0: nobody's."""
        self.held = 0
        """Leading tokens that its session had in the context."""
        self.target = target
        """Tokens to generate at most."""
        self.stops = StopScanner(options.stop_sequences)
        self.spoken: Spoken | None = None
        """Tells thinking and tool calls apart from the reply; ``None``: all is reply."""
        self.room = target
        """Tokens to draw at most, those of spans included."""
        self.prompt_len = len(prompt)
        self.stage = Stage.QUEUED
        self.slot = -1
        self.order = 0
        """Admission number: the highest is the youngest."""
        self.adapters: AdapterSet | None = None
        """What it computes with, from its admission to its end."""
        self.awaits: tuple[Job, int] | None = None
        """Who computes this job's head, and up to where: worth waiting for."""
        self.inherited = 0
        """Leading tokens of its own that its slot had when it was given to it."""
        self.restore: Restore | None = None
        self.admitted = self.transfers
        """The core knows how it was admitted; a preempted job stays admitted."""
        self.preempted = False
        self.crowded = False
        """It was restored into cells that then were not there: it may share less than it
        seems, and its next admission counts all of it."""
        self.served = 0
        """The number of the last step that it was in."""

        self.ledger: array[int] = array("I")
        self.todo = prompt
        """Tokens to evaluate before the first (or next) token can be sampled."""
        self.pending: int | None = None
        self.generated: array[int] = array("I")

        self.canonical = False
        """Prefilled alone from cell 0 in aligned cuts: what it computes is grade P."""
        self.slices: list[tuple[int, int]] = []
        """Prefill cuts not yet captured, as (start, end)."""
        self.captured = 0
        """Leading tokens that are in the cache or need not be."""
        self.capturing = True
        self.cold_row: int | None = None
        """Length of the cold row still to be saved."""
        self.last_save = 0
        self.candidates: array[int] = array("I")
        """Drafted tokens of a verify; never part of the ledger."""
        self.speculation: Speculation | None = None
        """Where it asked for it."""
        self.exact = False
        """The cache had its whole prompt."""
        self.trace: LogitsTrace | None = None

        self.started = 0.0
        self.prefilled = 0.0
        self.asked = 0.0
        """When its lookup was sent."""
        self.closing = 0.0
        """When its reply was out."""
        self.prefill_ns = 0
        """Spent on prefill steps it had to itself, for ``prefill_tokens``."""
        self.prefill_tokens = 0

    @property
    def active(self) -> bool:
        """Whether the job holds a slot."""
        return self.slot >= 0

    @property
    def generates(self) -> bool:
        """Whether any token is to be drawn."""
        return self.mode in GENERATING and self.target > 0

    @property
    def said(self) -> int:
        """Tokens of the reply so far."""
        return len(self.generated if self.spoken is None else self.spoken.tokens)

    @property
    def transfers(self) -> bool:
        """Whether it restores a row only to pack it in other pieces; see ``packing``."""
        return self.mode in ("export", "import")

    @property
    def verifies(self) -> bool:
        """Whether candidates are to be compared with what the model would say."""
        return self.mode == "verify"

    @property
    def prefilling(self) -> bool:
        """Whether prompt tokens remain to be evaluated."""
        return self.stage in (Stage.LOOKUP, Stage.RESTORE) or (
            self.stage is Stage.RUN and bool(self.todo)
        )

    @property
    def goes_on(self) -> bool:
        """Whether the last token in its KV was decoded, and another follows it.

        The moment of a continued save.  The reply may be out by then: what follows was
        drawn with the same step.
        """
        return len(self.ledger) > self.prompt_len and self.pending is not None

    @property
    def stored(self) -> int:
        """Leading tokens that a lookup finds now."""
        return max(self.captured, self.last_save)

    def context(self) -> array[int]:
        """Return its tokens: what is in the KV, and what is to follow without a draw."""
        tokens = self.ledger + self.todo
        if self.pending is not None:
            tokens.append(self.pending)
        return tokens

    def cells(self) -> int:
        """Cells the job has or is about to fill without generating."""
        return len(self.ledger) + len(self.todo) + (self.pending is not None)

    def begin(self, now: float) -> None:
        """Start the clock at the first admission."""
        if not self.started:
            self.started = now

    def milliseconds(self) -> tuple[int, int]:
        """Return (prefill, generation): admission to end of prefill, and from there on."""
        now = time.monotonic()
        split = self.prefilled or now
        return round((split - self.started) * 1000), round((now - split) * 1000)

    def slice_end(self, chunk: int, budget: int) -> int:
        """Tokens of the next prefill slice.

        A slice never crosses an absolute multiple of the chunk: cuts at the same
        places give the same bits, whatever was restored before.
        """
        return min(len(self.todo), chunk - len(self.ledger) % chunk, budget)

    def grade(self, start: int, end: int, chunk: int, threads: int) -> Grade:
        """Grade a run of the ledger by the cuts that computed it."""
        if self.canonical:
            for first, last in self.slices:
                if first <= start and end <= last and first % chunk == 0:
                    if last - first == chunk:
                        return whole_chunk(chunk)
                    if last == self.prompt_len and self.options.bit:
                        return last_slice(chunk, last)
        return streamed(threads)

    def forget_slices(self) -> None:
        """Drop the cuts whose tokens are all captured, up to the last block's start."""
        edge = self.captured - self.captured % BLOCK
        self.slices = [cut for cut in self.slices if cut[1] > edge]
