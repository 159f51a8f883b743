"""Sessions of a model on the core's side: who has which, and whether it is free.

A *session* is a name of the caller's for requests that go on from each other.  When one
of them is over its sequence stays in the context, for the next to go on in
(:mod:`~erllama_py._engine.slots`).  The engine knows sessions by number; the names stay
here, since they may be anything.

A session has one request at a time that is not over.  It is taken when that is submitted,
so of two that come first at the same time the second is refused, too.  It is free as soon
as the reply is out: what the engine still has to store of it, the next one waits for.

A name is forgotten when nothing of its session is in the context and no request of it is
on the way.  Under the same name begins another session then, with another number.
"""

from __future__ import annotations

import threading
import time
from array import array
from typing import TYPE_CHECKING, Any

from erllama_py.errors import ErllamaError
from erllama_py.types import SessionKey, next_serial

if TYPE_CHECKING:
    from erllama_py._engine.request import Request

__all__ = ("Sessions",)


class _Session:
    def __init__(self, key: SessionKey) -> None:
        self.key = key
        self.number = next_serial()
        self.request: Request | None = None
        """The latest."""
        self.open: set[int] = set()
        """Requests of which the engine may yet keep something: over, maybe, but not closed."""
        self.tokens = 0
        """In the context, waiting for the next request."""
        self.stream = False
        """Whether these are what one stream computed."""
        self.since = time.monotonic()
        """When that was last so."""

    @property
    def busy(self) -> bool:
        return self.request is not None and not self.request.over


class Sessions:
    """The sessions of one model.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_key: dict[SessionKey, _Session] = {}
        self._by_number: dict[int, _Session] = {}

    def take(self, request: Request) -> None:
        """Give a request its session, if it names one.

        :raises ErllamaError: ``sticky_busy``: another has it.
        """
        key = request.session_key
        if key is None:
            return
        with self._lock:
            session = self._by_key.get(key) or self._begin(key)
            if session.busy:
                raise ErllamaError(
                    "sticky_busy",
                    f"the session {key.term()!r} has a request that is not over",
                    "wait for it, or take another session_id",
                )
            session.request = request
            session.open.add(request.id)
            request.session = session.number

    def _begin(self, key: SessionKey) -> _Session:
        session = self._by_key[key] = _Session(key)
        self._by_number[session.number] = session
        return session

    def kept(self, number: int, tokens: int, *, stream: bool = False) -> None:
        """So many tokens of a session are in the context, for its next request.

        :param stream: whether they are what one stream computed.
        """
        with self._lock:
            session = self._by_number.get(number)
            if session is not None:
                session.tokens, session.stream = tokens, stream
                session.since = time.monotonic()
                self._settle(session)

    def over(self, request: Request) -> None:
        """Nothing more will come of a request."""
        with self._lock:
            session = self._by_number.get(request.session)
            if session is not None:
                session.open.discard(request.id)
                self._settle(session)

    def forget_kept(self) -> None:
        """The context is gone, and all that was in it."""
        with self._lock:
            for session in list(self._by_number.values()):
                session.tokens = 0
                session.open.clear()
                self._settle(session)

    def end(self, key: SessionKey) -> int | None:
        """Forget a session; return its number, or ``None`` where it is busy or unknown."""
        with self._lock:
            session = self._by_key.get(key)
            if session is None or session.busy:
                return None
            self._drop(session)
            return session.number

    def goes_on(self, key: SessionKey, tokens: array[int]) -> int:
        """Return how many tokens of a session a prompt could go on from now."""
        with self._lock:
            session = self._by_key.get(key)
            if session is None or session.busy or session.request is None:
                return 0
            kept = session.request.tokens[: session.tokens]
            return session.tokens if kept == tokens[: session.tokens] else 0

    def keeps_stream(self, key: SessionKey) -> bool:
        """Whether what a session has in the context is what one stream computed."""
        with self._lock:
            session = self._by_key.get(key)
            return session is not None and session.stream

    def all(self) -> list[dict[str, Any]]:
        """Return the sessions, those used longest ago first; see ``api.list_sessions``."""
        now = time.monotonic()
        with self._lock:
            return [
                {
                    "session_id": one.key.term(),
                    "tokens": one.tokens,
                    "busy": one.busy,
                    "idle_s": 0.0 if one.busy else now - one.since,
                }
                for one in sorted(self._by_number.values(), key=lambda one: one.since)
            ]

    def _settle(self, session: _Session) -> None:
        if not (session.tokens or session.open or session.busy):
            self._drop(session)

    def _drop(self, session: _Session) -> None:
        if self._by_number.pop(session.number, None) is not None:
            del self._by_key[session.key]
