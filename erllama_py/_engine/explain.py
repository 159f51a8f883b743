"""What a request hit, and why not more: what ``api.explain`` answers, in data and words."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from erllama_py._cache.divergence import Divergence
from erllama_py._cache.grade import Grade
from erllama_py._cache.trie import TOKEN_BYTES
from erllama_py._engine.noted import Noted, Past
from erllama_py._engine.tokenbytes import unpack_tokens
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom, Ref, text_of

if TYPE_CHECKING:
    from erllama_py._engine.host import ModelHost
    from erllama_py.config import RequestOptions

__all__ = ("TokenTexts", "explain_prompt", "explain_request")

_FIELDS: Final = 3
"""Differing fields whose values are told, rather than their names alone."""

_VALUE_CHARS: Final = 16
"""Of a value in words: enough of a digest to tell it from another."""


class TokenTexts:
    """Renders tokens for people: what has no text of its own gets its number.

    :param detokenize: encoded tokens to bytes; control tokens to none.
    """

    def __init__(self, detokenize: Callable[[bytes], bytes]) -> None:
        self._detokenize = detokenize
        self._gone = False

    def __call__(self, tokens: bytes) -> str | bytes:
        """Return the text of encoded tokens."""
        steps = range(0, len(tokens), TOKEN_BYTES)
        return text_of(b"".join(self._one(tokens[at : at + TOKEN_BYTES]) for at in steps))

    def _one(self, token: bytes) -> bytes:
        data = b""
        if not self._gone:
            try:
                data = self._detokenize(token)
            except ErllamaError:
                # The model is gone, or was loaded again with fewer tokens: numbers then.
                self._gone = True
        return data or b"<token %d>" % int.from_bytes(token, "little")


def explain_request(host: ModelHost, what: Ref | Mapping[str, Any] | None) -> dict[str, Any]:
    """Explain a request to a model by its ref or its outcome, or the latest one.

    :raises ErllamaError: ``not_found``.
    """
    past = host.history.find(what, host.requests)
    if past is None:
        raise _not_remembered(host.id, what)
    if past.lookup is None:
        if past.kind == "sticky":
            return _sticky(past.prompt_len, past.prefix_len, past.exactness)
        return _unlooked(past.prompt_len, past, caching=host.cache.namespace is not None)
    return _explanation(host, past.lookup, past)


def explain_prompt(host: ModelHost, tokens: bytes, options: RequestOptions) -> dict[str, Any]:
    """Explain what the next admission of a prompt would find."""
    if options.session is not None and not options.generate.bit:
        prompt = unpack_tokens(tokens)
        if held := host.sessions.goes_on(options.session, prompt):
            stream = host.sessions.keeps_stream(options.session)
            return _sticky(len(prompt), held, "stream" if stream else "token")
    noted = host.cache.preview(tokens, options.generate, options.parent_key)
    if noted is None:
        return _unlooked(len(tokens) // TOKEN_BYTES, None, caching=False)
    return _explanation(host, noted, None)


def _not_remembered(model_id: str, what: Ref | Mapping[str, Any] | None) -> ErllamaError:
    if what is None:
        hint = "send one, or give explain a prompt"
        return ErllamaError("not_found", f"{model_id!r} has had no request yet", hint)
    name = str(what) if isinstance(what, Ref) else "that outcome"
    return ErllamaError(
        "not_found",
        f"{name} is of none of the latest requests to {model_id!r}",
        "ask the model that served it; for a prompt, explain tells what is cached now",
    )


def _explanation(host: ModelHost, noted: Noted, past: Past | None) -> dict[str, Any]:
    """Return the map for a lookup.

    :param past: the request it was for; None for a prompt that was only asked about.
    """
    text = TokenTexts(lambda tokens: host.call("detokenize", tokens))
    beyond = host.cache.beyond(noted)
    seen, apart = noted.seen, noted.seen.apart
    kind, prefix_len, label = seen.kind, seen.prefix_len, seen.label
    if past is not None and past.admitted:
        kind, prefix_len, label = past.kind, past.prefix_len, past.exactness
    answer = _map(noted.total, kind, prefix_len)
    answer["via"] = Atom(seen.via)
    answer["exactness"] = Atom(label) if label and kind != "cold" else None
    answer["tiers"] = {Atom(tier): tokens for tier, tokens in seen.tiers.items()}
    answer["lookup_ms"] = noted.took_ns / 1e6
    if past is not None and past.restore_ns is not None:
        answer["restore_ms"] = past.restore_ns / 1e6
    if apart is not None:
        if apart.row is not None:
            answer["nearest_row"] = {
                "key": apart.row.key,
                "tokens": apart.row.length,
                "shared": apart.row.shared,
            }
        if apart.shared < noted.total:
            answer["first_difference"] = _difference(noted, apart, text)
    if beyond is None:
        answer["other_keys"] = None
    else:
        answer["other_keys"] = [
            {"shared": shared, "differs": differs} for shared, differs in beyond.others
        ]
        if beyond.evicted:
            key, length = beyond.evicted
            answer["evicted_row"] = {"key": key, "tokens": length}
    reasons = list(_reasons(noted, past, answer))
    answer["reason"] = Atom(reasons[0][0])
    answer["why"] = "; ".join(words for _, words in reasons)
    return answer


def _unlooked(total: int, past: Past | None, *, caching: bool) -> dict[str, Any]:
    """Return the map for a prompt that nothing was looked up for.

    :param past: the request; None for a prompt that was only asked about.
    :param caching: whether anything is cached for the model.
    """
    if not caching:
        reason, words = "not_cached", "nothing is cached for this model"
    elif past is None or not past.cached:
        reason, words = "not_cached", "the request was to be computed without the cache"
    elif past.over:
        reason, words = "not_looked_up", "the request ended before anything was looked up for it"
    else:
        reason, words = "waiting", "the request waits for its turn: nothing is looked up yet"
    answer = _map(total, "cold", 0)
    return {**answer, "reason": Atom(reason), "why": words}


def _sticky(total: int, held: int, label: str | None) -> dict[str, Any]:
    """Return the map of a prompt that goes on in the sequence of its session."""
    words = f"{held} of {_count(total)} are in the context, as its session's"
    answer = _map(total, "sticky", held)
    exactness = Atom(label) if label else None
    return {**answer, "reason": Atom("sticky"), "why": words, "exactness": exactness}


def _map(total: int, kind: str, prefix_len: int) -> dict[str, Any]:
    return {
        "reason": None,
        "why": "",
        "kind": Atom(kind),
        "via": None,
        "prompt_tokens": total,
        "prefix_len": prefix_len,
        "exactness": None,
        "tiers": {},
        "lookup_ms": None,
        "restore_ms": None,
        "nearest_row": None,
        "first_difference": None,
        "evicted_row": None,
        "other_keys": [],
    }


def _difference(noted: Noted, apart: Divergence, text: TokenTexts) -> dict[str, Any]:
    ours, cached = noted.excerpt[-TOKEN_BYTES:], apart.cached_token
    return {
        "index": apart.shared,
        "prompt_token": int.from_bytes(ours, "little"),
        "prompt_text": text(ours),
        "cached_token": cached,
        "cached_text": None if cached is None else text(cached.to_bytes(TOKEN_BYTES, "little")),
        "before": text(noted.excerpt[:-TOKEN_BYTES]),
    }


# -- in words -------------------------------------------------------------------------------


def _reasons(noted: Noted, past: Past | None, answer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (reason, words), what weighs most first."""
    if answer["kind"] == "exact":
        yield "exact", f"all {_count(noted.total)} are cached, as a row of exactly these"
        return
    found = list(itertools.chain(_not_restored(noted, past), _held_back(noted), _not_there(answer)))
    head = f"{noted.seen.prefix_len} of {_count(noted.total)} were found"
    reason, words = found[0]
    yield reason, words if noted.seen.kind == "cold" else f"{head}; {words}"
    yield from found[1:]
    if noted.parented and not noted.seen.resumes:
        yield "parent_key", "parent_key is of no row that this prompt begins with"


