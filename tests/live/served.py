"""A node of ours as live tests see it: a few functions, two names, and what reached them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import anyio

from erl_bridge import (
    CallContext,
    Caller,
    ErlangError,
    GenHandler,
    Node,
    NodeThread,
    Process,
    Undef,
)
from erl_bridge.etf import Atom, Pid
from tests.live.erlnode import COOKIE, unique_name

Call = Callable[..., str]
"""What the fixture ``call`` gives: an expression's value at the peer, as text."""


class EchoServer(GenHandler):
    """Registered as ``echo``: answers, fails, waits, and notes what it is told."""

    def __init__(self, seen: queue.Queue[Any]) -> None:
        self.seen = seen

    def handle_call(self, request: Any, caller: Caller) -> Any:
        match request:
            case (Atom(name="wait"), int(ms)):
                return self.late(ms)
            case (Atom(name="exit"), reason):
                raise ErlangError("exit", reason)
            case Atom(name="bug"):
                raise KeyError("bug")
            case Atom(name="tag"):
                return (Atom("tag"), caller.tag)
        return (Atom("echo"), request)

    async def late(self, ms: int) -> Any:
        await anyio.sleep(ms / 1000)
        return Atom("late")

    def handle_cast(self, message: Any, peer: str) -> None:
        self.seen.put((Atom("cast"), message))

    def handle_info(self, message: Any, peer: str) -> None:
        self.seen.put((Atom("info"), message))


class Served:
    """Our node in a thread.

    :ivar seen: what casts and messages brought, in order.
    :ivar process: a process whose pid ``t:pid/0`` hands out; ``t:new/0`` makes a new one.
    """

    def __init__(self, name: str | None = None, **options: Any) -> None:
        options.setdefault("cookie", COOKIE)
        self.seen: queue.Queue[Any] = queue.Queue()
        self.met = 0
        self.waiting = threading.Event()
        self.abandoned = threading.Event()
        self.cancelled = threading.Event()
        self.node = Node(name or unique_name("py"), apply=self.apply, **options)
        self.thread = NodeThread(self.node)
        self.thread.start()
        self.process = self.new()
        self.node.register_name("echo", EchoServer(self.seen))
        self.node.register_name("named", self.new())

    @property
    def name(self) -> str:
        return self.node.name

    def stop(self) -> None:
        self.thread.stop()

    def new(self) -> Process:
        """Make a process that notes everything that reaches it."""
        return self.node.spawn_process(
            self.seen.put,
            lambda pid, reason: self.seen.put((Atom("exit"), pid, reason)),
            on_exit_request=lambda pid, reason: self.seen.put((Atom("asked"), pid, reason)),
        )

    def next(self, timeout: float = 10) -> Any:
        """The next thing that reached us."""
        return self.seen.get(timeout=timeout)

    def nothing_came(self) -> bool:
        return self.seen.empty()

    def apply(self, context: CallContext, module: str, function: str, args: list[Any]) -> Any:
        match module, function, args:
            case "t", "add", [a, b]:
                return a + b
            case "t", "echo", [term]:
                return term
            case "t", "who", []:
                return (Atom(context.peer), context.caller, context.group_leader)
            case "t", "wait", [ms]:
                return self.wait(context, ms)
            case "t", "meet", [number]:
                return self.meet(number)
            case "t", "fail", [Atom() as kind, reason]:
                raise ErlangError(kind.name, reason)  # type: ignore[arg-type]  # the test says which
            case "t", "late_fail", [Atom() as kind, reason]:
                return self.late_fail(kind, reason)
            case "t", "bug", []:
                raise ZeroDivisionError("a bug of ours")
            case "t", "no_term", []:
                return "a str has no external form"
            case "t", "ints", [n]:
                return list(range(n))
            case "t", "bytes", [n]:
                return bytes(n)
            case "t", "size", [term]:
                return len(term)
            case "t", "pid", []:
                return self.process.pid
            case "t", "server", []:
                server = self.node.whereis("echo")
                assert server is not None
                return server.pid
            case "t", "new", []:
                return self.new().pid
            case "t", "end", [Pid() as pid, reason]:
                process = self.node.find(pid)
                assert process is not None
                process.exit(reason)
                return Atom("ok")
            case "t", "note", [term]:
                self.seen.put(term)
                return Atom("ok")
        raise Undef(module, function, args)

    async def wait(self, context: CallContext, ms: int) -> Any:
        context.on_abandoned(self.abandoned.set)
        self.waiting.set()
        try:
            await anyio.sleep(ms / 1000)
        except BaseException:
            self.cancelled.set()
            raise
        return Atom("waited")

    async def meet(self, number: int) -> Any:
        """Return when ``number`` callers are here at once."""
        self.met += 1
        while self.met < number:  # noqa: ASYNC110  # the test's callers are what is waited for
            await anyio.sleep(0.005)
        return (Atom("met"), self.met)

    async def late_fail(self, kind: Atom, reason: Any) -> Any:
        await anyio.sleep(0.001)
        raise ErlangError(kind.name, reason)  # type: ignore[arg-type]  # the test says which
