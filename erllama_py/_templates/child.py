"""The process that renders one model's chats; run by ``_engine/renderer.py``.

Templates come out of model files.  Inside Python a loop of theirs cannot be stopped, nor a
number of a billion digits, which keeps the interpreter's lock besides; so they run where the
kernel can stop them:

=========  ====================================================================
processor  seconds for each chat, by a timer whose signal ends the process
memory     address space: what asks for more fails
output     characters
files      none is opened for writing, and no process is started
=========  ====================================================================

How much says :mod:`erllama_py._templates.limits`.

A message either way is its length (4 bytes, little endian) and that many bytes: a request is
a JSON map (``template``, and what :mod:`erllama_py._templates.shape` wants), an answer the
byte ``T`` and the rendered text, or ``E`` and a JSON list of reason, message, and whether
this process had better be replaced.

It ends when its input does; and while it renders, by a signal (SIGIO) when the other end of
the leash is closed, a pipe that nobody writes to: then nobody is left who would wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import sys
from typing import Any, BinaryIO, Final

import jinja2

from erllama_py._templates.limits import CPU_S, MAX_CHARS, MEMORY
from erllama_py._templates.sandbox import Refused, TooLong, make_environment, render
from erllama_py._templates.shape import Shape

__all__ = ("Templates", "main")

_KEPT: Final = 8
"""Compiled templates."""
_MAX_WORDS: Final = 1000
"""Of a template's own error."""


class _Compiled:
    """A template, ready to render."""

    def __init__(self, environment: jinja2.Environment, text: str) -> None:
        self._template = environment.from_string(text)
        self._shape = Shape(self._render, text)

    def chat(self, chat: dict[str, Any]) -> str:
        return self._render(self._shape.variables(chat))

    def _render(self, variables: dict[str, Any]) -> str:
        return render(self._template, variables, MAX_CHARS)


class Templates:
    """Renders requests; keeps the newest templates compiled."""

    def __init__(self) -> None:
        self._environment = make_environment()
        self._compiled: dict[str, _Compiled] = {}

    def answer(self, request: bytes) -> bytes:
        """Return the answer to a request."""
        try:
            chat = json.loads(request)
            text = chat["template"]
            compiled = self._compiled.get(text)
            if compiled is None:
                while len(self._compiled) >= _KEPT:
                    self._compiled.pop(next(iter(self._compiled)))
                compiled = self._compiled[text] = _Compiled(self._environment, text)
            return b"T" + compiled.chat(chat).encode(errors="surrogateescape")
        except TooLong:
            return _refusal("too_large", "the rendered chat is longer than 4 MiB")
        except MemoryError:
            return _refusal("template_failed", f"it wants more than {MEMORY >> 20} MiB", last=True)
        except RecursionError:
            return _refusal("template_failed", "it calls itself without end", last=True)
        except Refused as error:
            return _refusal("template_failed", str(error))
        except jinja2.TemplateSyntaxError as error:
            return _refusal("template_failed", f"line {error.lineno}: {error.message}")
        except Exception as error:  # noqa: BLE001 - whatever it is, the template did it
            return _refusal("template_failed", f"{type(error).__name__}: {error}")


def _refusal(reason: str, words: str, *, last: bool = False) -> bytes:
    said = words[:_MAX_WORDS].encode(errors="replace").decode()
    return b"E" + json.dumps([reason, said, last]).encode()


def _limit() -> None:
    """Give up what a template has no use for."""
    limits = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0, "RLIMIT_AS": MEMORY}
    for name, value in limits.items():
        # Not every system has each of them.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            resource.setrlimit(getattr(resource, name), (value, value))


def _hold(leash: int) -> None:
    """Have the kernel end this process when the leash's other end is closed."""
    fcntl.fcntl(leash, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(leash, fcntl.F_SETFL, fcntl.fcntl(leash, fcntl.F_GETFL) | os.O_ASYNC)


def _serve(source: BinaryIO, sink: BinaryIO) -> None:
    templates = Templates()
    while len(head := source.read(4)) == 4:
        request = source.read(int.from_bytes(head, "little"))
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        answer = templates.answer(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sink.write(len(answer).to_bytes(4, "little") + answer)
        sink.flush()


def main() -> None:
    """Serve over standard input and output; the leash's descriptor is the only argument."""
    # Jupyter interrupts by process group, and terminals do too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _hold(int(sys.argv[1]))
    _limit()
    # Not sys.stdout: nothing else may write there.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(BrokenPipeError):
        _serve(sys.stdin.buffer, sink)
    os._exit(0)


if __name__ == "__main__":
    main()