def _not_restored(noted: Noted, past: Past | None) -> Iterator[tuple[str, str]]:
    """What was found and is not what the request began with."""
    if past is None or not past.admitted or past.prefix_len >= noted.seen.prefix_len:
        return
    if past.stats and past.stats["cancelled"]:
        yield "cancelled", "the request was cancelled before that was restored"
    elif past.prefix_len:
        yield "restore_failed", f"only {past.prefix_len} of them could be restored"
    else:
        yield "restore_failed", "they could not be restored, and were computed instead"


def _held_back(noted: Noted) -> Iterator[tuple[str, str]]:
    """What is cached and not used."""
    seen, apart = noted.seen, noted.seen.apart
    if apart is None:
        return
    # One token at least is left to compute.
    most = min(apart.shared, noted.total - 1)
    if seen.gated:
        more = " more" if seen.prefix_len else ""
        words = f"{seen.gated}{more} are cached, but quicker to compute than to restore"
        yield "quicker_to_compute", words
    elif most > seen.prefix_len:
        yield _unused(noted, apart, most)
    elif apart.shared == noted.total:
        words = "all of them are cached, but no row of exactly these: the last is computed again"
        yield "no_row", words


def _unused(noted: Noted, apart: Divergence, most: int) -> tuple[str, str]:
    cached = f"{_count(apart.shared)} {'is' if apart.shared == 1 else 'are'} cached"
    if noted.seen.kind == "cold" and most < noted.floor:
        return "below_min_tokens", f"{cached}, fewer than min_tokens ({noted.floor})"
    if apart.whole:
        return "whole_rows", f"{cached}, in a sequence that this model can only restore whole"
    how = " or ".join(_how(grade) for grade in apart.grades)
    if noted.bit:
        taken = "exactness bit takes whole chunks that were prefilled alone"
        return "not_bit_exact", f"{cached}, some of them {how}: {taken}"
    return "computed_differently", f"{cached}, some of them computed in another way: {how}"


