"""Drafts, and what another model makes of them."""

from __future__ import annotations

from erllama_py._engine.drafting import draft, verify_request
from erllama_py._engine.registry import core, id_text
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
from erllama_py.types import Atom

__all__ = ("draft_tokens", "verify")


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
    prompt = token_array(prefix)
    if not prompt:
        raise ErllamaError("empty_prefix")
    most = as_mapping({} if options is None else options, "options").get("max")
    host = core().host(id_text(model_id))
    count = most if type(most) is int and most > 0 else DEFAULT_INFER_TOKENS
    return draft(host, checked_tokens(host, "infer", prompt), count)


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
    if type(k) is not int or k <= 0:
        raise BadCall("function_clause", f"k must be a positive whole number, not {k!r}")
    host = core().host(id_text(model_id))
    request = verify_request(host.info, token_array(prefix), token_array(candidates)[:k])
    verdict = answered(host, request)
    following = verdict["following"]
    return verdict["accepted"], Atom("eos") if following is None else following
