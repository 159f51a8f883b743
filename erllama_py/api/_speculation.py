"""Drafts, and what another model makes of them."""

from __future__ import annotations

import queue
from array import array
from collections.abc import Callable

from erllama_py._engine.drafting import Draft, verdict, verify_request
from erllama_py._engine.host import ModelHost
from erllama_py._engine.registry import core, id_text
from erllama_py._engine.request import Request
from erllama_py.api._asking import (
    Options,
    Tokens,
    answered,
    as_mapping,
    checked_tokens,
    token_array,
)
from erllama_py.config import DEFAULT_INFER_TOKENS
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom, Ref

__all__ = ("draft_tokens", "start_draft", "start_verify", "verify")


def draft_tokens(
    model_id: str | bytes, prefix: Tokens, options: Options | None = None
) -> list[int]:
    """Draft tokens for :func:`verify` on a larger model: greedily, and at once.

    :param options: ``max``, the most tokens (64 without, or where it is no positive
        whole number); all else is ignored.
    :return: the tokens; one that ends generation is the last of them.
    :raises ErllamaError: ``empty_prefix``, before anything else is looked at; as
        :func:`infer`; ``busy`` while the model verifies; ``timeout`` after 30 seconds
        without a token.  The time in the queue does not count.
    """
    outcomes: queue.SimpleQueue[list[int] | ErllamaError] = queue.SimpleQueue()
    draft = _draft(model_id, prefix, options, outcomes.put)
    draft.start()
    try:
        outcome = outcomes.get()
    except BaseException:
        # Interrupted: nobody waits for this draft any more.
        draft.cancel()
        raise
    if isinstance(outcome, ErllamaError):
        raise outcome
    return outcome


def start_draft(
    model_id: str | bytes,
    prefix: Tokens,
    options: Options,
    *,
    on_over: Callable[[list[int] | ErllamaError], None],
) -> Ref:
    """Do :func:`draft_tokens` without waiting; see :func:`start`."""
    draft = _draft(model_id, prefix, options, on_over)
    draft.start()
    return draft.request.ref


def _draft(
    model_id: str | bytes,
    prefix: Tokens,
    options: Options | None,
    on_over: Callable[[list[int] | ErllamaError], None],
) -> Draft:
    prompt = token_array(prefix)
    if not prompt:
        raise ErllamaError("empty_prefix")
    most = as_mapping({} if options is None else options, "options").get("max")
    host = core().host(id_text(model_id))
    count = most if type(most) is int and most > 0 else DEFAULT_INFER_TOKENS
    return Draft(host, checked_tokens(host, "infer", prompt), count, on_over)


def verify(
    model_id: str | bytes, prefix: Tokens, candidates: Tokens, k: int
) -> tuple[int, int | Atom]:
    """Compare drafted tokens with what this model would say after ``prefix``, greedily.

    To go on: append the accepted candidates and the next token, stop at ``eos``.  The
    prefix is restored from the cache as far as it is there; of the candidates nothing
    is kept.  The same question has the same answer.

    :param k: how many of the candidates to look at, at most.
    :return: how many leading candidates are right, and the model's own next token, or
        ``eos``.  A candidate that ends generation is never accepted.
    :raises ErllamaError: ``not_supported`` (the stub, a model that only embeds),
        ``empty_prefix``, ``invalid_token``, ``context_overflow`` (prefix and candidates
        do not leave a cell free), ``busy`` (the model has requests).  :func:`infer` is
        ``busy`` while it runs; other requests wait for it.
    """
    host, prompt, drafted = _to_verify(model_id, prefix, candidates, k)
    return verdict(answered(host, verify_request(host.info, prompt, drafted)))


def start_verify(
    model_id: str | bytes,
    prefix: Tokens,
    candidates: Tokens,
    k: int,
    *,
    on_over: Callable[[tuple[int, int | Atom] | ErllamaError], None],
) -> Ref:
    """Do :func:`verify` without waiting; see :func:`start`."""

    def over(request: Request) -> None:
        outcome: tuple[int, int | Atom] | ErllamaError
        try:
            outcome = request.error or verdict(request.result or {})
        except ErllamaError as error:
            outcome = error
        on_over(outcome)

    host, prompt, drafted = _to_verify(model_id, prefix, candidates, k)
    request = verify_request(host.info, prompt, drafted, over)
    host.submit(request)
    return request.ref


def _to_verify(
    model_id: str | bytes, prefix: Tokens, candidates: Tokens, k: int
) -> tuple[ModelHost, array[int], array[int]]:
    if type(k) is not int or k <= 0:
        raise BadCall("function_clause", f"k must be a positive whole number, not {k!r}")
    host = core().host(id_text(model_id))
    return host, token_array(prefix), token_array(candidates)[:k]
