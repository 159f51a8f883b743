"""Speculation inside a request: drafts for its next tokens, checked in one step.

A greedy request that asks for it gets rows of several tokens, its pending one and a draft
of what may follow.  The step's logits say how much of the draft the model would have said
itself; the rest is cut off again, and the model's own next token is pending.  The request
says, stores and leaves behind what it would have without:

* Rows have as many tokens as were shown to have the bits of single steps
  (:mod:`~erllama_py._engine.proofs`), in the whole step.  Where that is one, or a prompt
  is prefilled beside it, the request decodes plainly.
* A draft takes cells that are free, and preempts nobody.  There is one in a step, behind
  all other rows, so that every sequence's cells stay in the order of its tokens.
* It ends where a continued row is due, and with the tokens the request may still have.
* There is none where none is worth its time (:mod:`~erllama_py._engine.pace`).  To know
  that before the first, what a lookup would have drafted is compared with what a request
  says without; that costs nothing.

Drafts come from the context itself (``lookup``), or from another model, which the core
asks (``draftmodel``).  Nothing waits for them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from erllama_py._backends.base import Backend
from erllama_py._cache.policy import Policy
from erllama_py._engine.channel import Sink
from erllama_py._engine.costs import Costs
from erllama_py._engine.frames import Speculated, WantDraft
from erllama_py._engine.job import Job, Stage
from erllama_py._engine.lookup import Lookup
from erllama_py._engine.pace import Pace
from erllama_py._engine.proofs import CELLS, Proofs, Seen, Shape
from erllama_py._engine.slots import Slots
from erllama_py.config import MAX_DRAFT, Speculate

__all__ = ("Draft", "Guessing", "Speculation", "speculation_of")

DRAFT_IN_COMPANY = 4
"""Tokens of a draft beside other streams, whose next tokens wait for its step."""
WATCHED = 8
"""Tokens that are looked up only to be compared."""


class Speculation:
    """One request's."""

    def __init__(self, options: Speculate, plain: str, costs: Costs) -> None:
        self.plain = plain
        """Why it decodes plainly; empty where it need not."""
        self.lookup = Lookup(options.lookup) if options.lookup else None
        self.most = options.most
        self.pace = Pace(options.most, costs, hopeful=not options.lookup)
        self.seen = Seen()
        self.drafted = self.accepted = 0
        """Tokens of drafts that were compared, and of those the right ones."""
        self.turn = 0
        """When it last had a draft in a step."""
        self.asked = False
        """A draft is on its way."""
        self.offer: tuple[int, array[int]] | None = None
        """A draft, and how long the context was that it follows."""
        self.used = False
        """Something of it was checked."""
        self.watched: tuple[int, list[int]] | None = None
        """What was looked up only to be compared, and behind how many generated tokens."""
        self.inexact = False
        """Of its last step no row of several tokens has the bits."""


def speculation_of(job: Job, backend: Backend, costs: Costs) -> Speculation | None:
    """Return a new request's speculation; ``None`` where it asks for none."""
    options = job.options
    if options.speculate is None or not job.generates:
        return None
    sampler = options.sampler
    plain = ""
    if not (backend.info.verifies and backend.info.blocks):
        plain = "not_supported"
    elif options.bit or options.trace:
        plain = "bit"
    elif options.logprobs is not None:
        plain = "logprobs"  # drafted tokens that are taken have no logits of their own
    elif sampler.temperature is not None:
        plain = "sampled"
    elif sampler.grammar is not None:
        plain = "grammar"
    elif sampler.repetition_penalty is not None:
        plain = "repetition_penalty"
    return Speculation(options.speculate, plain, costs)


class Draft(NamedTuple):
    """A draft in a step."""

    job: Job
    tokens: list[int]


