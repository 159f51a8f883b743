"""One loaded model on the core's side: supervision, requests, and its share of the cache.

A host outlives its model process.  Each *life* of the process has its own pid and its
own reader thread; when a life ends unasked, running requests fail, queued ones wait,
and the process is started again under the same id (docs/design/model-process.md)::

    loading --Loaded--> up --process ends--> restarting --Loaded--> up
       |                 |                        |
       +--LoadFailed-----+--unload----------------+--too often, or for memory--> gone

Requests are never retried once admitted: part of a reply may have been seen.

Locking: ``_lock`` guards the state, the current life and the request table.  Frames
are handled on the life's reader thread, which alone touches a request's lease.
Callbacks to users are never made under the lock.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from erllama_py._engine.caching import ModelCache
from erllama_py._engine.channel import Channel
from erllama_py._engine.ends import died, load_crashed, reason_of, stream_ended
from erllama_py._engine.frames import Load, Loaded, LoadFailed, Stop
from erllama_py._engine.incoming import Incoming
from erllama_py._engine.life import Life
from erllama_py._engine.noted import past_of
from erllama_py._engine.process import start_in_process, start_process
from erllama_py._engine.request import Request
from erllama_py.config import LoadConfig
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom, ModelPid

__all__ = ("EVICTED", "ModelHost", "retire")


RESTARTS, RESTART_WINDOW_S = 5, 30.0
"""The original supervisor's intensity: the sixth end within the window is final."""

END_TIMEOUT_S = 2.0
"""How long an unloaded process may take to end by itself."""

EVICTED: Final = (Atom("shutdown"), Atom("evicted"))
"""How a model ends that makes room for another: in order, and not asked to by its name."""


