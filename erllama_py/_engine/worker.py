"""The model process: ``python -m erllama_py._engine.worker FD``.

Two threads matter.  *Control* reads frames, tokenises, checks requests and answers
questions about the vocabulary: none of that waits for a tick.  *Engine* alone touches
the context (see :mod:`~erllama_py._engine.scheduler`).  Three more keep them free of what
takes long: the *loader* reads and verifies what plans want restored, the *outbox*
checksums what was captured and sends what the socket did not take at once, and
embeddings are computed on a thread with a context of its own.

The process outlives nothing: at end of file of its socket it exits at once, whatever a
tick is doing, so a core that dies by ``kill -9`` leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from array import array
from collections.abc import Callable
from typing import Any

from erllama_py._backends import open_backend
from erllama_py._backends.base import BLOCK, Backend, BackendError
from erllama_py._cache.policy import prefill_chunk
from erllama_py._engine.channel import Channel, ChannelClosed, Outbox
from erllama_py._engine.chat_text import chat_tokens
from erllama_py._engine.embeddings import Embeddings
from erllama_py._engine.frames import (
    Accepted,
    Adapt,
    Answer,
    Call,
    Cancel,
    Drafted,
    EndSession,
    Failed,
    Forget,
    Grants,
    Load,
    Loaded,
    LoadFailed,
    Log,
    Plan,
    Refused,
    Segment,
    Stop,
    Submit,
)
from erllama_py._engine.job import Job
from erllama_py._engine.loader import Loader
from erllama_py._engine.prompt import GENERATING, refusal
from erllama_py._engine.restore import Restore
from erllama_py._engine.scheduler import Scheduler
from erllama_py._engine.sharedkv import SharedKv
from erllama_py._engine.spoken import Spanning
from erllama_py._engine.tokenbytes import unpack_tokens

__all__ = ("main", "serve")

EXIT_BUG = 70
"""Exit status after an exception that is a defect of ours (EX_SOFTWARE)."""

STOP_S = 1.0
"""How long a process that is told to stop waits for the step that is running."""

_SWITCH_INTERVAL_S = 0.0005
"""The engine thread must not wait CPython's 5 ms for the control thread to yield."""


