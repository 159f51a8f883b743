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
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from erllama_py._backends.base import BackendInfo
from erllama_py._engine.adapters import Adapters, Scales
from erllama_py._engine.caching import ModelCache
from erllama_py._engine.channel import Channel, ChannelClosed
from erllama_py._engine.chats import Chats
from erllama_py._engine.ends import died, load_crashed, model_gone, reason_of, stream_ended
from erllama_py._engine.frames import (
    Accepted,
    Adapt,
    AdapterSet,
    Admitted,
    Answer,
    AnyFrame,
    Call,
    Cancel,
    Captured,
    Closed,
    Done,
    EndSession,
    Failed,
    Frame,
    Kept,
    Load,
    Loaded,
    LoadFailed,
    Log,
    Lookup,
    Packed,
    Phase,
    Refused,
    Restored,
    Saved,
    SavedWhole,
    Scored,
    Stop,
    Token,
    Trace,
    Verified,
    WantDraft,
)
from erllama_py._engine.noted import History, past_of
from erllama_py._engine.process import Running, start_in_process, start_process
from erllama_py._engine.request import Request
from erllama_py._engine.sessions import Sessions
from erllama_py._engine.tally import Tally
from erllama_py._engine.transfer import Transfer
from erllama_py.config import LoadConfig
from erllama_py.errors import ErllamaError, ModelGone
from erllama_py.types import Atom, ModelPid, Ref, SessionKey, next_serial

__all__ = ("EVICTED", "ModelHost", "retire")

CALL_TIMEOUT_S = 30.0
"""How long a call by id waits for a model that is being restarted."""

RESTARTS, RESTART_WINDOW_S = 5, 30.0
"""The original supervisor's intensity: the sixth end within the window is final."""

END_TIMEOUT_S = 2.0
"""How long an unloaded process may take to end by itself."""

EVICTED: Final = (Atom("shutdown"), Atom("evicted"))
"""How a model ends that makes room for another: in order, and not asked to by its name."""

_native_log = logging.getLogger("erllama_py.native")


class Life:
    """One run of the model process."""

    def __init__(self, process: Running, channel: Channel) -> None:
        self.pid = ModelPid(next_serial())
        self.process = process
        self.channel = channel
        self.loaded = threading.Event()
        self.failure: ErllamaError | None = None
        self.calls: dict[int, _Pending] = {}

    def send(self, frame: Frame, fd: int | None = None) -> None:
        """Send a frame; a dead process is the reader's to notice.

        Not even there is it an error: what it sent before it died is still to be read.
        """
        with contextlib.suppress(ChannelClosed):
            self.channel.send(frame, fd)