class ModelHost(Incoming):
    """A model that is loaded under an id.

    :param on_up: called with (host, pid) after each successful start.
    :param on_down: called with (host, pid, reason) after each end of a process that
        had served.
    :param on_gone: called with the host when it will not come back.
    """

    def __init__(
        self,
        model_id: str,
        config: LoadConfig,
        cache: ModelCache,
        on_up: Callable[[ModelHost, ModelPid], None],
        on_down: Callable[[ModelHost, ModelPid, Any], None],
        on_gone: Callable[[ModelHost], None],
    ) -> None:
        super().__init__(model_id, config, cache)
        self._on_up = on_up
        self._on_down = on_down
        self._on_gone = on_gone
        self._ends: collections.deque[float] = collections.deque()
        self._reason: Any = Atom("shutdown")
        """What an end that is wanted is called."""

    # -- starting and ending ------------------------------------------------------------------

    def load(self) -> None:
        """Start the model process and wait until it serves.

        :raises ErllamaError: it does not load; nothing is left behind.
        """
        life = self._start_life()
        life.loaded.wait()
        if life.failure is not None:
            raise life.failure

    def _start_life(self) -> Life:
        start = start_in_process if self.config.in_process else start_process
        process, sock = start()
        life = Life(process, Channel(sock))
        with self._lock:
            if self._state == "gone":
                life.failure = ErllamaError("unloaded")
            else:
                self._life = life
        reader = threading.Thread(
            target=self._read, args=(life,), name=f"model-{self.id}", daemon=True
        )
        reader.start()
        if life.failure:
            life.channel.shutdown()
        else:
            config, (adapters, _) = self.config, self.adapters.present
            life.send(
                Load(
                    config.backend_config,
                    config.policy,
                    config.caching,
                    adapters,
                    thinking=config.thinking,
                    tool_calls=config.tool_calls,
                )
            )
        return life

    def unload(self, save_timeout_s: float = 0.0) -> None:
        """End the model: live streams get an error, waiting callers an exit.

        :param save_timeout_s: how long to wait for what running requests have computed to
            be saved; 0 does not try.
        """
        with self._lock:
            if self._state == "gone":
                return
            self._state = "gone"
            life = self._life
            self._changed.notify_all()
        if life is None:
            self._fail_all(Atom("shutdown"))
            return
        running = any(r.admitted and not r.over for r in list(self._requests.values()))
        try:
            if running and save_timeout_s > 0:
                with contextlib.suppress(ErllamaError):
                    self.save_live("shutdown", save_timeout_s)
        finally:
            self._end(life)

    def _end(self, life: Life) -> None:
        life.send(Stop())
        if not self._wait_ended(life, END_TIMEOUT_S):
            life.process.kill()
            self._wait_ended(life)

    def _wait_ended(self, life: Life, timeout_s: float | None = None) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._life is not life, timeout_s)

    def end_retired(self) -> None:
        """End the process of a model that :func:`retire` took out of use."""
        if life := self._life:
            self._end(life)

    def abandon(self) -> None:
        """Close a forked child's copy of the socket; the model is the parent's."""
        if self._life:
            self._life.channel.close()
        self.chats.renderer.abandon()

    # -- one life -----------------------------------------------------------------------------

    def _read(self, life: Life) -> None:
        try:
            for frame, fd in life.channel.frames():
                if fd is not None:
                    self._handle_descriptor(frame, fd)
                elif isinstance(frame, Loaded):
                    self._loaded(life, frame)
                elif isinstance(frame, LoadFailed):
                    life.failure = ErllamaError(reason_of(frame.reason), frame.detail)
                    life.channel.shutdown()
                else:
                    self._handle(life, frame)
        except Exception:
            # A frame that cannot be read or handled: this life is not to be trusted.
            logging.getLogger(__name__).exception("model %s: protocol failure", self.id)
            life.process.kill()
        finally:
            life.channel.shutdown()
            reason = life.process.wait()
            life.channel.close()
            self._ended(life, reason)

    def _loaded(self, life: Life, frame: Loaded) -> None:
        self.info = frame.info
        self.cache.attach(frame.info, frame.chunk, life)
        with self._lock:
            if self._state == "gone":
                return
            self._state = "up"
            self.tally.starts += 1
            self.loaded_at = self.used_at = time.monotonic_ns()
            waiting = [r for r in self._requests.values() if r.life is not life]
            for request in waiting:
                request.life = life
            self._changed.notify_all()
        self._on_up(self, life.pid)
        for request in waiting:
            life.send(request.frame())
        life.loaded.set()

    def _ended(self, life: Life, reason: Any) -> None:
        """Clean up after a process that has been reaped."""
        served = life.loaded.is_set()
        self.cache.detach()
        intact = served and self.adapters.intact()
        with self._lock:
            unloading = self._state == "gone"
            again = intact and not unloading and reason != "oom" and self._may_restart()
            if unloading:
                reason = self._reason
            self._state = "restarting" if again else "gone"
            self._phase = "idle"
            self._life = None
            lost = [r for r in self._requests.values() if r.admitted or not again]
            for request in lost:
                del self._requests[request.id]
            kept = list(self._requests.values())
            for request in kept:
                request.life = None
            self._changed.notify_all()
        for pending in list(life.calls.values()):
            pending.settle(error=died(self.id, life.pid, reason, "call"))
        for request in [*lost, *kept]:
            self.cache.closed(request, died=not unloading)
        for request in kept:
            request.closed = False
        for request in lost:
            self.history.keep(past_of(request))
            self._fail(request, life, reason)
        self.sessions.forget_kept()
        for request in [r for r in kept if r.cancelled]:
            self._end_unsent(request)
        if served:
            self._on_down(self, life.pid, reason)
        elif life.failure is None:
            life.failure = load_crashed(
                self.id, self.config.model_path, reason, life.process.last_words
            )
        life.loaded.set()
        if again:
            self._start_life()
        else:
            self._on_gone(self)

    def _may_restart(self) -> bool:
        now = time.monotonic()
        self._ends.append(now)
        while now - self._ends[0] > RESTART_WINDOW_S:
            self._ends.popleft()
        return len(self._ends) <= RESTARTS

    def _fail(self, request: Request, life: Life | None, reason: Any) -> None:
        if not request.over:
            if request.mode == "infer":
                request.on_error(stream_ended(self.id, reason))
            else:
                request.on_error(died(self.id, life.pid if life else None, reason, request.mode))
        self._add_up(request)

    def _fail_all(self, reason: Any) -> None:
        """End requests that wait for a life that will not come."""
        with self._lock:
            requests = list(self._requests.values())
            self._requests.clear()
        for request in requests:
            self._fail(request, None, reason)


def retire(hosts: Sequence[ModelHost]) -> bool:
    """Take models out of use to make room, all of them or, if one is not idle, none.

    Who comes to one of them from then on finds it unloaded.  Their processes are still to
    be ended.
    """
    with contextlib.ExitStack() as locks:
        for host in hosts:  # by one thread at a time, so in any order
            locks.enter_context(host._lock)
        if not all(host.idle for host in hosts):
            return False
        for host in hosts:
            host._state, host._reason = "gone", EVICTED
            host._changed.notify_all()
    return True
