"""Real Erlang nodes under test control: one that evaluates what it is told, line by line."""

from __future__ import annotations

import itertools
import os
import queue
import shutil
import stat
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

COOKIE = "erllama_live"

#: Reads one expression a line, answers with one line.  The evaluating process stays the
#: same, so links, monitors and mailboxes carry over from one expression to the next.
_SERVER = r"""
Loop = fun Loop() ->
    case io:get_line("") of
        eof -> halt(0, [{flush, false}]);
        Line ->
            Answer = try
                {ok, Tokens, _} = erl_scan:string(Line),
                {ok, Exprs} = erl_parse:parse_exprs(Tokens),
                {value, Value, _} = erl_eval:exprs(Exprs, []),
                {"ok", Value}
            catch Class:Reason:Stack -> {"failed", {Class, Reason, Stack}}
            end,
            io:format("~n@@~s ~0tp~n", [element(1, Answer), element(2, Answer)]),
            Loop()
    end
end,
io:format("~n@@ready ~p~n", [node()]),
Loop().
"""

_serial = itertools.count(1)


def unique_name(stem: str = "t") -> str:
    """Return a node name no other test, and no other run of the tests, uses."""
    return f"{stem}_{os.getpid()}_{next(_serial)}"


def executable(root: Path, scratch: Path) -> str:
    """Return the ``erl`` of a runtime unpacked at ``root``.

    Its start script finds its root by itself.  An unpack that was not pip's lacks the
    executable bits; then a copy that has them is made in ``scratch``.
    """
    erl = root / "bin" / "erl"
    beam = next(root.glob("erts-*/bin/beam.smp"))
    if os.access(erl, os.X_OK) and os.access(beam, os.X_OK):
        return str(erl)
    copy = scratch / "otp"
    shutil.copytree(root, copy)
    for program in [*copy.glob("bin/*"), *copy.glob("erts-*/bin/*")]:
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(copy / "bin" / "erl")


class ErlangFailure(AssertionError):
    """An expression raised in the Erlang node."""


class ErlNode:
    """One running node.

    :param erl: the executable.
    :param extra: more arguments for it.
    """

    def __init__(
        self,
        erl: str,
        name: str | None = None,
        *,
        cookie: str = COOKIE,
        long_names: bool = False,
        extra: tuple[str, ...] = (),
    ) -> None:
        self.short = name or unique_name("erl")
        # -start_epmd false: the test's own epmd is there, and erl's would outlive the test.
        command = [
            erl,
            "-noshell",
            *("-start_epmd", "false"),
            *("-name" if long_names else "-sname", self.short),
            *("-setcookie", cookie),
            *("-kernel", "logger_level", "critical"),
            *extra,
            *("-eval", " ".join(_SERVER.split("\n"))),
        ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            bufsize=1,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.name = self._answer(20)
        except BaseException:
            self.kill()
            raise

    def eval(self, expression: str, timeout: float = 30) -> str:
        """Evaluate an expression (no dot at the end) and return its value as text."""
        self.begin(expression)
        return self._answer(timeout)

    def begin(self, expression: str) -> None:
        """Start an evaluation whose value :meth:`result` returns."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(expression.split("\n")) + ".\n")

    def result(self, timeout: float = 30) -> str:
        """Return the value of what :meth:`begin` started."""
        return self._answer(timeout)

    def stop(self) -> None:
        """End the node."""
        if self.process.stdin is not None and self.process.poll() is None:
            try:
                self.process.stdin.close()
                self.process.wait(5)
            except (OSError, subprocess.TimeoutExpired):
                pass
        self.kill()

    def kill(self) -> None:
        """End the node the hard way."""
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@@"):
                self._lines.put(line[2:].rstrip("\n"))
            elif line.strip():
                self._log.append(line)
        self._lines.put(None)

    def _answer(self, timeout: float) -> str:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise ErlangFailure(f"no answer within {timeout} s: {''.join(self._log)}") from None
        if line is None:
            raise ErlangFailure(f"the node ended: {''.join(self._log)}")
        kind, _, value = line.partition(" ")
        if kind == "failed":
            raise ErlangFailure(value)
        return value.strip("'") if kind == "ready" else value
