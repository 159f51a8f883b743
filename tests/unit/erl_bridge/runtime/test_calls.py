"""Outcomes of functions, and what the two call protocols make of them."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from erl_bridge import ErlangError, Undef
from erl_bridge.etf import Atom, Pid, Reference
from erl_bridge.runtime import calls
from erl_bridge.runtime.calls import CallContext, Outcome, erpc_reason, exit_reason, rpc_value

RES = Reference(Atom("a@b"), 1, (1,))
PID = Pid(Atom("a@b"), 1, 2, 3)
STACK: list[Any] = [(Atom("m"), Atom("f"), 1, [])]


def outcome(raised: Exception | None = None, value: Any = None) -> Outcome:
    """The outcome of a handler that raises or returns."""

    def apply(_context: Any, _module: str, _function: str, _args: list[Any]) -> Any:
        if raised is not None:
            raise raised
        return value

    context: Any = None
    found = calls.invoke(apply, context, "m", "f", [])
    assert isinstance(found, Outcome)
    return found


CASES = [
    pytest.param(outcome(value=7), (RES, Atom("return"), 7), 7, Atom("normal"), id="return"),
    pytest.param(
        outcome(ErlangError("throw", 7)),
        (RES, Atom("throw"), 7),
        7,
        ((Atom("nocatch"), 7), []),
        id="throw",
    ),
    pytest.param(
        outcome(ErlangError("exit", 7)),
        (RES, Atom("exit"), 7),
        (Atom("badrpc"), (Atom("EXIT"), 7)),
        7,
        id="exit",
    ),
    pytest.param(
        outcome(ErlangError("error", 7, STACK)),
        (RES, Atom("error"), 7, STACK),
        (Atom("badrpc"), (Atom("EXIT"), (7, STACK))),
        (7, STACK),
        id="error",
    ),
    pytest.param(
        outcome(Undef("m", "f", [1])),
        (RES, Atom("error"), Atom("undef"), [(Atom("m"), Atom("f"), [1], [])]),
        (
            Atom("badrpc"),
            (Atom("EXIT"), (Atom("undef"), [(Atom("m"), Atom("f"), [1], [])])),
        ),
        (Atom("undef"), [(Atom("m"), Atom("f"), [1], [])]),
        id="undef",
    ),
]


@pytest.mark.parametrize(("found", "erpc", "rpc", "reason"), CASES)
def test_what_callers_see(found: Outcome, erpc: Any, rpc: Any, reason: Any) -> None:
    """The three protocols side by side."""
    assert erpc_reason(RES, found) == erpc
    assert rpc_value(found) == rpc
    assert exit_reason(found) == reason


def test_a_bug_is_an_error_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """With type and text, so that the caller has something to report."""
    found = outcome(ZeroDivisionError("oh"))
    assert found == (Atom("error"), (Atom("python"), Atom("ZeroDivisionError"), b"oh"), [])
    assert "m:f/0 failed" in caplog.text


def test_awaitables_end_the_same_way() -> None:
    """Whether an error comes before the first await or after."""

    async def late(error: Exception | None) -> Any:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return 7

    assert asyncio.run(calls.finish(late(None), "x")) == outcome(value=7)
    error = ErlangError("exit", 7)
    assert asyncio.run(calls.finish(late(error), "x")) == outcome(error)


def test_errors_survive_pickling() -> None:
    """They cross process boundaries in test runners and pools."""
    undef = pickle.loads(pickle.dumps(Undef("m", "f", [1])))
    assert (undef.mfa, undef.reason) == (("m", "f", 1), Atom("undef"))
    assert str(ErlangError("exit", (Atom("a"), b"b"))) == 'exit: {a,<<"b">>}'


def test_who_does_not_watch_us_cannot_be_seen_to_leave() -> None:
    """Nobody waits for what a cast does; asking is no error."""
    context = CallContext(None, "a@b", PID, PID)  # type: ignore[arg-type]  # not looked at
    context.on_abandoned(lambda: None)
