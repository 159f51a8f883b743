"""Both halves of speculation on the core's side: drafting, and asking for a verdict."""

from __future__ import annotations

import queue
from array import array

from erllama_py._backends.base import BackendInfo
from erllama_py._engine.host import ModelHost
from erllama_py._engine.prompt import refusal
from erllama_py._engine.request import Request
from erllama_py.config import GenerateOptions
from erllama_py.errors import ErllamaError
from erllama_py.types import Event

__all__ = ("draft", "verify_request")

SILENCE_S = 30.0
"""How long an admitted draft may take to its first token, or from one to the next."""


def draft(host: ModelHost, prefix: array[int], count: int) -> list[int]:
    """Generate up to ``count`` tokens greedily and return them.

    :raises ErllamaError: ``timeout``; what ends a stream.
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    # A draft is the next tokens, whatever they are of.
    bit = host.config.exactness == "bit"
    options = GenerateOptions(response_tokens=count, bit=bit, tool_calls=False)
    request = Request("infer", options, tokens=prefix, sink=events.put)
    host.submit(request)
    tokens: list[int] = []
    try:
        while not (event := _next_event(request, events)).terminal:
            if event.token_id is not None:
                tokens.append(event.token_id)
    except BaseException:
        host.cancel(request)
        raise
    if request.error:
        raise request.error
    return tokens


def _next_event(request: Request, events: queue.SimpleQueue[Event]) -> Event:
    """Wait for an event; the time in the model's queue is nobody's silence."""
    while True:
        admitted = request.admitted
        try:
            return events.get(timeout=SILENCE_S)
        except queue.Empty:
            if admitted:
                raise ErllamaError(
                    "timeout", f"the model was silent for {SILENCE_S:.0f} seconds"
                ) from None


def verify_request(info: BackendInfo, prefix: array[int], candidates: array[int]) -> Request:
    """Return the request that compares candidates with what the model would say.

    :raises ErllamaError: ``not_supported``, ``empty_prefix``, ``invalid_token``,
        ``context_overflow``, in this order.
    """
    whole = prefix + candidates if prefix else prefix
    if refused := refusal(whole, info, "verify"):
        raise ErllamaError(*refused)
    options = GenerateOptions(response_tokens=0, bit=True)
    return Request("verify", options, tokens=prefix, candidates=candidates)
