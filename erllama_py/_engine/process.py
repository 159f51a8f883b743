"""Start a model process and learn how it ended."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Protocol

from erllama_py._engine import worker
from erllama_py.types import Atom

__all__ = (
    "ModelProcess",
    "Running",
    "child_environment",
    "start_in_process",
    "start_process",
)

SPIN_COUNT = "1000"
"""How often an engine thread looks for work before it sleeps; libgomp's own is 300 000.

The long spin costs most where it gains least: beside one busy core, 256 tokens on two
threads prefill in 5.0 s with it and 2.2 s without (measured); on an idle machine both
take 0.75 s and decode at 130 tokens/s.  Not spinning at all decodes at 46 tokens/s.
"""

_STDERR_LINES = 40
_END_TIMEOUT_S = 5.0
_SOURCE = str(Path(__file__).resolve().parents[2])


class Running(Protocol):
    """A started model process, or its in-process twin."""

    def wait(self) -> object:
        """Block until it has ended; return the Erlang reason of its exit."""

    def kill(self) -> None:
        """End it at once."""

    @property
    def os_pid(self) -> int | None:
        """The operating system's process id, if it has one of its own."""

    @property
    def last_words(self) -> str:
        """The last line it wrote to stderr, such as a failed assertion."""


class ModelProcess:
    """A model in an operating-system process of its own.

    It gets a session of its own: Jupyter interrupts and kills by process group, and an
    interrupted cell must not take the model with it.
    """

    def __init__(self, child_end: socket.socket) -> None:
        self._process = subprocess.Popen(
            # -P: a user's queue.py in the working directory must not shadow the library.
            [sys.executable, "-P", "-m", worker.__name__, str(child_end.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[child_end.fileno()],
            start_new_session=True,
            env=child_environment(),
        )
        self._stderr: collections.deque[str] = collections.deque(maxlen=_STDERR_LINES)
        self._drain = threading.Thread(target=self._read_stderr, name="model-stderr", daemon=True)
        self._drain.start()
        self._oom_kills = _oom_kills()

    @property
    def os_pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def last_words(self) -> str:
        """The last line on stderr."""
        return self._stderr[-1] if self._stderr else ""

    def kill(self) -> None:
        """Send SIGKILL; nothing in the process needs a last moment."""
        self._process.kill()

    def wait(self) -> object:
        """Reap the process and return how it ended.

        ``normal``; ``killed`` for SIGKILL; ``oom`` where the kernel took it for
        memory; ``{signal, Name}``; ``{exit_status, N}``.
        """
        try:
            status = self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._drain.join(_END_TIMEOUT_S)
        if status == 0:
            return Atom("normal")
        if status == -signal.SIGKILL:
            return Atom("oom" if _oom_kills() > self._oom_kills else "killed")
        if status < 0:
            return (Atom("signal"), Atom(signal.Signals(-status).name))
        return (Atom("exit_status"), status)

    def _read_stderr(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        with stream:
            for line in stream:
                text = line.decode(errors="replace").strip()
                if text:
                    self._stderr.append(text)


class InProcess:
    """The same worker on threads of this process; for the stub backend in tests."""

    def __init__(self, child_end: socket.socket) -> None:
        self._socket = child_end
        self._thread = threading.Thread(
            target=worker.serve,
            args=(child_end,),
            kwargs={"in_process": True},
            name="model-in-process",
            daemon=True,
        )
        self._thread.start()

    @property
    def os_pid(self) -> None:
        """It has none of its own."""
        return None

    @property
    def last_words(self) -> str:
        """Nothing: what it prints is this process's."""
        return ""

    def kill(self) -> None:
        """Cut its socket: its threads end."""
        with contextlib.suppress(OSError):  # ended already
            self._socket.shutdown(socket.SHUT_RDWR)

    def wait(self) -> object:
        """Join its threads."""
        self._thread.join()
        return Atom("normal")


def child_environment() -> dict[str, str]:
    """Return the environment for a Python child that imports this package.

    Run from a source tree, the package may be importable only through this process's
    ``sys.path``.
    """
    paths = filter(None, [_SOURCE, os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    return environment


def start_process() -> tuple[Running, socket.socket]:
    """Start a model process; return it and the core's end of its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        return ModelProcess(theirs), ours


def start_in_process() -> tuple[Running, socket.socket]:
    """Start the in-process twin."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return InProcess(theirs), ours


def _oom_kills() -> int:
    """Return how often the kernel has killed for memory, as far as it tells."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        try:
            for line in path.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
        except OSError:
            continue
    return 0
