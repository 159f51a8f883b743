"""The core's end of the process that renders a model's chats.

It is started with the first chat and kept, and is one model's own: a template that has to be
stopped keeps the chats of its model waiting, and nobody else.  What it is held to says
:mod:`erllama_py._templates.child`; here is only what is left when all of that fails: an
answer that does not come in ``WALL_S``, or is longer than it may be, ends the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final

from erllama_py._engine.process import child_environment
from erllama_py._templates import limits
from erllama_py.errors import ErllamaError

__all__ = ("Renderer", "RendererClosed")

WALL_S: Final = 30.0
"""Its processor time is bounded; a machine may be too busy to give it that."""

_MAX_REQUEST: Final = 64 << 20
_MAX_ANSWER: Final = 4 * limits.MAX_CHARS + 1
_MODULE: Final = "erllama_py._templates.child"


class RendererClosed(Exception):
    """The model is being unloaded."""


class Renderer:
    """Renders one model's chats, one after the other."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._lock = threading.Lock()  # guards what follows, and is never held long
        self._process: subprocess.Popen[bytes] | None = None
        self._leash = -1
        """Closed, it ends the process, also while that is busy; the kernel sees to it."""
        self._closed = False

    @property
    def os_pid(self) -> int | None:
        """The process's id, while there is one."""
        process = self._process
        return process.pid if process else None

    def render(self, chat: dict[str, Any]) -> bytes:
        """Render a chat.

        :param chat: ``template``, ``messages``, ``system``, ``tools``, ``variables``.
        :raises ErllamaError: ``template_failed``, ``too_large``.
        :raises RendererClosed: :meth:`close` was called.
        """
        request = json.dumps(chat).encode()
        if len(request) > _MAX_REQUEST:
            raise ErllamaError("too_large", f"a chat request of {len(request)} bytes")
        with self._turn:
            answer = self._answer(request)
            if answer[:1] == b"T":
                return answer[1:]
            reason, words, last = json.loads(answer[1:])
            if last:
                self._end(self._process)
            raise _failed(words) if reason == "template_failed" else ErllamaError(reason, words)

    def close(self) -> None:
        """End the process, whatever it does.  Idempotent."""
        with self._lock:
            self._closed = True
            process = self._process
        if process is not None:
            process.kill()  # whoever waits for it is told by its end
        with self._turn:
            self._end(process)

    def abandon(self) -> None:
        """Close a forked child's copies of its pipes; the process is the parent's."""
        process, self._process = self._process, None
        if process is not None:
            _close_pipes(process)
            os.close(self._leash)

    def _answer(self, request: bytes) -> bytes:
        kept = self._process is not None
        process = self._started()
        with self._bounded(process) as late:
            answer = _exchange(process, request)
        if answer is not None:
            return answer
        self._end(process)
        if self._closed:
            raise RendererClosed
        if kept and process.returncode != -signal.SIGPROF and not late.is_set():
            return self._answer(request)  # it may have ended since the last chat
        raise _stopped(process.returncode, late=late.is_set())

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise RendererClosed
            if self._process is None:
                theirs, self._leash = os.pipe()
                try:
                    self._process = subprocess.Popen(
                        [sys.executable, "-P", "-m", _MODULE, str(theirs)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        pass_fds=[theirs],
                        start_new_session=True,
                        env=child_environment(),
                    )
                finally:
                    os.close(theirs)
            return self._process

    @contextlib.contextmanager
    def _bounded(self, process: subprocess.Popen[bytes]) -> Iterator[threading.Event]:
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(WALL_S, stop)
        timer.daemon = True
        timer.start()
        try:
            yield late
        finally:
            timer.cancel()

    def _end(self, process: subprocess.Popen[bytes] | None) -> None:
        if process is None:
            return
        process.kill()
        _close_pipes(process)
        process.wait()
        with self._lock:
            if self._process is process:
                self._process = None
                os.close(self._leash)


def _exchange(process: subprocess.Popen[bytes], request: bytes) -> bytes | None:
    """Send a request and return the answer; ``None`` where none comes."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(len(request).to_bytes(4, "little") + request)
        process.stdin.flush()
        head = process.stdout.read(4)
        size = int.from_bytes(head, "little")
        if len(head) < 4 or not 0 < size <= _MAX_ANSWER:
            return None
        answer = process.stdout.read(size)
    except (OSError, ValueError):  # it has ended, or its pipes were closed
        return None
    return answer if len(answer) == size else None


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not sent is of no use
                pipe.close()


def _failed(words: str) -> ErllamaError:
    return ErllamaError("template_failed", f"the model's chat template failed: {words}")


def _stopped(status: int | None, *, late: bool) -> ErllamaError:
    if late:
        return _failed(f"it had no answer within {WALL_S:.0f} s")
    if status == -signal.SIGPROF:
        return _failed(f"it ran for {limits.CPU_S:.0f} s, and was stopped")
    return _failed(f"it ended the process that renders it (status {status})")
