"""Both halves of speculation on the core's side: drafting, and asking for a verdict."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable
from typing import Any

from erllama_py._backends.base import BackendInfo
from erllama_py._engine.host import ModelHost
from erllama_py._engine.prompt import refusal
from erllama_py._engine.request import Request
from erllama_py.config import GenerateOptions
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom, Event

__all__ = ("Draft", "verdict", "verify_request")

SILENCE_S = 30.0
"""How long an admitted draft may take to its first token, or from one to the next."""


class Draft:
    """One draft: up to ``count`` tokens, greedily, from :meth:`start` on.

    :param on_over: takes the tokens, or the error that ended it (``timeout``; what ends a
        stream), once, on a thread of ours; it must be quick and must not raise.
    """

    def __init__(
        self,
        host: ModelHost,
        prefix: array[int],
        count: int,
        on_over: Callable[[list[int] | ErllamaError], None],
    ) -> None:
        # A draft is the next tokens, whatever they are of.
        bit = host.config.exactness == "bit"
        options = GenerateOptions(response_tokens=count, bit=bit, tool_calls=False)
        self.request = Request(
            "infer", options, tokens=prefix, sink=self._hear, on_over=self._ended
        )
        self._host = host
        self._on_over = on_over
        self._tokens: list[int] = []
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._told = False
        self._admitted = False
        self._heard_at = 0.0

    def start(self) -> None:
        """Submit it.

        :raises ErllamaError: as of :meth:`~erllama_py._engine.callers.Callers.submit`.
        """
        self._host.submit(self.request)
        self._heard_at = time.monotonic()
        self._watch(SILENCE_S)

    def cancel(self) -> None:
        """Stop it; it is over with the tokens it has."""
        self._host.cancel(self.request)

    def _hear(self, event: Event) -> None:
        if event.token_id is not None:
            self._tokens.append(event.token_id)
            self._heard_at = time.monotonic()

    def _ended(self, request: Request) -> None:
        self._tell(request.error or self._tokens)

    def _tell(self, outcome: list[int] | ErllamaError) -> None:
        with self._lock:
            if self._told:
                return
            self._told = True
            if self._timer is not None:
                self._timer.cancel()
        self._on_over(outcome)

    # -- silence --------------------------------------------------------------------------

    def _watch(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._look)
        timer.daemon = True
        with self._lock:
            if self._told:
                return
            self._timer = timer
            timer.start()

    def _look(self) -> None:
        now = time.monotonic()
        if not self._admitted:  # the time in the model's queue is nobody's silence
            self._admitted = self.request.admitted
            self._heard_at = now
        left = self._heard_at + SILENCE_S - now
        if left > 0:
            self._watch(left)
            return
        self.cancel()
        self._tell(ErllamaError("timeout", f"the model was silent for {SILENCE_S:.0f} seconds"))


def verify_request(
    info: BackendInfo,
    prefix: array[int],
    candidates: array[int],
    on_over: Callable[[Request], None] | None = None,
) -> Request:
    """Return the request that compares candidates with what the model would say.

    :raises ErllamaError: ``not_supported``, ``empty_prefix``, ``invalid_token``,
        ``context_overflow``, in this order.
    """
    whole = prefix + candidates if prefix else prefix
    if refused := refusal(whole, info, "verify"):
        raise ErllamaError(*refused)
    options = GenerateOptions(response_tokens=0, bit=True)
    return Request("verify", options, tokens=prefix, candidates=candidates, on_over=on_over)


def verdict(result: dict[str, Any]) -> tuple[int, int | Atom]:
    """Return what a ``verify`` answers: how many are right, and what follows them.

    :raises ErllamaError: ``cancelled``: it was stopped before it had compared them.
    """
    if "accepted" not in result:
        raise ErllamaError("cancelled", "the candidates were not compared")
    following = result["following"]
    return result["accepted"], Atom("eos") if following is None else following