class Worker:
    """One model process, or its twin inside a test."""

    def __init__(self, channel: Channel, *, in_process: bool) -> None:
        self._channel = channel
        self._in_process = in_process
        self._out = Outbox(channel)
        self._kv = SharedKv()
        self._loader = Loader(self._kv, self._poke)
        self._loading = threading.Thread(
            target=self._guarded, args=(self._loader.run,), name="loader", daemon=True
        )
        self._loading.start()
        self._backend: Backend | None = None
        self._scheduler: Scheduler | None = None
        self._spanning: Spanning | None = None
        self._engine: threading.Thread | None = None
        self._embeddings: Embeddings | None = None
        self._embedding: threading.Thread | None = None

    def control(self) -> bool:
        """Read frames until the core closes or says stop; return whether it said so."""
        for frame, fd in self._channel.frames():
            match frame:
                case Submit():
                    self._submit(frame)
                case Plan():
                    self._plan(frame)
                case Cancel():
                    if scheduler := self._scheduler:
                        # Bound now: by the time it runs, the next frame may be here.
                        scheduler.mailbox.put(functools.partial(scheduler.cancel, frame.id))
                    if embeddings := self._embeddings:
                        embeddings.cancel(frame.id)
                case EndSession():
                    if scheduler := self._scheduler:
                        scheduler.mailbox.put(
                            functools.partial(scheduler.end_session, frame.session)
                        )
                case Drafted():
                    self._drafted(frame)
                case Call():
                    self._call(frame)
                case Adapt():
                    self._adapt(frame)
                case Grants():
                    self._kv.grant(frame.blocks, frame.logits)
                    self._poke()
                case Segment():
                    assert fd is not None
                    if frame.file:
                        self._kv.add_file(frame.index, fd)
                    else:
                        self._kv.add_segment(frame.index, frame.size, fd)
                case Forget():
                    self._kv.forget(frame.index)
                case Load():
                    self._engine = threading.Thread(
                        target=self._guarded,
                        args=(lambda load=frame: self._run_engine(load),),
                        name="engine",
                        daemon=True,
                    )
                    self._engine.start()
                case Stop():
                    return True
                case _:
                    raise ChannelClosed(f"unexpected {type(frame).__name__} from the core")
        return False

    def flush(self) -> None:
        """Let the engine store what follows replies that are out, and send it."""
        if self._scheduler:
            self._scheduler.mailbox.put(self._scheduler.stop)
            if self._scheduler.ended.wait(STOP_S):
                self._out.close()

    def end(self) -> None:
        """Stop everything; only the in-process twin gets here."""
        if self._embeddings and self._embedding:
            self._embeddings.close()
            self._embedding.join()
        if self._scheduler:
            self._scheduler.mailbox.put(self._scheduler.stop)
        if self._engine:
            self._engine.join()
        self._loader.close()
        self._loading.join()
        self._out.close()
        self._kv.close()

    def _poke(self) -> None:
        if self._scheduler:
            self._scheduler.mailbox.poke()

    def _guarded(self, run: Callable[[], None]) -> None:
        """Run a thread that no request can do without."""
        try:
            run()
        except Exception:  # noqa: BLE001 - reported and ended by, not swallowed
            # A defect of ours must end the process: the supervisor restarts it, while
            # a thread that died alone would leave every caller waiting.
            traceback.print_exc()
            if not self._in_process:
                sys.stderr.flush()
                os._exit(EXIT_BUG)
            self._channel.shutdown()

    # -- engine thread ------------------------------------------------------------------

    def _run_engine(self, load: Load) -> None:
        try:
            backend = open_backend(load.backend, log=self._log)
        except BackendError as error:
            self._out.put(LoadFailed(error.reason, error.detail))
            return
        info = backend.info
        chunk = prefill_chunk(load.policy, info.n_batch, info.n_ubatch, BLOCK)
        policy = load.policy if load.caching and (info.blocks or info.whole_rows) else None
        scheduler = Scheduler(backend, self._kv, self._out, policy, chunk)
        try:
            scheduler.adapt(load.adapters)
            self._spanning = Spanning(backend, load)
        except BackendError as error:
            self._out.put(LoadFailed(error.reason, error.detail))
            return
        self._backend, self._scheduler = backend, scheduler
        self._embeddings = Embeddings(backend, self._out, lambda: scheduler.busy)
        self._out.put(Loaded(info, chunk))
        scheduler.run()
        if self._in_process:
            backend.close()

    def _log(self, level: int, text: str) -> None:
        if level >= logging.WARNING:  # a load writes hundreds of lines below that
            self._out.put(Log(level, text))

    # -- control thread -----------------------------------------------------------------

    def _submit(self, frame: Submit) -> None:
        backend, scheduler, spanning = self._backend, self._scheduler, self._spanning
        assert backend is not None
        assert scheduler is not None
        assert spanning is not None
        sampler = None
        try:
            if frame.text is None:
                tokens, reply = unpack_tokens(frame.tokens), b""
            else:
                tokens = array("I", backend.tokenize(frame.text, special=True, parse_special=False))
                reply = tokens.tobytes()
            if refused := refusal(tokens, backend.info, frame.mode):
                self._out.put(Failed(frame.id, *refused))
                return
            limit = backend.info.n_ctx - len(tokens)
            if frame.mode in GENERATING:
                sampler = backend.new_sampler(frame.options.sampler)
            asked = frame.options.response_tokens
            target = limit if asked is None else min(asked, limit)
            job = Job(frame.id, frame.mode, tokens, frame.options, sampler, target)
            job.candidates = unpack_tokens(frame.candidates)
            job.session = frame.session
            if frame.mode in GENERATING:
                job.room = limit
                job.spoken = spanning.spoken(job)
        except BackendError as error:
            self._out.put(Failed(frame.id, error.reason, error.detail))
            return
        self._out.put(Accepted(frame.id, reply))
        scheduler.mailbox.put(lambda: scheduler.submit(job))

    def _plan(self, frame: Plan) -> None:
        scheduler = self._scheduler
        assert scheduler is not None
        restore = Restore(frame, self._kv, self._loader.nudge)
        scheduler.mailbox.put(lambda: scheduler.plan(frame.id, restore))
        self._loader.add(restore)

    def _drafted(self, frame: Drafted) -> None:
        scheduler = self._scheduler
        assert scheduler is not None
        tokens = unpack_tokens(frame.tokens)
        scheduler.mailbox.put(lambda: scheduler.drafted(frame.id, frame.length, tokens))

    def _adapt(self, frame: Adapt) -> None:
        scheduler = self._scheduler
        assert scheduler is not None

        def change() -> None:
            try:
                scheduler.adapt(frame.adapters)
            except BackendError as error:
                self._out.put(Refused(frame.id, error.reason, error.detail))
            else:
                self._out.put(Answer(frame.id, None))

        scheduler.mailbox.put(change)

    def _call(self, frame: Call) -> None:
        if frame.what in ("evict", "shutdown"):
            self._save_live(frame)
            return
        assert self._backend is not None
        if frame.what == "embed":
            self._embed(frame)
            return
        try:
            value = answer(self._backend, frame.what, frame.data)
        except BackendError as error:
            self._out.put(Refused(frame.id, error.reason, error.detail))
        else:
            self._out.put(Answer(frame.id, value))

    def _embed(self, frame: Call) -> None:
        embeddings = self._embeddings
        assert embeddings is not None
        if self._embedding is None:  # most models are never asked
            self._embedding = threading.Thread(
                target=self._guarded, args=(embeddings.run,), name="embedding", daemon=True
            )
            self._embedding.start()
        embeddings.ask(frame)

    def _save_live(self, frame: Call) -> None:
        """Save what runs, between two ticks; the answer goes out behind the rows."""
        scheduler = self._scheduler
        assert scheduler is not None

        def save() -> None:
            scheduler.save_live(frame.what)
            self._out.put(Answer(frame.id, None))

        scheduler.mailbox.put(save)


