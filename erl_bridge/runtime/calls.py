"""Running the owner's functions, and what becomes of their outcomes.

The owner supplies one handler, ``apply(context, module, function, args)``.  It returns the
value, or an awaitable of it.  A plain value is answered in the same turn of the event
loop, which saves a task: a third of a short call's time.

==================  =============================  ==================================
handler             ``erpc:call`` in the caller    ``rpc:call`` in the caller
==================  =============================  ==================================
returns V           V                              V
raises throw R      throw:R                        R
raises exit R       exit:{exception, R}            {badrpc, {'EXIT', R}}
raises error R      error:{exception, R, Stack}    {badrpc, {'EXIT', {R, Stack}}}
raises Undef        error:{exception, undef, S}    {badrpc, {'EXIT', {undef, S}}}
anything else       as error {python, Type, Text}  the same
==================  =============================  ==================================
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from erl_bridge.etf import Atom, Pid, Reference
from erl_bridge.runtime.errors import ErlangError

if TYPE_CHECKING:
    from erl_bridge.runtime.node import Node
    from erl_bridge.runtime.process import Process

__all__ = ("ApplyHandler", "CallContext", "Outcome", "erpc_reason", "finish", "invoke", "rpc_value")

log = logging.getLogger(__name__)

RETURN, THROW, EXIT, ERROR = Atom("return"), Atom("throw"), Atom("exit"), Atom("error")
_BADRPC, _EXIT_TAG = Atom("badrpc"), Atom("EXIT")


@dataclass(slots=True)
class CallContext:
    """Who calls.

    ``caller`` is the process that waits for the answer: for ``rpc`` and ``erpc`` a
    process of the peer, which need not be the one a stream is meant for.
    """

    node: Node
    peer: str
    """The calling node, as its handshake proved it."""
    caller: Pid
    group_leader: Pid
    process: Process | None = None
    """Our process that the caller watches while it waits, if any."""
    watch: Reference | None = None
    """The caller's monitor on it."""

    def on_abandoned(self, callback: Callable[[], object]) -> None:
        """Call back when the caller stops waiting (its call timed out, or it exited).

        A real node runs the function to its end all the same, so nothing is cancelled
        here: what takes long and is wanted by nobody else should be, by this callback.
        Called at once where it has stopped already.  Never called where nobody waits for
        an answer (a cast), where the caller does not watch us, or where an ``erpc`` call is
        given up before its node has heard that it was taken, after a millisecond, say: that
        node sends nothing then.  In the event loop's thread.
        """
        if self.process is not None and self.watch is not None:
            self.process.on_left(self.watch, callback)


ApplyHandler = Callable[[CallContext, str, str, list[Any]], Awaitable[Any] | Any]


class Outcome(NamedTuple):
    """How a function ended."""

    class_: Atom
    value: Any
    stack: list[Any]


def invoke(
    apply: ApplyHandler, context: CallContext, module: str, function: str, args: list[Any]
) -> Outcome | Awaitable[Any]:
    """Call the handler; an awaitable it returns still has to go through :func:`finish`."""
    try:
        value = apply(context, module, function, args)
    except Exception as error:  # noqa: BLE001  # goes to the caller, and to the log
        return failure(error, f"{module}:{function}/{len(args)}")
    if inspect.isawaitable(value):
        return value
    return Outcome(RETURN, value, [])


async def finish(awaitable: Awaitable[Any], what: str) -> Outcome:
    """Wait for a handler's awaitable.  ``what`` names the function in the log."""
    try:
        return Outcome(RETURN, await awaitable, [])
    except Exception as error:  # noqa: BLE001  # goes to the caller, and to the log
        return failure(error, what)


def failure(error: Exception, what: str) -> Outcome:
    """Return the outcome of an exception; one that is not Erlang's own is logged as a bug."""
    if isinstance(error, ErlangError):
        return Outcome(Atom(error.class_), error.reason, error.stack)
    log.error("%s failed", what, exc_info=error)
    text = str(error).encode()
    return Outcome(ERROR, (Atom("python"), Atom(type(error).__name__), text), [])


def erpc_reason(result: Reference, outcome: Outcome) -> tuple[Any, ...]:
    """Return the exit reason that carries an outcome to ``erpc``."""
    if outcome.class_ is ERROR:
        return (result, ERROR, outcome.value, outcome.stack)
    return (result, outcome.class_, outcome.value)


def rpc_value(outcome: Outcome) -> Any:
    """Return what the old ``rpc`` server replies."""
    if outcome.class_ is ERROR:
        return (_BADRPC, (_EXIT_TAG, (outcome.value, outcome.stack)))
    if outcome.class_ is EXIT:
        return (_BADRPC, (_EXIT_TAG, outcome.value))
    return outcome.value


def exit_reason(outcome: Outcome) -> Any:
    """Return the reason a plainly spawned process exits with."""
    if outcome.class_ is RETURN:
        return Atom("normal")
    if outcome.class_ is EXIT:
        return outcome.value
    if outcome.class_ is THROW:
        return ((Atom("nocatch"), outcome.value), outcome.stack)
    return (outcome.value, outcome.stack)
