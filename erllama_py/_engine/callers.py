"""What callers ask of a model: requests, calls, and how it is doing.

The lowest of three layers, which call downwards only: callers, what the model process
sends (``incoming``), and its life cycle (``host``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from erllama_py._backends.base import BackendInfo
from erllama_py._engine.adapters import Adapters, Scales
from erllama_py._engine.adapterset import AdapterSet
from erllama_py._engine.caching import ModelCache
from erllama_py._engine.chats import Chats
from erllama_py._engine.ends import model_gone
from erllama_py._engine.frames import Adapt, Call, Cancel, Done, EndSession, Frame
from erllama_py._engine.life import Life, Pending
from erllama_py._engine.noted import History, past_of
from erllama_py._engine.request import Request
from erllama_py._engine.sessions import Sessions
from erllama_py._engine.tally import Tally
from erllama_py._engine.transfer import Transfer
from erllama_py.config import LoadConfig
from erllama_py.errors import ErllamaError, ModelGone
from erllama_py.types import ModelPid, Ref, SessionKey, next_serial

__all__ = ("CALL_TIMEOUT_S", "Callers")

CALL_TIMEOUT_S = 30.0
"""How long a call by id waits for a model that is being restarted."""


class Callers:
    """The state of a model on the core's side, and what callers do with it."""

    def __init__(self, model_id: str, config: LoadConfig, cache: ModelCache) -> None:
        self.id = model_id
        self.config = config
        self.cache = cache
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._state = "loading"
        self._life: Life | None = None
        self._requests: dict[int, Request] = {}
        self.sessions = Sessions()
        self.history = History()
        """What the cache had for the requests that are over."""
        self.tally = Tally()
        self.adapters = Adapters(self._adapt, config.model_path)
        self._phase = "idle"
        self.used_at = time.monotonic_ns()
        """When a request or a call last came or ended."""
        self.last_hit: dict[str, Any] | None = None
        self.loaded_at = 0
        """Monotonic nanoseconds of the last start."""
        self.info: BackendInfo
        """There from the first successful load on."""
        self.chats = Chats(model_id, self.call, lambda: self.info, config.chat_template, cache)

    def submit(self, request: Request) -> None:
        """Queue a request.

        A ``verify`` has the model to itself: it begins only where there is no other
        request, and no stream begins beside it.

        :raises ModelGone: the model was unloaded.
        :raises ErllamaError: ``busy``; ``sticky_busy``.
        """
        with self._lock:
            if self._state == "gone":
                raise model_gone(self.id)
            if request.mode in ("verify", "infer"):
                self._check_busy(request.mode)
            self.sessions.take(request)
            self._requests[request.id] = request
            self.used_at = time.monotonic_ns()
            life = self._life if self._state == "up" else None
            request.life = life
        if life:
            life.send(request.frame())

    def _check_busy(self, mode: str) -> None:
        others = [one for one in self.requests if not one.over]
        if mode == "verify" and others:
            raise ErllamaError(
                "busy", f"the model {self.id!r} has requests; verify needs it to itself"
            )
        if any(one.mode == "verify" for one in others):
            raise ErllamaError("busy", f"the model {self.id!r} is verifying", "try again")

    def cancel(self, request: Request) -> None:
        """Stop a request; its terminal event follows."""
        with self._lock:
            request.cancelled = True
            life = request.life
            waiting = request.id in self._requests and life is None
        if isinstance(life, Life):
            life.send(Cancel(request.id))
        elif waiting:
            self._end_unsent(request)

    def _end_unsent(self, request: Request) -> None:
        """Cancel a request that waits for the model to come back."""
        with self._lock:  # first, or it is sent when the model is back
            self._requests.pop(request.id, None)
        request.on_done(
            Done(request.id, "cancelled", None, b"", 0, 0, 0, saving=False), finish_key=None
        )
        self._forget(request)

    def end_session(self, key: SessionKey) -> None:
        """Have nothing kept for a session; one that is busy or unknown stays as it is."""
        number, life = self.sessions.end(key), self._life
        if number is not None and life is not None:
            life.send(EndSession(number))

    def call(self, what: str, data: Any) -> Any:
        """Ask the model process something; waits while it is being restarted.

        :raises ErllamaError: it refused.
        :raises ModelGone: the model is gone, or died meanwhile.
        """
        _, value = self._ask(lambda number: Call(number, what, data))
        return value

    def start_call(self, what: str, data: Any, on_over: Callable[[Any], None]) -> Ref:
        """Do :meth:`call` without waiting for the answer.

        :param on_over: as of :class:`~erllama_py._engine.life.Pending`.
        :return: a ref for :meth:`cancel_call`.
        :raises ModelGone: the model is gone.
        """
        _, number, _ = self._send(lambda number: Call(number, what, data), on_over)
        return Ref(number)

    def cancel_call(self, number: int) -> None:
        """Have no more done for a call: what takes long is stopped, and refused as cancelled."""
        life = self._life
        if life is not None and number in life.calls:
            life.send(Cancel(number))

    def _ask(self, frame_of: Callable[[int], Frame]) -> tuple[Life, Any]:
        """Send a frame that is answered; return who answered it, and what."""
        life, number, pending = self._send(frame_of)
        try:
            return life, pending.result()
        except BaseException:
            # Interrupted: nobody waits for this answer any more.
            if not pending.done.is_set():
                self.cancel_call(number)
            raise

    def _send(
        self, frame_of: Callable[[int], Frame], on_over: Callable[[Any], None] | None = None
    ) -> tuple[Life, int, Pending]:
        with self._changed:
            self._changed.wait_for(lambda: self._state in ("up", "gone"), CALL_TIMEOUT_S)
            life = self._life
            if self._state != "up" or life is None:
                raise model_gone(self.id)
            number, pending = next_serial(), Pending(on_over)
            life.calls[number] = pending
            self.used_at = time.monotonic_ns()
        life.send(frame_of(number))
        return life, number, pending

    def _adapt(self, adapters: AdapterSet, scales: Scales, commit: Callable[[], None]) -> None:
        """Have requests to come compute with these adapters; see ``Adapters``."""
        self.cache.spaces.expect(adapters.number, scales)
        while True:
            try:
                life, _ = self._ask(lambda number: Adapt(number, adapters))
            except ModelGone as error:
                if self._state == "gone":
                    raise
                raise ErllamaError(
                    "exception",
                    f"adapters were not changed: {error.message}",
                    "the model is restarted with those it had",
                ) from error
            with self._lock:
                # Else it has ended since, and the next life was given those of before.
                if self._life is life:
                    commit()
                    break
        self.cache.spaces.turn_to(adapters.number)

    def save_live(self, reason: str, timeout_s: float) -> None:
        """Have the contexts of running requests saved as rows; ``evict`` frees their KV, too.

        Returns when the rows are there, or the time is over; the engine goes on with it
        all the same.  While the process is being restarted nothing runs.

        :param reason: ``evict`` or ``shutdown``.
        :raises ModelGone: the model died meanwhile.
        """
        with self._lock:
            life = self._life
            if life is None or not life.loaded.is_set():
                return
            number, pending = next_serial(), Pending()
            life.calls[number] = pending
        life.send(Call(number, reason, None))
        if pending.done.wait(timeout_s):
            pending.result()
        else:
            life.calls.pop(number, None)

    def request(self, number: int) -> Request | None:
        """Return a live request by its number."""
        return self._requests.get(number)

    @property
    def requests(self) -> list[Request]:
        """The live requests of callers."""
        return [one for one in list(self._requests.values()) if not isinstance(one, Transfer)]

    def _forget(self, request: Request) -> None:
        """A request is over: only what its lookup found is kept."""
        self.used_at = time.monotonic_ns()
        if not isinstance(request, Transfer) and request.mode != "verify":
            self.history.keep(past_of(request))
        self._add_up(request)
        with self._lock:
            self._requests.pop(request.id, None)
        self.sessions.over(request)

    def _add_up(self, request: Request) -> None:
        if not isinstance(request, Transfer):
            self.tally.note(request)

    # -- observability: never crosses the model process --------------------------------------

    @property
    def os_pid(self) -> int | None:
        """The model process's id in the operating system, while it runs."""
        life = self._life
        return life.process.os_pid if life else None

    @property
    def pid(self) -> ModelPid | None:
        """The pid of the current life; ``None`` while there is none."""
        life = self._life
        return life.pid if life and self._state == "up" else None

    @property
    def idle(self) -> bool:
        """Whether it could make room: nothing runs or waits, and it is not to be kept."""
        life = self._life
        return (
            self._state == "up"
            and life is not None
            and not life.calls
            and not self.config.keep
            and all(request.over for request in list(self._requests.values()))
        )

    @property
    def phase(self) -> str:
        """``idle``, ``prefilling`` or ``generating``."""
        return self._phase if any(not r.over for r in self.requests) else "idle"

    @property
    def pending_len(self) -> int:
        """Requests queued behind the running ones."""
        return sum(not r.admitted and not r.over for r in self.requests)

    @property
    def streams(self) -> int:
        """Admitted streaming requests."""
        return sum(r.admitted and r.mode == "infer" and not r.over for r in self.requests)

    def live_streams(self) -> list[Ref]:
        """Streaming requests that are not over, queued ones included."""
        requests = list(self._requests.values())
        return [r.ref for r in requests if r.mode == "infer" and not r.over]
