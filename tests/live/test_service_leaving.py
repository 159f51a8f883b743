"""Callers that are killed, give up or lose their node: what they asked for is stopped.

The model here computes nothing while a gate is closed, so that what is stopped is surely
under way, and surely not over before its caller is gone.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest

from erllama_py import api
from erllama_py._backends.base import Row
from erllama_py._backends.stub import StubBackend
from erllama_py._engine.mailbox import Mailbox
from erllama_py._engine.registry import core
from erllama_py._engine.request import Request
from erllama_py.testing import stub_model
from tests.live.erlnode import ErlNode
from tests.live.serving import Serving
from tests.waiting import wait_for

FUNCTIONS = ("complete", "prefill_only", "draft_tokens", "verify", "embed")
VIAS = ("erpc", "rpc", "block_call", "name")
NEW = itertools.count(10_000)


def args_of(function: str) -> str:
    """Return arguments that no cache has anything for.

    Prompts take several steps, so that what is stopped in the first is not over with it.
    """
    prompt = f"[{next(NEW)} | lists:seq(1, 3000)]"
    match function:
        case "complete":
            return f'<<"gated">>, <<"{next(NEW)} b c">>'
        case "draft_tokens":
            return f'<<"gated">>, {prompt}, #{{max => 500}}'
        case "verify":
            return f'<<"gated">>, {prompt}, [4, 5], 2'
    return f'<<"gated">>, {prompt}'


class Gate:
    """Steps wait while it is closed, and embeddings go on."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        """A step waits."""
        self.told = threading.Event()
        """The engine is told to stop a request, before its next step."""
        self.embeddings = 0
        """How many are being computed."""

    def step(self, backend: StubBackend, rows: Sequence[Row]) -> None:
        self.entered.set()
        assert self.open.wait(60)
        STEP(backend, rows)

    def embed(
        self, backend: StubBackend, tokens: Sequence[int], crowded: Callable[[], bool]
    ) -> list[float]:
        self.embeddings += 1
        try:
            while not self.open.wait(0.002):
                crowded()
            return EMBED(backend, tokens, crowded)
        finally:
            self.embeddings -= 1

    def put(self, mailbox: Mailbox, message: Callable[[], None]) -> None:
        PUT(mailbox, message)
        if isinstance(message, functools.partial) and message.func.__name__ == "cancel":
            self.told.set()


START, STEP, EMBED = StubBackend.__init__, StubBackend.step, StubBackend.embed
PUT = Mailbox.put


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    """The gate of all stubs that are made meanwhile; they verify, until they have to."""
    gate = Gate()

    def start(self: StubBackend, *args: Any, **kwargs: Any) -> None:
        START(self, *args, **kwargs)
        self.info = msgspec.structs.replace(self.info, verifies=True)

    def guarded(guard: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, *args: Any) -> Any:  # a function, so that it is given its object
            return guard(self, *args)

        return method

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StubBackend, "__init__", start)
        patch.setattr(StubBackend, "step", guarded(gate.step))
        patch.setattr(StubBackend, "embed", guarded(gate.embed))
        patch.setattr(Mailbox, "put", guarded(gate.put))
        yield gate


@pytest.fixture(scope="module")
def llm(peer: ErlNode, gate: Gate) -> Iterator[Serving]:
    """The node, and the model ``gated`` with one slot."""
    serving = Serving(peer)
    with stub_model("gated", fingerprint=os.urandom(32)):
        yield serving
        gate.open.set()
    serving.stop()


@pytest.fixture
def closed(gate: Gate, llm: Serving) -> Iterator[Gate]:
    """The gate, closed; afterwards nothing runs, and the model serves."""
    gate.open.clear()
    gate.entered.clear()
    gate.told.clear()
    yield gate
    gate.open.set()
    wait_for(lambda: not core().host("gated").requests)
    assert len(api.embed("gated", [1])) == 16
    assert llm.eval('{ok, [_]} = erllama:draft_tokens(<<"gated">>, [7], #{max => 1}), ok') == "ok"


def asked(llm: Serving, via: str, function: str) -> str:
    """Return the expression of a call that is not timed out."""
    args = args_of(function)
    match via:
        case "block_call":
            return f"rpc:block_call('{llm.name}', erllama, {function}, [{args}])"
        case "name":
            return f"gen_server:call({{erllama, '{llm.name}'}}, {{{function}, {args}}}, infinity)"
        case _:
            return llm.ask(via, function, args)


def at_work(gate: Gate, function: str) -> Request | None:
    """Wait until the model is at work on what was asked; return its request, if it is one."""
    if function == "embed":
        wait_for(lambda: gate.embeddings == 1)
        return None
    assert gate.entered.wait(30)
    (request,) = core().host("gated").requests
    return request


def stopped(gate: Gate, request: Request | None) -> None:
    """Wait until that is stopped, let the model go on, and see the end of it."""
    if request is None:
        wait_for(lambda: not gate.embeddings)
        return
    assert gate.told.wait(30)
    gate.open.set()
    wait_for(lambda: request.over)
    assert request.stats
    assert request.stats["cancelled"]


@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_caller_that_is_killed(llm: Serving, closed: Gate, function: str, via: str) -> None:
    llm.peer.eval(f"put(caller, spawn(fun() -> {asked(llm, via, function)} end))")
    request = at_work(closed, function)
    llm.peer.eval("exit(get(caller), kill)")
    stopped(closed, request)


@pytest.mark.parametrize("via", ["erpc", "name"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_caller_that_gives_up(llm: Serving, closed: Gate, function: str, via: str) -> None:
    """Its wait times out when the model is surely at work; the caller lives on."""
    args = args_of(function)
    if via == "erpc":
        client, to = "erpc", f"'{llm.name}', erllama, {function}, [{args}]"
    else:
        client, to = "gen_server", f"{{erllama, '{llm.name}'}}, {{{function}, {args}}}"
    llm.peer.eval(f"""begin S = self(), put(caller, spawn(fun() ->
        Asked = {client}:send_request({to}),
        receive give_up -> ok end,
        S ! {{gave_up, catch {client}:receive_response(Asked, 0)}},
        receive the_end -> ok end
    end)) end""")
    request = at_work(closed, function)
    seen = llm.peer.eval("begin get(caller) ! give_up, receive {gave_up, How} -> How end end")
    assert "timeout" in seen
    stopped(closed, request)
    assert llm.peer.eval("begin P = get(caller), is_process_alive(P) end") == "true"
    llm.peer.eval("get(caller) ! the_end")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_node_that_goes_away(
    llm: Serving, closed: Gate, erl_node: Callable[..., ErlNode], function: str
) -> None:
    other = erl_node()
    other.eval(f"spawn(fun() -> {asked(llm, 'erpc', function)} end)")
    request = at_work(closed, function)
    other.kill()
    stopped(closed, request)


def test_one_that_waits_its_turn_is_not_begun(llm: Serving, closed: Gate) -> None:
    """The place in the queue is free; the other caller is answered."""
    call = llm.ask("erpc", "embed", args_of("embed"))
    llm.peer.eval(f"begin S = self(), spawn(fun() -> S ! {{first, {call}}} end), ok end")
    wait_for(lambda: closed.embeddings == 1)
    llm.peer.eval(f"put(caller, spawn(fun() -> {call} end))")
    life = core().host("gated")._life
    assert life is not None
    wait_for(lambda: len(life.calls) == 2)
    llm.peer.eval("exit(get(caller), kill)")
    closed.open.set()
    assert llm.peer.eval("receive {first, {ok, V}} -> length(V) end") == "16"
    wait_for(lambda: not life.calls)
