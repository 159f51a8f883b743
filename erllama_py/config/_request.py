"""Options of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from erllama_py._backends.base import SamplerOptions
from erllama_py._grammar import SchemaError, grammar_of, too_much
from erllama_py._machine.environment import Environment
from erllama_py.config._speculate import Speculate, parse_speculate
from erllama_py.config._values import (
    badarg,
    bytes_of,
    choice,
    digest,
    integer,
    invalid,
    is_text,
    number,
    optional_bytes,
    options_of,
)
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom, SessionKey, session_key

__all__ = (
    "DEFAULT_INFER_TOKENS",
    "MAX_LOGPROBS",
    "GenerateOptions",
    "RequestOptions",
    "parse_request",
    "parse_session",
)

DEFAULT_INFER_TOKENS: Final = 64
"""``response_tokens`` of infer/4 when absent, as in the original's source; complete/3
fills the context instead, as its documentation says."""

MAX_LOGPROBS: Final = 20

_MANY: Final = (1 << 31) - 1
"""More tokens than any context or vocabulary has; larger numbers are as good as this."""


class GenerateOptions(msgspec.Struct, frozen=True):
    """What a request asks for, validated."""

    sampler: SamplerOptions = SamplerOptions()
    response_tokens: int | None = None
    """``None``: whatever fits into the context."""
    stop_sequences: tuple[bytes, ...] = ()
    bit: bool = False
    """Exactness ``bit``: computed alone, so that warm equals cold bit for bit."""
    cached: bool = True
    """False: nothing is looked up for the request, and nothing of it stored."""
    trace: bool = False
    """Keep the logits every token is drawn from, for a comparison."""
    thinking: bool = False
    """Tell thinking apart from the reply."""
    thinking_budget: int | None = None
    """Tokens of thinking, at most."""
    tool_calls: bool | None = None
    """Tell tool calls apart; ``None``: where the load config names their markers."""
    speculate: Speculate | None = None
    logprobs: int | None = None
    """Tell each token's log probability, and those of so many of the likeliest."""


class RequestOptions(msgspec.Struct, frozen=True):
    """A checked option map of complete/3 or infer/4."""

    generate: GenerateOptions
    parent_key: bytes | None
    session: SessionKey | None = None
    signing_key: bytes = b""
    """What thinking is signed with; empty: not at all."""


def parse_request(
    options: Mapping[str, Any],
    exactness: str,
    default_tokens: int | None,
    speculate: Speculate | None = None,
) -> RequestOptions:
    """Check the option map of a request; the last three are for what it does not say.

    Sampler values of the wrong type count as absent, as in the original; what would
    change the result unseen (``seed``, ``grammar``, ``json_schema``) is refused.

    :raises BadCall: not a mapping.
    :raises ErllamaError: ``badarg`` for seed and grammar, else ``{invalid, Key, Value}``,
        where thinking is asked for and the environment's key for it cannot be read, too.
    """
    given = options_of(options, "options")
    tokens = given.get("response_tokens", default_tokens)
    if tokens is not None and (type(tokens) is not int):
        raise invalid("response_tokens", tokens, "a whole number")
    stops = given.get("stop_sequences", ())
    if not isinstance(stops, (list, tuple)):
        raise invalid("stop_sequences", stops, "a list of texts")
    exact = choice(given, "exactness", ("token", "bit"), exactness)
    # As in the original: whatever else it is, true among it, counts as disabled.
    thinking = given.get("thinking") == "enabled"
    # JSON is reply from its first byte to its last, whatever its texts look like.
    constrained = "json_schema" in given
    likeliest = integer(given, "logprobs", 0, 0, MAX_LOGPROBS) if "logprobs" in given else None
    return RequestOptions(
        GenerateOptions(
            sampler=_sampler(given),
            response_tokens=None if tokens is None else min(max(0, tokens), _MANY),
            stop_sequences=tuple(bytes_of(s, "a stop sequence") for s in stops if is_text(s) and s),
            bit=exact == "bit",
            thinking=thinking and not constrained,
            thinking_budget=_thinking_budget(given),
            tool_calls=False if constrained else _tool_calls(given),
            speculate=parse_speculate(given, speculate),
            logprobs=likeliest,
        ),
        digest(given, "parent_key"),
        parse_session(given.get("session_id", _named_undefined(options))),
        signing_key=(Environment().get("thinking_signing_key") or b"") if thinking else b"",
    )


def parse_session(value: Any) -> SessionKey | None:
    """Return the key of a ``session_id``; ``None`` where none was given.

    Its value may be any but ``undefined``; a text of that name is one.

    :raises ErllamaError: ``{invalid, session_id, Value}``.
    """
    if value is None or (isinstance(value, Atom) and value in ("undefined", "nil")):
        return None
    try:
        return session_key(value)
    except (TypeError, UnicodeEncodeError):
        raise invalid("session_id", value, "a value that can be a key of a dict") from None


def _named_undefined(options: Mapping[Any, Any]) -> Any:
    """Return a ``session_id`` as it was given: the text ``undefined`` counts as one."""
    names = ("session_id", b"session_id")
    return next((value for key, value in options.items() if key in names), None)


def _tool_calls(options: Mapping[str, Any]) -> bool | None:
    """Return whether tool calls are told apart; ``None`` where the load config decides."""
    asked = options.get("tool_calls")
    known = {"enabled": True, "disabled": False}
    return known.get(asked) if isinstance(asked, str) else None


def _thinking_budget(options: Mapping[str, Any]) -> int | None:
    budget = options.get("thinking_budget_tokens")
    return budget if type(budget) is int and budget > 0 else None


def _sampler(options: Mapping[str, Any]) -> SamplerOptions:
    seed = options.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 1 << 64:
        raise badarg("seed", seed, "a whole number from 0 to 2^64 - 1")
    grammar = options.get("grammar")
    if grammar is not None:
        if not (is_text(grammar) and grammar):
            raise badarg("grammar", grammar, "the text of a GBNF grammar")
        if much := too_much(bytes_of(grammar, "the grammar")):
            raise ErllamaError("badarg", f"the grammar has {much}", "give a smaller one")
    schema = options.get("json_schema")
    top_k = options.get("top_k")
    return SamplerOptions(
        grammar=optional_bytes(grammar) if schema is None else _schema_grammar(schema, grammar),
        visible=schema is not None,
        repetition_penalty=number(options, "repetition_penalty", lambda v: v != 1.0),
        top_k=min(top_k, _MANY) if type(top_k) is int and top_k > 0 else None,
        top_p=number(options, "top_p", lambda v: v < 1.0),
        min_p=number(options, "min_p", lambda v: v > 0.0),
        temperature=number(options, "temperature", lambda v: v > 0.0),
        seed=seed & 0xFFFFFFFF,
    )


def _schema_grammar(schema: Any, grammar: Any) -> bytes:
    """Return the grammar of a JSON Schema.

    :raises ErllamaError: ``{invalid, json_schema, Why}``, where ``Why`` begins with the place.
    """
    refused = SchemaError((), "a grammar is given, too", "give one of them")
    if grammar is None:
        try:
            return grammar_of(schema)
        except SchemaError as error:
            refused = error
    why = str(refused)
    raise ErllamaError(
        (Atom("invalid"), Atom("json_schema"), why), f"json_schema, {why}", refused.mend
    )