def _how(grade: Grade) -> str:
    match grade.kind:
        case "P":
            return f"prefilled in chunks of {grade.number}"
        case "T":
            return f"as the end of a prefill of {grade.end}"
    threads = f"{grade.number} thread{'' if grade.number == 1 else 's'}"
    return f"decoded or prefilled beside others, with {threads}"


def _not_there(answer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is not cached under this key, where the prompt leaves what is."""
    gone = answer["evicted_row"]
    if gone is not None:
        words = f"a row of its first {_count(gone['tokens'])} was cached, and has been evicted"
        yield "evicted", words
    for other in (answer["other_keys"] or ())[:1]:
        fields = _differing(other["differs"])
        yield "other_key", f"{_count(other['shared'])} of it under another key: {fields}"
    apart = answer["first_difference"]
    if apart is None:
        return
    at, ours, theirs = apart["index"], _quoted(apart["prompt_text"]), apart["cached_text"]
    if not at:
        yield "unknown", f"nothing that is cached begins with its first token, {ours}"
    elif theirs is None:
        yield "ended", f"the nearest cached context ends before token {at}, {ours}"
    else:
        words = f"token {at} is {ours}, where the nearest cached context has {_quoted(theirs)}"
        yield "diverged", words


def _differing(fields: dict[str, tuple[str, str]]) -> str:
    if len(fields) > _FIELDS:
        return f"{', '.join(fields)} differ"
    return ", ".join(
        f"{name} is {_short(here)} here and {_short(there)} there"
        for name, (here, there) in fields.items()
    )


def _short(value: str) -> str:
    cut = value if len(value) <= _VALUE_CHARS else f"{value[: _VALUE_CHARS - 1]}…"
    return cut or "not set"


def _quoted(text: str | bytes) -> str:
    return repr(text if isinstance(text, str) else text.decode(errors="replace"))


def _count(tokens: int) -> str:
    return f"{tokens} token{'' if tokens == 1 else 's'}"
