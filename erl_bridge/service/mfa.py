"""What peers may call: the MFA table.

A real node that accepts a cookie gives its peer everything; this one gives what is in
the tables (:mod:`erl_bridge.service.heads`, :mod:`erl_bridge.service.modules`), and every
other module, function or arity is ``undef``.

Functions that only read run in the event loop; those that ask the model process, or load
one, run in worker threads; completions, embeddings, drafts and verdicts need no thread
while they run, and are cancelled once their caller has stopped waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio.to_thread

from erl_bridge.etf import Atom, Reference
from erl_bridge.runtime import CallContext, ErlangError, Undef
from erl_bridge.service.convert import Converter, NotAModel, chat_request
from erl_bridge.service.handles import Handles
from erl_bridge.service.heads import FUNCTIONS, head_of
from erl_bridge.service.modules import MODULES
from erl_bridge.service.refusals import note_refusal
from erl_bridge.service.roots import Roots
from erl_bridge.service.streams import Streams
from erl_bridge.service.work import Work
from erllama_py import api
from erllama_py.errors import BadCall, ErllamaError, ModelGone
from erllama_py.types import ModelPid, Ref

__all__ = ("Table",)

WORKERS = 64
"""Calls that wait for a model process or a load at the same time; others queue."""

_OK: Final = Atom("ok")
_HANDLE: Final = Atom("handle")
_SCALE: Final = Atom("scale")
_ERROR: Final = Atom("error")
_ERLLAMA: Final = Atom("erllama")
_NOPROC: Final = Atom("noproc")
_GEN_STATEM: Final = Atom("gen_statem")
_CALL: Final = Atom("call")
_INFINITY: Final = Atom("infinity")

Function = Callable[..., Any]

_READS: Final[dict[tuple[str, int], Function]] = {
    ("models", 0): api.models,
    ("counters", 0): api.counters,
    ("queue_depth", 0): api.queue_depth,
    ("queue_depth", 1): api.queue_depth,
    ("pending_len", 1): api.pending_len,
    ("phase", 1): api.phase,
    ("last_cache_hit", 1): api.last_cache_hit,
    ("list_models", 0): api.list_models,
    ("model_info", 1): api.model_info,
    ("status", 1): api.status,
}
"""Answered at once with the plain value."""

_CALLS: Final[dict[tuple[str, int], Function]] = {
    ("tokenize", 2): api.tokenize,
    ("detokenize", 2): api.detokenize,
    ("apply_chat_template", 2): api.apply_chat_template,
    ("list_cached_prefixes", 2): api.list_cached_prefixes,
    ("vram_info", 0): api.vram_info,
}
"""Answered from a worker thread with ``{ok, Value}``."""

_PLAIN: Final[dict[tuple[str, int], Function]] = {
    ("unload", 1): api.unload,
    ("unload_model", 1): api.unload_model,
    ("end_session", 2): api.end_session,
    ("evict", 1): api.evict,
    ("shutdown", 1): api.shutdown,
}
"""Answered from a worker thread with what the function returns."""

_ADAPTERS: Final = frozenset(
    {"load_adapter", "unload_adapter", "set_adapter_scale", "list_adapters"}
)


class Table:
    """Applies functions for peers; made for :class:`erl_bridge.runtime.Node`."""

    def __init__(
        self, converter: Converter, streams: Streams, roots: Roots, handles: Handles
    ) -> None:
        self._converter = converter
        self._streams = streams
        self._roots = roots
        self._handles = handles
        self._limiter: anyio.CapacityLimiter | None = None

    def apply(
        self, context: CallContext, module: str, function: str, args: list[Any]
    ) -> Awaitable[Any] | Any:
        """Apply ``module:function(args...)``.

        :raises Undef: it is not in the table.
        :raises ErlangError: it exits or fails.
        """
        which = (function, len(args))
        if served := MODULES.get(module, {}).get(which):
            return self._elsewhere(served, module, function, args)
        if module != _ERLLAMA.name or which not in FUNCTIONS:
            raise Undef(module, function, args)
        kinds = head_of(function, args)
        if kinds is None:
            raise _badly_called("function_clause", function, args)
        try:
            values = self._converter.arguments(kinds, args)
        except NotAModel as error:
            if function not in ("unload", "unload_model"):
                raise ErlangError("exit", _gone(_NOPROC, error.pid, function, args)) from None
            # A pid of ours that is no model's is that of one that has ended.
            ours = error.pid.node.name == context.node.name
            return _OK if ours else (_ERROR, Atom("not_found"))
        if which in _READS:
            try:
                return self._converter.to_term(_READS[which](*values))
            except ErllamaError as error:
                return self._failure(function, args, error)
        return self._run(context, which, args, values)

    def info(self, model: ModelPid) -> Any:
        """Return the map of ``model_info/1``.

        :raises ErllamaError: it has ended.
        """
        return self._converter.to_term(api.model_info(model))

    async def _run(
        self, context: CallContext, which: tuple[str, int], args: list[Any], values: list[Any]
    ) -> Any:
        function, convert = which[0], self._converter.to_term
        try:
            if which in _PLAIN:
                return convert(await self._in_thread(_PLAIN[which], *values))
            if function == "cancel":
                self._streams.cancel(args[0])
                return _OK
            if function in _ADAPTERS:
                return await self._in_thread(self._adapters, function, *values)
            if function == "verify":
                return _OK, *convert(await self._started(context, function, values))
            return _OK, await self._value(context, which, values)
        except ErllamaError as error:
            return self._failure(function, args, error)

    async def _value(self, context: CallContext, which: tuple[str, int], values: list[Any]) -> Any:
        """Return what ``{ok, _}`` is to hold."""
        function, convert = which[0], self._converter.to_term
        match function:
            case "load_model":
                *model_id, config = values
                config = await self._in_thread(self._roots.check, config)
                return convert(await self._in_thread(api.load_model, *model_id, config))
            case "infer":
                ref: Reference = await self._in_thread(self._streams.start, *values)
                return ref
            case "complete" | "prefill_only":
                return self._converter.result(await self._started(context, function, values))
            case "embed" | "draft_tokens":
                return convert(await self._started(context, function, values))
            case "apply_chat_template":
                values = [values[0], chat_request(values[1])]
        return convert(await self._in_thread(_CALLS[which], *values))

    async def _started(self, context: CallContext, function: str, values: list[Any]) -> Any:
        """Do what takes long, without keeping a thread, for as long as its caller waits."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(outcome: Any) -> None:
            if not future.done():
                future.set_result(outcome)

        def over(outcome: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and so is the caller
                loop.call_soon_threadsafe(settle, outcome)

        def begin() -> Ref:
            return api.start(function, values, over)

        work = Work()
        context.on_abandoned(work.cancel)
        try:
            if function in ("complete", "prefill_only"):
                work.start(begin)
            else:  # embed waits for a model that is being restarted
                await self._in_thread(work.start, begin)
            outcome = await future
        except asyncio.CancelledError:
            work.cancel()
            raise
        if isinstance(outcome, ErllamaError):
            raise outcome
        return outcome

    async def _elsewhere(
        self, served: Function, module: str, function: str, args: list[Any]
    ) -> Any:
        """Apply a function of one of the original's other modules."""
        convert = self._converter
        try:
            return convert.to_term(await self._in_thread(served, *map(convert.to_python, args)))
        except ErllamaError as error:
            note_refusal(module, function, len(args), error)
            reason = convert.to_term(error.reason)
            if isinstance(error, BadCall):
                where = (Atom(module), Atom(function), args, list[Any]())
                raise ErlangError("error", reason, [where]) from error
            return _ERROR, reason

    def _adapters(self, function: str, model: Any, *args: Any) -> Any:
        """Apply a function of LoRA adapters; its handles are references here."""
        handles = self._handles
        match function, args:
            case "load_adapter", (path,):
                api.status(model)  # of a model that is not there, no file is looked at
                handle = api.load_adapter(model, self._roots.check_adapter(path))
                return _OK, handles.reference_of(handle)
            case "unload_adapter", (term,):
                known = handles.handle_of(term)
                attached = any(one["handle"] == known for one in api.list_adapters(model))
                api.unload_adapter(model, known)
                if known is not None and attached:
                    handles.forget(known)
                return _OK
            case "set_adapter_scale", (term, scale):
                api.set_adapter_scale(model, handles.handle_of(term), scale)
                return _OK
        return [
            {
                _HANDLE: handles.reference_of(one["handle"]),
                _SCALE: one["scale"],
            }
            for one in api.list_adapters(model)
        ]

    # -- helpers -----------------------------------------------------------------------------

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._limiter is None:  # it belongs to the loop that is running now
            self._limiter = anyio.CapacityLimiter(WORKERS)
        return await anyio.to_thread.run_sync(function, *args, limiter=self._limiter)

    def _failure(self, function: str, args: list[Any], error: ErllamaError) -> Any:
        """Return ``{error, Reason}``, or raise the exit or error it stands for."""
        note_refusal(_ERLLAMA.name, function, len(args), error)
        reason = self._converter.to_term(error.reason)
        if isinstance(error, ModelGone):
            match reason:
                case (why, (Atom() as module, Atom() as call, [pid, *_])) if (
                    module is _GEN_STATEM and call is _CALL
                ):
                    reason = _gone(why, pid, function, args)
            raise ErlangError("exit", reason) from error
        if isinstance(error, BadCall):
            raise _badly_called(reason.name, function, args) from error
        return _ERROR, reason


def _badly_called(reason: str, function: str, args: list[Any]) -> ErlangError:
    return ErlangError("error", Atom(reason), [(_ERLLAMA, Atom(function), args, [])])


def _gone(why: Any, pid: Any, function: str, args: list[Any]) -> Any:
    """Return how a call to a dead process exits: ``{Why, {gen_statem, call, [...]}}``."""
    name = Atom(function)
    request = (name, *args[1:]) if len(args) > 1 else name
    return why, (_GEN_STATEM, _CALL, [pid, request, _INFINITY])
