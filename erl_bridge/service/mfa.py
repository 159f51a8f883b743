"""What peers may call: the MFA table.

A real node that accepts a cookie gives its peer everything; this one gives what is in
the table, and every other module, function or arity is ``undef``.

Functions that only read run in the event loop; those that ask the model process, or load
one, run in worker threads; completions need no thread while they run.  A completion whose
caller has stopped waiting is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio.to_thread

from erl_bridge.etf import Atom, Pid, Reference
from erl_bridge.runtime import CallContext, ErlangError, Undef
from erl_bridge.service.convert import Converter
from erl_bridge.service.roots import Roots
from erl_bridge.service.streams import Streams
from erllama_py import api
from erllama_py.errors import BadCall, ErllamaError, ModelGone

__all__ = ("FUNCTIONS", "Table")

WORKERS = 64
"""Calls that wait for a model process or a load at the same time; others queue."""

_OK: Final = Atom("ok")
_ERROR: Final = Atom("error")

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
    ("embed", 2): api.embed,
    ("draft_tokens", 3): api.draft_tokens,
    ("load_adapter", 2): api.load_adapter,
}
"""Answered from a worker thread with ``{ok, Value}``."""

_PLAIN: Final[dict[tuple[str, int], Function]] = {
    ("unload", 1): api.unload,
    ("unload_model", 1): api.unload_model,
    ("evict", 1): api.evict,
    ("shutdown", 1): api.shutdown,
    ("verify", 4): api.verify,
    ("unload_adapter", 2): api.unload_adapter,
    ("set_adapter_scale", 3): api.set_adapter_scale,
    ("list_adapters", 1): api.list_adapters,
}
"""Answered from a worker thread with what the function returns."""

_OWN: Final = {
    ("load_model", 1),
    ("load_model", 2),
    ("complete", 2),
    ("complete", 3),
    ("prefill_only", 2),
    ("infer", 4),
    ("cancel", 1),
}

FUNCTIONS: Final = frozenset({*_READS, *_CALLS, *_PLAIN, *_OWN})
"""Every function of ``erllama`` that is served, as (name, arity): all 33 exports."""


class Table:
    """Applies functions for peers; made for :class:`erl_bridge.runtime.Node`."""

    def __init__(self, converter: Converter, streams: Streams, roots: Roots) -> None:
        self._converter = converter
        self._streams = streams
        self._roots = roots
        self._limiter: anyio.CapacityLimiter | None = None

    def apply(
        self, context: CallContext, module: str, function: str, args: list[Any]
    ) -> Awaitable[Any] | Any:
        """Apply ``module:function(args...)``.

        :raises Undef: it is not in the table.
        :raises ErlangError: it exits or fails.
        """
        which = (function, len(args))
        if module != "erllama" or which not in FUNCTIONS:
            raise Undef(module, function, args)
        failed = functools.partial(self._failure, function, args)
        if which in _READS:
            try:
                return self._converter.to_term(_READS[which](*map(self._converter.to_python, args)))
            except ErllamaError as error:
                return failed(error)
        return self._run(context, which, args, failed)

    async def _run(
        self,
        context: CallContext,
        which: tuple[str, int],
        args: list[Any],
        failed: Callable[[ErllamaError], Any],
    ) -> Any:
        try:
            if which in _PLAIN:
                return self._converter.to_term(await self._in_thread(_PLAIN[which], args))
            if which in _CALLS:
                return _OK, self._converter.to_term(await self._in_thread(_CALLS[which], args))
            match which[0]:
                case "load_model":
                    return _OK, await self._load(args)
                case "infer":
                    return _OK, await self._infer(args)
                case "cancel":
                    return self._cancel(args)
                case _:
                    return _OK, await self._generate(context, which[0], args)
        except ErllamaError as error:
            return failed(error)

    # -- the functions that need more than a call ------------------------------------------

    async def _load(self, args: list[Any]) -> Any:
        config = args[-1]
        if isinstance(config, dict):
            config = self._roots.check(self._converter.to_python(config))
        return self._converter.to_term(await self._in_thread(api.load_model, [*args[:-1], config]))

    async def _infer(self, args: list[Any]) -> Reference:
        model, tokens, params, caller = args
        if not isinstance(caller, Pid):
            raise BadCall("function_clause", "infer/4 sends to a pid")
        if not isinstance(tokens, list):
            raise BadCall("function_clause", "infer/4 takes a list of tokens")
        convert = self._converter.to_python
        return await anyio.to_thread.run_sync(
            self._streams.start,
            convert(model),
            tokens,
            convert(params),
            caller,
            limiter=self._workers(),
        )

    def _cancel(self, args: list[Any]) -> Any:
        if not isinstance(args[0], Reference):
            raise BadCall("function_clause", "cancel/1 takes a reference")
        self._streams.cancel(args[0])
        return _OK

    async def _generate(self, context: CallContext, function: str, args: list[Any]) -> Any:
        """Run complete or prefill_only without keeping a thread."""
        model, prompt, *options = map(self._converter.to_python, args)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[dict[str, Any] | ErllamaError] = loop.create_future()

        def settle(outcome: dict[str, Any] | ErllamaError) -> None:
            if not future.done():
                future.set_result(outcome)

        def over(outcome: dict[str, Any] | ErllamaError) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and so is the caller
                loop.call_soon_threadsafe(settle, outcome)

        if options and not isinstance(options[0], dict):
            raise BadCall("function_clause", "options must be a map")
        ref = api.start(function, model, prompt, options[0] if options else None, over)
        context.on_abandoned(lambda: api.cancel(ref))
        try:
            outcome = await future
        except asyncio.CancelledError:
            api.cancel(ref)
            raise
        if isinstance(outcome, ErllamaError):
            raise outcome
        return self._converter.result(outcome)

    # -- helpers -----------------------------------------------------------------------------

    async def _in_thread(self, function: Callable[..., Any], args: list[Any]) -> Any:
        converted = [self._converter.to_python(arg) for arg in args]
        return await anyio.to_thread.run_sync(function, *converted, limiter=self._workers())

    def _workers(self) -> anyio.CapacityLimiter:
        if self._limiter is None:  # it belongs to the loop that is running now
            self._limiter = anyio.CapacityLimiter(WORKERS)
        return self._limiter

    def _failure(self, function: str, args: list[Any], error: ErllamaError) -> Any:
        """Return ``{error, Reason}``, or raise the exit or error it stands for."""
        reason = self._converter.to_term(error.reason)
        if isinstance(error, ModelGone):
            raise ErlangError("exit", reason) from error
        if isinstance(error, BadCall):
            where: tuple[Any, ...] = (Atom("erllama"), Atom(function), args, [])
            raise ErlangError("error", reason, [where]) from error
        return _ERROR, reason