def answer(backend: Backend, what: str, data: Any) -> Any:
    """Answer a :class:`~erllama_py._engine.frames.Call`.

    :raises BackendError: what the backend refused.
    """
    match what:
        case "tokenize":
            tokens = backend.tokenize(data, special=True, parse_special=False)
            return array("I", tokens).tobytes()
        case "tokenize_chat":
            return array("I", chat_tokens(backend, data)).tobytes()
        case "tokenize_marked":
            text, mark = data
            return array("I", chat_tokens(backend, text, mark)).tobytes()
        case "controls":
            return backend.control_texts()
        case "detokenize":
            return backend.detokenize(unpack_tokens(data))
        case "device_memory":
            return backend.device_memory()
        case _:
            raise BackendError("not_supported", what)


def serve(sock: socket.socket, *, in_process: bool = False) -> None:
    """Serve one model over a connected socket until the core closes it."""
    channel = Channel(sock)
    worker = Worker(channel, in_process=in_process)
    try:
        if worker.control():
            worker.flush()
    finally:
        if in_process:
            worker.end()
            channel.close()


def main() -> None:
    """Run as a process; the socket's descriptor is the only argument."""
    # Jupyter interrupts by process group and terminals do too; the core decides when
    # this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    # Where memory runs out, the kernel should take this process and not its parent,
    # which may be somebody's notebook.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("500")
    try:
        serve(socket.socket(fileno=int(sys.argv[1])))
    finally:
        # Not sys.exit: a tick may be running in native code, and nothing here needs
        # flushing that the kernel does not do.
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
