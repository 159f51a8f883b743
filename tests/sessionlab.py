"""A stub model in this process with its scheduler within reach, for tests of sessions."""

from __future__ import annotations

from array import array
from typing import Any

from erllama_py import api
from erllama_py._engine.registry import core
from erllama_py._engine.scheduler import Scheduler
from erllama_py.testing import record
from erllama_py.types import session_key
from tests.waiting import wait_for

PROMPT = [*range(1, 16)]

SLOW = {"step_delay_ms": 5}


class Loaded:
    """A stub model and its scheduler."""

    def __init__(self, model: api.Model, scheduler: Scheduler) -> None:
        self.id = model
        self.scheduler = scheduler

    def prefill(self, tokens: list[int], session: Any = None, **options: Any) -> dict[str, Any]:
        result = api.prefill_only(self.id, tokens, {"session_id": session, **options})
        self.settle()
        return result

    def run(self, tokens: list[int], session: Any = None, count: int = 2) -> dict[str, Any]:
        """Stream a reply; return its stats, and its context as ``context``."""
        stats = self.done(self.start(tokens, session, count))
        self.settle()
        return stats

    def start(self, tokens: list[int], session: Any = None, count: int = 2) -> api.Stream:
        return api.infer(self.id, tokens, {"session_id": session, "response_tokens": count})

    def done(self, stream: api.Stream) -> dict[str, Any]:
        events = record(stream)
        assert events[-1].kind == "done", events[-1]
        return {**(events[-1].stats or {}), "said": [e.token_id for e in events if e.token_id]}

    @property
    def kept(self) -> dict[Any, int]:
        return {one["session_id"]: one["tokens"] for one in api.list_sessions(self.id)}

    def tail(self, session: Any) -> list[int]:
        """Return what was said last in a session."""
        number = core().host(self.id).sessions._by_key[session_key(session)].number
        slots = self.scheduler._slots
        return slots.parked[slots._sessions[number]][-2:].tolist()

    def settle(self) -> None:
        """Wait until every request has given back what it held, and check the books."""
        slots, backend = self.scheduler._slots, self.scheduler._backend
        host = core().host(self.id)
        wait_for(lambda: not self.scheduler._jobs and not host._requests)
        known = host.sessions._by_number
        wait_for(
            lambda: (
                {number: one.tokens for number, one in list(known.items())}
                == {number: slots.kept(number) for number in list(slots._sessions)}
            )
        )
        count = backend.info.n_seq_max
        assert not slots.running
        assert sorted([*slots._empty, *slots.parked]) == list(range(count))
        assert set(slots._sessions.values()) <= set(slots.parked)
        for slot in range(count):
            parked = slots.parked.get(slot, array("I"))
            assert backend._cells[slot] == parked
            assert slots._cells.length(slot) == len(parked)
