"""Memory of the machine's non-CPU devices, asked where llama.cpp lives.

The core never loads llama.cpp, so a model process answers; where none runs, a process
is started for the question.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

from erllama_py._engine.host import ModelHost
from erllama_py._engine.process import child_environment
from erllama_py.errors import ErllamaError

__all__ = ("device_memory",)

_ASK = (
    "from erllama_py._backends.llama_native import device_memory;"
    "import sys; sys.stdout.write('%d %d' % device_memory())"
)
_TIMEOUT_S = 30.0


def device_memory(hosts: Iterable[ModelHost]) -> tuple[int, int]:
    """Return (total, free) bytes; (0, 0) on a machine without devices.

    :raises ErllamaError: ``exception``: the engine could not be asked.
    """
    for host in hosts:
        if host.config.model_path and host.pid is not None:
            total, free = host.call("device_memory", None)
            return total, free
    try:
        answer = subprocess.run(
            [sys.executable, "-P", "-c", _ASK],
            env=child_environment(),
            check=True,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            start_new_session=True,
        ).stdout
        total, free = map(int, answer.split())
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ErllamaError("exception", f"the engine could not be asked: {error}") from error
    return total, free
