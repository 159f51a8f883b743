"""Completions, prefills and streams."""

from __future__ import annotations

import queue
from array import array
from collections.abc import Callable
from typing import Any, overload

from erllama_py._engine.host import ModelHost
from erllama_py._engine.registry import core
from erllama_py._engine.request import Request
from erllama_py._engine.stream import Stream
from erllama_py.api._asking import (
    ModelArg,
    Options,
    Tokens,
    answered,
    checked_tokens,
    make_request,
    prompt_bytes,
)
from erllama_py.config import DEFAULT_INFER_TOKENS
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom, Event, Ref

__all__ = ("cancel", "complete", "infer", "prefill_only", "start_request")


def complete(
    model: ModelArg, prompt: str | bytes, options: Options | None = None
) -> dict[str, Any]:
    """Complete a prompt and return when the reply is whole.

    :param options: ``response_tokens`` (default: what fits into the context),
        ``parent_key``, ``session_id``, ``stop_sequences``, ``temperature``, ``top_k``, ``top_p``,
        ``min_p``, ``repetition_penalty``, ``seed``, ``grammar`` or ``json_schema`` (a map,
        JSON text, or true for any JSON); ``exactness``;
        ``speculate``; ``thinking``,
        ``thinking_budget_tokens``, ``tool_calls``; ``logprobs``, how many of the likeliest
        tokens to tell the log probabilities of, 0 to 20.
    :return: ``reply``, ``generated``, ``context_tokens``, ``committed_tokens``,
        ``finish_key``, ``cache_hit_kind``, ``cache_delta``, ``finish_reason``, ``stats``,
        and ``stop_sequence`` where one fired; ``thinking`` and ``tool_calls`` where any
        were told apart from the reply; ``logprobs`` where they were asked for, a map for
        each token.  ``cache_delta`` is ``read``, the tokens of the prompt that were not
        computed, and ``created``, those that rows have more.
    :raises ErllamaError: ``empty_prompt``, ``context_overflow``, ``grammar_failed``,
        ``sticky_busy``, ``badarg``, ``{invalid, Key, Value}``.
    :raises ModelGone: unknown model, or it ended while the call waited.
    """
    host = core().host(model)
    request = make_request(host, "complete", options, None, text=prompt_bytes(prompt))
    return answered(host, request)


def prefill_only(model: ModelArg, tokens: Tokens, options: Options | None = None) -> dict[str, Any]:
    """Compute a prompt into the cache without generating.

    :param options: ``parent_key``, ``session_id``; ``exactness``.
    :return: ``context_tokens``, ``committed_tokens``, ``finish_key``,
        ``cache_hit_kind``, ``cache_delta``.
    :raises ErllamaError: as :func:`complete`.
    """
    host = core().host(model)
    prompt = checked_tokens(host, "prefill_only", tokens)
    request = make_request(host, "prefill_only", options, None, tokens=prompt)
    return answered(host, request)


def start_request(
    function: str,
    model: ModelArg,
    prompt: Any,
    options: Options | None = None,
    *,
    on_over: Callable[[dict[str, Any] | ErllamaError], None],
) -> Ref:
    """Do :func:`complete` or :func:`prefill_only` without waiting; see :func:`start`."""
    host = core().host(model)

    def over(request: Request) -> None:
        outcome = request.error or request.result
        assert outcome is not None
        on_over(outcome)

    if function == "prefill_only":
        tokens = checked_tokens(host, function, prompt)
        request = make_request(host, function, options, None, tokens=tokens, on_over=over)
    else:
        request = make_request(
            host, function, options, None, text=prompt_bytes(prompt), on_over=over
        )
    host.submit(request)
    return request.ref


@overload
def infer(model: ModelArg, tokens: Tokens, params: Options | None = None) -> Stream: ...
@overload
def infer(
    model: ModelArg, tokens: Tokens, params: Options | None, callback: Callable[[Event], None]
) -> Ref: ...
def infer(
    model: ModelArg,
    tokens: Tokens,
    params: Options | None = None,
    callback: Callable[[Event], None] | None = None,
) -> Stream | Ref:
    """Start a stream; returns at once.

    :param tokens: the prompt's token ids.
    :param params: as the options of :func:`complete`; ``response_tokens`` defaults
        to 64.
    :param callback: takes each :class:`~erllama_py.types.Event` on a thread of ours; it
        must be quick and must not raise.  Without it an iterator is returned.
    :return: a :class:`Stream`, or with a callback the stream's
        :class:`~erllama_py.types.Ref`, for :func:`cancel`.
    :raises ErllamaError: what can be seen before it runs: ``empty_prompt``,
        ``invalid_token``, ``context_overflow``, ``grammar_failed``, ``badarg``,
        ``sticky_busy``.
    """
    host = core().host(model)
    prompt = checked_tokens(host, "infer", tokens)
    if callback is not None:
        return _start(host, prompt, params, callback).ref
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    return Stream(host, _start(host, prompt, params, events.put), events)


def cancel(ref: Ref) -> Atom:
    """Stop a stream; its ``done`` event follows with ``cancelled``.

    Queued streams too, and what :func:`start` started.  Unknown and finished ones are
    ignored.

    :return: ``ok``, always and at once.
    :raises BadCall: not a :class:`~erllama_py.types.Ref`.
    """
    if not isinstance(ref, Ref):
        raise BadCall("function_clause", f"cancel takes the ref of a stream, not {ref!r}")
    for host in core().hosts():
        request = host.request(ref.serial)
        if request is not None:
            host.cancel(request)
        else:
            host.cancel_call(ref.serial)
    return Atom("ok")


def _start(
    host: ModelHost, prompt: array[int], params: Options | None, sink: Callable[[Event], None]
) -> Request:
    request = make_request(host, "infer", params, DEFAULT_INFER_TOKENS, tokens=prompt, sink=sink)
    host.submit(request)
    if request.options.sampler.grammar is not None:
        # Only the engine can tell whether a grammar parses; it answers between ticks.
        request.accepted.wait()
        if request.error and not request.admitted:
            raise request.error
    return request