class Guessing:
    """The drafts of all requests of a context."""

    def __init__(self, backend: Backend, slots: Slots, out: Sink, policy: Policy | None) -> None:
        self._backend = backend
        self._slots = slots
        self._out = out
        self._policy = policy
        self._proofs = Proofs(backend)
        self.costs = Costs()
        self._shape: Shape | None = None
        """Of the step being made, where it is one that decodes."""
        self._turns = 0
        self.paused = False
        """The next step is plain: with drafts it found no cells."""

    def prove(self, jobs: Sequence[Job]) -> None:
        """Find out about the present shape, where enough was seen.  May be a step."""
        for job in jobs:
            speculation = job.speculation
            if speculation is None or speculation.plain or job.stage is not Stage.RUN:
                continue
            if job.todo or speculation.seen.end != len(job.ledger):
                continue
            if not _worth(speculation, speculation.seen.shape):
                continue
            if self._proofs.ready(speculation.seen, self._slots.used()):
                self._proofs.attempt(speculation.seen, job.slot, job.ledger)
                return  # one is what a tick has time for

    # -- making a step ---------------------------------------------------------------------

    def draft(self, ready: Sequence[Job], decoders: Sequence[Job]) -> Draft | None:
        """Return a draft for one of the jobs that decode; ``None`` for a plain step.

        They take turns.
        """
        room = self._room(ready, decoders)
        jobs = [job for job in decoders if job.speculation and job.stage is Stage.RUN]
        for job in sorted(jobs, key=_last_turn):
            speculation = job.speculation
            if speculation is None or speculation.plain:
                continue
            most = speculation.pace.length(len(decoders), min(room, self._most(job)))
            if tokens := self._found(job, speculation, most):
                self._turns += 1
                speculation.turn = self._turns
                speculation.watched = None
                return Draft(job, tokens)
            if speculation.lookup is not None and not speculation.inexact:
                _watch(job, speculation, speculation.lookup)
        return None

    def _room(self, ready: Sequence[Job], decoders: Sequence[Job]) -> int:
        """Return how many tokens more than one each a step of these has room for."""
        self._shape = None
        paused, self.paused = self.paused, False
        if paused or not any(job.speculation for job in decoders):
            return 0
        if any(job.todo and job.stage is Stage.RUN for job in ready):
            return 0
        used, count = self._slots.used(), len(decoders)
        adapters = decoders[0].adapters
        assert adapters is not None
        cells = (used + count - 1) // CELLS
        self._shape = Shape(cells, count, adapters.number)
        size = self._proofs.size(self._shape) or 0
        # Beyond the next multiple of what the engine rounds cells to is another shape.
        left = min((cells + 1) * CELLS, self._backend.info.n_ctx) - used
        return min(min(size, left) - count, MAX_DRAFT if count == 1 else DRAFT_IN_COMPANY)

    def _most(self, job: Job) -> int:
        """Return what a draft may have, by what the job has before it."""
        most = min(job.target - job.said, job.room - len(job.generated)) - 1
        policy = self._policy
        if policy is not None and job.cached:
            # A row is due at a length of its own, as without drafts.
            due = max(job.last_save + policy.continued_interval, policy.min_tokens)
            until = due - len(job.ledger) - 1
            most = min(most, until) if until >= 0 else most
        return most

    def _found(self, job: Job, speculation: Speculation, count: int) -> list[int]:
        if count <= 0:
            return []
        if speculation.lookup is not None:
            return _looked_up(job, speculation.lookup, count)
        if speculation.offer is not None:
            start, offered = speculation.offer
            since = job.generated[start - job.prompt_len :]
            left = offered[len(since) : len(since) + count]
            if left and offered[: len(since)] == since:
                speculation.used = True
                return left.tolist()
            speculation.offer = None
            if not speculation.used:
                if offered[: len(since)] == since[: len(offered)]:
                    speculation.pace.nothing()  # it came too late
                    return []
                speculation.drafted += 1  # found wrong without a check
                speculation.pace.compared(len(offered), _alike(offered, since))
        if not speculation.asked:
            speculation.asked = True
            length = job.prompt_len + len(job.generated)
            self._out.put(WantDraft(job.id, length, speculation.most))
        return []

    # -- after a step -----------------------------------------------------------------------

    def offered(self, job: Job, length: int, tokens: array[int]) -> None:
        """Take a draft that was asked for; an empty one says that there was none."""
        speculation = job.speculation
        if speculation is None:
            return
        speculation.asked = False
        if tokens:
            speculation.offer, speculation.used = (length, tokens), False
        else:
            speculation.pace.nothing()

    def check(self, job: Job, draft: Sequence[int], index: int, took_ns: int) -> list[int]:
        """Return what the model says in place of a draft that was evaluated.

        :param index: number of its row in the step.
        :return: the leading tokens that are right, and the one that follows them; they
            end where generation does.
        """
        speculation = job.speculation
        assert speculation is not None
        said: list[int] = []
        accepted = 0
        for at in range(len(draft) + 1):
            token = self._backend.likeliest(index, at)
            said.append(token)
            if at == len(draft) or token != draft[at]:
                break
            accepted += 1
            if self._backend.is_eog(token):
                break
        speculation.drafted += len(draft)
        speculation.accepted += accepted
        decoding = self._shape.decoding if self._shape else 1
        speculation.pace.drafted(len(draft), accepted, took_ns, decoding)
        return said

    def stepped(self, job: Job, index: int, took_ns: int) -> None:
        """A job's row of one token was evaluated; it has the ledger's last position."""
        speculation = job.speculation
        if speculation is None or speculation.plain:
            return
        if job.stage is not Stage.RUN or self._shape is None or not took_ns:
            return
        speculation.inexact = self._proofs.hopeless(self._shape)
        if self._proofs.size(self._shape) is None and _worth(speculation, self._shape):
            digest = self._backend.digest(index)
            speculation.seen.add(self._shape, len(job.ledger) - 1, digest)
        speculation.pace.plain(took_ns, alone=not speculation.asked)

    def facts(self, job: Job) -> Speculated | None:
        """Return what came of a job's speculation; ``None`` where it asked for none."""
        speculation = job.speculation
        if speculation is None:
            return None
        plain = speculation.plain or ("inexact" if speculation.inexact else "")
        drafted = speculation.drafted
        return Speculated(drafted, speculation.accepted, "" if drafted else plain)


def _last_turn(job: Job) -> int:
    return job.speculation.turn if job.speculation else 0


def _worth(speculation: Speculation, shape: Shape | None) -> bool:
    """Whether a draft would be worth its time in a shape, if it is exact there."""
    return shape is not None and speculation.pace.length(shape.decoding, MAX_DRAFT) > 0


def _watch(job: Job, speculation: Speculation, lookup: Lookup) -> None:
    """Compare what was looked up with what came, and look up what may come."""
    said = job.generated
    if speculation.watched is not None:
        start, guess = speculation.watched
        came = said[start : start + len(guess)]
        right = _alike(guess, came)
        if right == len(came) < len(guess):
            return
        speculation.pace.compared(len(guess), right)
        speculation.watched = None
    if guess := _looked_up(job, lookup, WATCHED):
        speculation.watched = len(said), guess


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many leading tokens are the same."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _looked_up(job: Job, lookup: Lookup, count: int) -> list[int]:
    if not len(lookup):
        lookup.extend(job.context()[: job.prompt_len])
    lookup.extend(job.generated[len(lookup) - job.prompt_len :])
    return lookup.guess(count)
