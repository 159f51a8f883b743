"""The original's other modules, as peers call them: cache, models, streams.

They are listed in :mod:`erl_bridge.service.cache_modules`; here they are applied, and the
names of the original's servers are registered.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

import anyio
import anyio.to_thread

from erl_bridge.etf import Atom, Pid
from erl_bridge.runtime import CallContext, Caller, ErlangError, GenHandler, Node
from erl_bridge.service.cache_modules import SERVED
from erl_bridge.service.callers import Call, Callers
from erl_bridge.service.convert import Converter, NotAModel
from erl_bridge.service.facts import FACTS, fact
from erl_bridge.service.heads import FUNCTIONS
from erl_bridge.service.mfa import Table
from erl_bridge.service.refusals import note_refusal
from erl_bridge.service.roots import Roots
from erl_bridge.service.served import Served, Values
from erl_bridge.service.servers import UNKNOWN_CALL, register_servers
from erl_bridge.service.streams import Streams
from erl_bridge.service.tiers import TierProcesses
from erllama_py.errors import BadCall, ErllamaError, ModelGone
from erllama_py.otp import cache_disk_srv
from erllama_py.otp.cache_disk_srv import TierPid

__all__ = ("OtherModules",)

WORKERS = 64
"""Calls that read or write files at the same time; others queue."""

_OK: Final = Atom("ok")
_ERROR: Final = Atom("error")
_NOPROC: Final = Atom("noproc")
_INFINITY: Final = Atom("infinity")
_CALL: Final = Atom("call")
_ERLLAMA: Final = Atom("erllama")
_MODEL: Final = "erllama_model"
_ERLANG: Final = "erlang"
_DISK_SRV: Final = "erllama_cache_disk_srv"
_CLAUSE: Final = Atom("function_clause")


class OtherModules:
    """Applies functions for peers, as :class:`~erl_bridge.service.mfa.Table` does.

    :param table: applies those of ``erllama``, and what is not listed.
    """

    def __init__(
        self, node: Node, table: Table, converter: Converter, streams: Streams, roots: Roots
    ) -> None:
        self._node = node
        self._table = table
        self._tiers = TierProcesses(node, lambda tier: _TierServer(self, tier))
        self._values = Values(converter, streams.refs, self._tiers)
        self._callers = Callers(node, streams, roots, self._values, self._tiers, self._in_thread)
        self._limiter: anyio.CapacityLimiter | None = None

    def start(self) -> None:
        """Register the servers' names."""
        register_servers(self._node, self._values)
        self._tiers.start()

    def close(self) -> None:
        """Let go of what peers hold; tier servers live on."""
        self._callers.close()
        self._tiers.close()

    def apply(
        self, context: CallContext, module: str, function: str, args: list[Any]
    ) -> Awaitable[Any] | Any:
        """Apply ``module:function(args...)``.

        :raises Undef: it is not served.
        :raises ErlangError: it exits or fails.
        """
        which = (function, len(args))
        if module == _ERLANG and which in FACTS:
            return fact(self._node, function, args)
        served = SERVED.get(module, {}).get(which)
        if served is not None:
            return self._apply(served, Call(context, module, function, args))
        if module == _MODEL and which in FUNCTIONS:
            return self._twin(context, function, args)
        return self._table.apply(context, module, function, args)

    def tier_pid(self, tier: TierPid) -> Pid:
        """Return the pid of a tier server."""
        return self._tiers.pid_of(tier)

    def tier_dir(self, tier: TierPid) -> Any:
        """Return the directory of a tier server, as it was given."""
        try:
            return self._tiers.path(cache_disk_srv.dir(tier))
        except ErllamaError as error:  # it ends at this moment
            raise ErlangError("exit", _NOPROC) from error

    def stop_tier(self, tier: TierPid, reason: Any) -> None:
        """End a tier server, soon; in the loop."""
        self._tiers.stop(tier, reason)

    def _apply(self, served: Served, call: Call) -> Awaitable[Any] | Any:
        try:
            values = self._values.taken(served.kinds, call.args)
            if values is None:
                raise BadCall("function_clause", "no clause takes these arguments")
            if isinstance(served.function, str):
                answer = self._callers.functions[served.function](call, *values)
            elif served.read:
                return self._values.answered(served.answer, served.function(*values))
            else:
                answer = self._threaded(served, served.function, values)
        except ErllamaError as error:
            return self._failure(call, error)
        except NotAModel as error:
            return _not_a_model(call, error.pid)
        return self._finish(call, answer) if inspect.isawaitable(answer) else answer

    async def _finish(self, call: Call, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except ErllamaError as error:
            return self._failure(call, error)

    async def _threaded(
        self, served: Served, function: Callable[..., Any], values: list[Any]
    ) -> Any:
        return self._values.answered(served.answer, await self._in_thread(function, *values))

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._limiter is None:  # it belongs to the loop that is running now
            self._limiter = anyio.CapacityLimiter(WORKERS)
        return await anyio.to_thread.run_sync(function, *args, limiter=self._limiter)

    # -- failures -----------------------------------------------------------------------------

    def _failure(self, call: Call, error: ErllamaError) -> Any:
        """Return ``{error, Reason}``, or raise the exit or error it stands for."""
        note_refusal(call.module, call.function, len(call.args), error)
        reason = self._values.to_term(error.reason)
        if isinstance(error, ModelGone):
            # A tier server says noproc only; a model's id, whole reasons.
            raise ErlangError("exit", _gone(call) if reason is _NOPROC else reason) from error
        if isinstance(error, BadCall):
            _badly_called(call, reason, error)
        return _ERROR, reason

    # -- erllama_model ------------------------------------------------------------------------

    def _twin(self, context: CallContext, function: str, args: list[Any]) -> Awaitable[Any] | Any:
        """Do what ``erllama`` does under this name; its failures name this module."""
        try:
            answer = self._table.apply(context, _ERLLAMA.name, function, args)
        except ErlangError as error:
            raise _renamed(error) from error
        return _twin_answer(answer) if inspect.isawaitable(answer) else answer


class _TierServer(GenHandler):
    """A tier server's process: ``{save, Meta, Payload}``, ``{load, Key}`` and so on."""

    def __init__(self, modules: OtherModules, tier: TierPid) -> None:
        self._modules = modules
        self._tier = tier

    def handle_call(self, request: Any, caller: Caller) -> Any:
        """Apply a function of ``erllama_cache_disk_srv`` to this server."""
        match request:
            case Atom() as function:
                args: list[Any] = []
            case (Atom() as function, *args) if type(request) is tuple:
                pass
            case _:
                return UNKNOWN_CALL
        served = SERVED[_DISK_SRV].get((function.name, len(args) + 1))
        if served is None or served.kinds[0] != "server":
            return UNKNOWN_CALL
        whole = [self._modules.tier_pid(self._tier), *args]
        return self._modules.apply(caller.context(), _DISK_SRV, function.name, whole)

    def state(self) -> Any:
        """Return its directory."""
        return {Atom("dir"): self._modules.tier_dir(self._tier)}

    def handle_stop(self, reason: Any) -> Any:
        """End it; its rows stay where they are."""
        self._modules.stop_tier(self._tier, reason)
        return _OK


def _badly_called(call: Call, reason: Any, cause: Exception) -> NoReturn:
    where = (Atom(call.module), Atom(call.function), call.args, list[Any]())
    raise ErlangError("error", reason, [where]) from cause


def _gone(call: Call, how: str = "gen_server") -> Any:
    """Return how a call to a dead process exits."""
    server, *rest = call.args
    name = Atom(call.function)
    request = (name, *rest) if rest else name
    return _NOPROC, (Atom(how), _CALL, [server, request, _INFINITY])


def _not_a_model(call: Call, pid: Pid) -> Any:
    """Answer for a pid that stands for no model."""
    if call.function != "stop_model":
        raise ErlangError("exit", _gone(call, "gen_statem"))
    # As erllama:unload does: a pid of ours that is no model's is that of one that has ended.
    ours = pid.node.name == call.context.node.name
    return _OK if ours else (_ERROR, Atom("not_found"))


async def _twin_answer(answer: Awaitable[Any]) -> Any:
    try:
        return await answer
    except ErlangError as error:
        raise _renamed(error) from error


def _renamed(error: ErlangError) -> ErlangError:
    stack = [
        (Atom(_MODEL), *frame[1:]) if isinstance(frame, tuple) and frame[0] is _ERLLAMA else frame
        for frame in error.stack
    ]
    return ErlangError(error.class_, error.reason, stack)
