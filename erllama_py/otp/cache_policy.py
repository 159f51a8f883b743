"""``erllama_cache_policy``: when rows are saved.  Pure; configurations are maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erllama_py._cache import policy
from erllama_py._cache.policy import INFINITE, Policy
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom

__all__ = (
    "cold_save_split",
    "should_continued_save",
    "should_finish_save",
    "trim_boundary",
    "validate_config",
)

_REQUIRED = (
    *("min_tokens", "cold_min_tokens", "cold_max_tokens", "continued_interval"),
    *("boundary_trim_tokens", "boundary_align_tokens"),
)


def trim_boundary(tokens: list[int], trim: int, align: int) -> list[int] | tuple[Atom, Atom]:
    """Return the prefix left when the end is trimmed and the rest aligned down.

    :return: the prefix, or ``(skip, too_short)``.
    :raises BadCall: ``function_clause``.
    """
    numbers = type(trim) is int and trim >= 0 and type(align) is int and align > 0
    if not isinstance(tokens, list) or not numbers:
        raise BadCall("function_clause", "trim_boundary takes tokens, a number and a positive one")
    length = policy.cold_save_split(
        len(tokens),
        Policy(
            cold_min_tokens=0,
            cold_max_tokens=INFINITE,
            boundary_trim_tokens=trim,
            boundary_align_tokens=align,
        ),
    )
    return (Atom("skip"), Atom("too_short")) if length is None else tokens[:length]


def cold_save_split(
    tokens: list[int], config: Mapping[str, Any]
) -> tuple[Atom, list[int], list[int]] | Atom:
    """Return the prefix of a cold prompt to save, and the rest.

    :return: ``(trim, prefix, rest)`` or ``no_save``.
    """
    names = ("cold_min_tokens", "cold_max_tokens", "boundary_trim_tokens", "boundary_align_tokens")
    length = policy.cold_save_split(len(tokens), _policy(config, *names))
    if length is None:
        return Atom("no_save")
    return Atom("trim"), tokens[:length], tokens[length:]


def should_continued_save(live: int, last_save: int, config: Mapping[str, Any]) -> bool:
    """Whether a save is due with so many tokens, after one with so many."""
    chosen = _policy(config, "continued_interval", "min_tokens")
    return policy.should_continued_save(_count(live), _count(last_save), chosen)


def should_finish_save(live: int, config: Mapping[str, Any]) -> bool:
    """Whether a request that ends with so many tokens leaves a row; never without any."""
    return policy.should_finish_save(_count(live), _policy(config, "min_tokens"))


def validate_config(config: Mapping[str, Any]) -> Atom:
    """Check a policy map.

    :return: ``ok``.
    :raises ErllamaError: ``{missing_keys, Keys}``, ``{invalid, Key, Value}``,
        ``{ordering, Why}``.
    """
    missing = [Atom(name) for name in _REQUIRED if name not in config]
    if missing:
        raise ErllamaError((Atom("missing_keys"), missing), f"{', '.join(missing)} missing")
    Policy.from_map(config)
    return Atom("ok")


def _policy(config: Mapping[str, Any], *names: str) -> Policy:
    given: dict[str, Any] = {}
    for name in names:
        if name not in config:
            raise BadCall((Atom("badkey"), Atom(name)), f"{name} is missing")
        given[name] = INFINITE if config[name] == "infinity" else _count(config[name])
    return Policy(**given)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise BadCall("function_clause", f"{value!r} is no number of tokens")
    return value
