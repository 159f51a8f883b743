"""A backend that speaks by a rule, for tests of speculation without a model.

It is the stub with a text of its own: what follows a sequence depends on its tokens
alone, repeats itself for a while and then does not.  Its "logits" have other bits where a
step had more than ``exact`` tokens, as an engine's may.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Sequence

import msgspec

from erllama_py._backends.base import (
    BackendConfig,
    BackendError,
    ContextOptions,
    NoSlot,
    Row,
    Sampler,
    SamplerOptions,
    StepFailed,
)
from erllama_py._backends.stub import StubBackend, StubSampler
from erllama_py._engine.frames import Closed, Done, Drafted, Frame, Token, WantDraft
from erllama_py._engine.job import Job
from erllama_py._engine.scheduler import Scheduler
from erllama_py._engine.sharedkv import SharedKv
from erllama_py.config import GenerateOptions, Speculate

END = 999
GREEDY = SamplerOptions()
LOOKUP = Speculate(15, lookup=3)
DRAFT = Speculate(8, draft="d")


def following(tokens: Sequence[int]) -> int:
    """What the rule says after these tokens."""
    at = len(tokens)
    if at % 41 == 0:
        return 50 + sum(tokens[-5:]) % 40
    return at % 13 + 1


class Talker(StubBackend):
    """See the module."""

    def __init__(self, n_ctx: int = 2048, *, exact: int = 16, slots: int = 1, end: int = 0) -> None:
        context = ContextOptions(n_ctx=n_ctx, n_seq_max=slots)
        super().__init__(BackendConfig("stub", context=context))
        self.info = msgspec.structs.replace(self.info, verifies=True)
        self.exact = exact
        self.end = end
        """Length of the sequence after which it says the end; 0: never."""
        self.stuck_at = 0
        """The next cut to this length or a longer one fails; 0: none does."""
        self.failing: set[int] = set()
        """Sizes of rows that fail."""
        self.sizes: list[int] = []
        """Tokens of each step."""
        self.rehearsed: list[int] = []
        self._step: Sequence[Row] = ()

    def step(self, rows: Sequence[Row]) -> None:
        if any(len(row.tokens) in self.failing for row in rows):
            raise StepFailed("decode_failed", "it was told to")
        super().step(rows)
        self._step = rows
        self.sizes.append(sum(len(row.tokens) for row in rows))

    def is_eog(self, token: int) -> bool:
        return token == END

    def _says(self, tokens: array[int]) -> int:
        return END if len(tokens) == self.end else following(tokens)

    def sample(self, sampler: Sampler, row: int) -> int:
        return self.likeliest(row)

    def likeliest(self, row: int, at: int = -1) -> int:
        asked = self._step[row]
        upto = asked.pos + (len(asked.tokens) if at < 0 else at + 1)
        assert asked.every or upto == asked.pos + len(asked.tokens)
        return self._says(self._cells[asked.seq][:upto])

    def digest(self, row: int) -> bytes:
        return self._bits(self._cells[self._step[row].seq], self.sizes[-1])

    def rehearse(self, row: Row) -> list[bytes]:
        size = len(row.tokens)
        self.rehearsed.append(size)
        if self._free() < size:
            raise NoSlot("no_slot")
        head = self._cells[row.seq][: row.pos]
        if len(head) < row.pos:
            raise BackendError("window")
        return [self._bits(head + array("I", row.tokens[: at + 1]), size) for at in range(size)]

    def _bits(self, tokens: array[int], size: int) -> bytes:
        return hashlib.blake2b(tokens.tobytes() + bytes([size > self.exact])).digest()

    def truncate(self, seq: int, length: int) -> bool:
        if self.stuck_at and self.stuck_at <= length < self.length(seq):
            self.stuck_at = 0
            return False
        return super().truncate(seq, length)


class Clocked(Scheduler):
    """A scheduler whose steps take what a rule says, not what this machine makes of them."""

    token_ns = 10

    def _apply(self, rows: list[tuple[Job, Row]], took_ns: int) -> None:
        total = sum(len(row.tokens) for _, row in rows)
        super()._apply(rows, took_ns and 1000 + self.token_ns * total)


class Conversation:
    """A scheduler over a talker, ticked by hand, and what it sends."""

    def __init__(self, backend: Talker) -> None:
        self.backend = backend
        self.frames: list[Frame] = []
        self.scheduler = Clocked(backend, SharedKv(), self, None, 128)
        self.drafting = lambda want, context: list[int]()
        """Answers questions for a draft."""
        self._contexts: dict[int, array[int]] = {}

    def put(self, frame: Frame) -> None:
        self.frames.append(frame)
        if isinstance(frame, Token) and frame.token is not None:
            self._contexts[frame.id].append(frame.token)
        if isinstance(frame, WantDraft):
            context = self._contexts[frame.id]
            assert len(context) == frame.length
            answer = self.drafting(frame, context)
            if answer is not None:
                self.answer(frame, answer)

    def defer(self, build: Callable[[], Frame], fd: int | None = None) -> None:
        self.put(build())
        if fd is not None:
            os.close(fd)

    def together(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def answer(self, want: WantDraft, tokens: Iterable[int]) -> None:
        """Answer a question for a draft; it comes before the next tick."""
        packed = array("I", tokens)
        self.scheduler.mailbox.put(lambda: self.scheduler.drafted(want.id, want.length, packed))

    def ask(
        self,
        number: int,
        prompt: Iterable[int],
        target: int,
        speculate: Speculate | None = None,
        sampler: SamplerOptions = GREEDY,
        **options: object,
    ) -> None:
        """Submit a request."""
        tokens = array("I", prompt)
        self._contexts[number] = array("I", tokens)
        asked = GenerateOptions(sampler, response_tokens=target, speculate=speculate, **options)
        limit = self.backend.info.n_ctx - len(tokens)
        job = Job(number, "infer", tokens, asked, StubSampler(0), min(target, limit))
        self.scheduler.submit(job)

    def run(self) -> None:
        """Tick until every request has ended."""
        for _ in range(20_000):
            self.scheduler.mailbox.drain(0.0)
            if len(self.of(Closed)) == len(self._contexts):
                return
            self.scheduler.tick()
        raise AssertionError(f"it does not end: {self.frames[-5:]}")

    def of(self, kind: type[Frame], number: int | None = None) -> list:
        return [
            one
            for one in self.frames
            if isinstance(one, kind) and number in (None, getattr(one, "id", None))
        ]

    def said(self, number: int = 1) -> list[int]:
        """The tokens of a request."""
        return [one.token for one in self.of(Token, number) if one.token is not None]

    def done(self, number: int = 1) -> Done:
        (done,) = self.of(Done, number)
        return done

    @property
    def outcome(self) -> list[tuple[int, list[int], str, int]]:
        """What must be the same with and without drafts, of every request."""
        return [
            (number, self.said(number), done.finish_reason, done.committed)
            for number in self._contexts
            for done in self.of(Done, number)
        ]


__all__ = ("DRAFT", "END", "LOOKUP", "Conversation", "Drafted", "Talker", "following")