class _Pending:
    """A call waiting for its answer."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.value: Any = None
        self.error: ErllamaError | None = None

    def result(self) -> Any:
        """Return the answer, or raise what was the matter."""
        self.done.wait()
        if self.error:
            raise self.error
        return self.value


class ModelHost:
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
        self.id = model_id
        self.config = config
        self.cache = cache
        self._on_up = on_up
        self._on_down = on_down
        self._on_gone = on_gone
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
        self._ends: collections.deque[float] = collections.deque()
        self._phase = "idle"
        self._reason: Any = Atom("shutdown")
        """What an end that is wanted is called."""
        self.used_at = time.monotonic_ns()
        """When a request or a call last came or ended."""
        self.last_hit: dict[str, Any] | None = None
        self.loaded_at = 0
        """Monotonic nanoseconds of the last start."""
        self.info: BackendInfo
        """There from the first successful load on."""
        self.chats = Chats(
            model_id,
            self.call,
            lambda: self.info,
            config.chat_template,
            cache,
        )

    # -- life cycle -------------------------------------------------------------------------

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

    def end_retired(self) -> None:
        """End the process of a model that :func:`retire` took out of use."""
        if life := self._life:
            self._end(life)

    def abandon(self) -> None:
        """Close a forked child's copy of the socket; the model is the parent's."""
        if self._life:
            self._life.channel.close()
        self.chats.renderer.abandon()

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

    # -- requests -----------------------------------------------------------------------------

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
        self._forget(request)
        request.on_done(
            Done(request.id, "cancelled", None, b"", 0, 0, 0, saving=False), finish_key=None
        )
        self.history.keep(past_of(request))
        self._add_up(request)
        self.sessions.over(request)

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

    def _ask(self, frame_of: Callable[[int], Frame]) -> tuple[Life, Any]:
        """Send a frame that is answered; return who answered it, and what."""
        with self._changed:
            self._changed.wait_for(lambda: self._state in ("up", "gone"), CALL_TIMEOUT_S)
            life = self._life
            if self._state != "up" or life is None:
                raise model_gone(self.id)
            number, pending = next_serial(), _Pending()
            life.calls[number] = pending
            self.used_at = time.monotonic_ns()
        life.send(frame_of(number))
        return life, pending.result()

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
            number, pending = next_serial(), _Pending()
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

    # -- frames from the model process, on the reader thread ----------------------------------

    def _read(self, life: Life) -> None:
        try:
            for frame, fd in life.channel.frames():
                if fd is None:
                    self._handle(life, frame)
                else:
                    self._handle_descriptor(frame, fd)
        except Exception:
            # A frame that cannot be read or handled: this life is not to be trusted.
            logging.getLogger(__name__).exception("model %s: protocol failure", self.id)
            life.process.kill()
        finally:
            life.channel.shutdown()
            reason = life.process.wait()
            life.channel.close()
            self._ended(life, reason)

    def _handle(self, life: Life, frame: AnyFrame) -> None:
        match frame:
            case (
                Token()
                | WantDraft()
                | Captured()
                | Saved()
                | Lookup()
                | Accepted()
                | Admitted()
                | Verified()
            ):
                request = self._requests.get(frame.id)
                if request is not None:
                    self._handle_request(life, request, frame)
            case Scored():
                if (request := self._requests.get(frame.id)) is not None:
                    request.on_scored(frame)
            case Restored() | Closed():
                self._handle_release(frame)
            case Done() | Failed():
                self._handle_end(frame)
            case Phase():
                self._phase = frame.phase
            case Kept():
                self.sessions.kept(frame.session, frame.tokens)
            case Answer() | Refused():
                pending = life.calls.pop(frame.id, None)
                if pending is None:
                    return  # nobody waits for it any more
                if isinstance(frame, Answer):
                    pending.value = frame.value
                else:
                    pending.error = ErllamaError(reason_of(frame.reason), frame.detail)
                pending.done.set()
            case Log():
                _native_log.log(frame.level, "%s: %s", self.id, frame.text)
            case Loaded():
                self._loaded(life, frame)
            case LoadFailed():
                life.failure = ErllamaError(reason_of(frame.reason), frame.detail)
                life.channel.shutdown()
            case _:
                raise ChannelClosed(f"unexpected {type(frame).__name__} from the model")

    def _handle_descriptor(self, frame: AnyFrame, fd: int) -> None:
        """Handle a frame that came with anonymous memory, which is ours to close."""
        named = frame.id if isinstance(frame, SavedWhole | Packed | Trace) else 0
        request = self._requests.get(named)
        if request is None:
            os.close(fd)
        elif isinstance(frame, Packed) and isinstance(request, Transfer):
            self.cache.count_packing(frame.pack_ns)
            request.on_packed(frame, fd)
        elif isinstance(frame, SavedWhole):
            self.cache.saved_whole(request, frame, fd)
            self.cache.replenish()
        elif isinstance(frame, Trace):
            with open(fd, "rb") as memory:
                # The descriptor shares its place in the file with its writer's.
                memory.seek(0)
                request.trace = memory.read(frame.rows * self.info.logits_bytes)

    def _handle_request(self, life: Life, request: Request, frame: AnyFrame) -> None:
        match frame:
            case Token():
                request.on_token(frame.data, frame.token, frame.parts)
            case WantDraft():
                if request.drafts is not None:
                    request.drafts.ask(frame, request.tokens[: frame.length], life.send)
            case Captured():
                self.cache.captured(request, frame)
                self.cache.replenish()
            case Saved():
                self.cache.saved(request, frame)
                self.cache.replenish()
            case Lookup():
                self.cache.admitted(request, frame.adapters)
                self.cache.lookup(request, frame, life)
            case Accepted():
                request.on_prompt(frame.tokens)
            case Verified():
                request.on_verified(frame)
            case Admitted():
                self.cache.admitted(request, frame.adapters)
                request.admitted = True
                request.kind, request.prefix_len = frame.kind, frame.prefix_len
                if frame.kind == "cold":
                    request.exactness = None
                elif frame.kind == "sticky":  # decoded there, or beside others
                    request.exactness = "token"
                if request.mode != "verify":
                    self.last_hit = {"kind": Atom(frame.kind), "prefix_len": frame.prefix_len}

    def _handle_release(self, frame: Restored | Closed) -> None:
        request = self._requests.get(frame.id)
        if request is None:
            return
        if isinstance(frame, Restored):
            self.cache.restored(request, frame)
            return
        self.cache.closed(request, prefilled=(frame.prefill_tokens, frame.prefill_ns))
        if not request.over:  # a defect of ours, but nobody may wait for ever
            request.on_error(ErllamaError("closed", "the request ended without a result"))
        self._forget(request)
        self.cache.replenish()

    def _handle_end(self, frame: Done | Failed) -> None:
        request = self._requests.get(frame.id)
        if request is None:
            return
        if isinstance(frame, Done):
            request.on_done(frame, self.cache.finish_key(request, frame))
        else:
            request.on_error(ErllamaError(reason_of(frame.reason), frame.detail))
            self.cache.closed(request)  # whatever follows is not for it any more
            self._forget(request)

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

    # -- the end of a life -------------------------------------------------------------------

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
            pending.error = died(self.id, life.pid, reason, "call")
            pending.done.set()
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
