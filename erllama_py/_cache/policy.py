"""When the cache saves, and from which length on it answers.

The numbers and moments are the original's; what a save costs here (blocks are stored
as they are computed) is not, so small numbers are sensible.

A key the caller does not give takes its default, lifted where the caller's other keys
demand it: ``min_tokens = 1000`` alone is valid and lifts ``cold_min_tokens`` to 1000.
Keys the caller does give must be in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from erllama_py.errors import ErllamaError
from erllama_py.types import Atom

__all__ = (
    "INFINITE",
    "Policy",
    "cold_save_split",
    "prefill_chunk",
    "should_continued_save",
    "should_finish_save",
)

INFINITE: Final = 1 << 62
"""``infinity`` as a number: more tokens than any context has."""

_DEFAULTS: Final = {
    "min_tokens": 512,
    "cold_min_tokens": 512,
    "cold_max_tokens": 30000,
    "continued_interval": 2048,
    "boundary_trim_tokens": 32,
    "boundary_align_tokens": 2048,
    "session_resume_wait_ms": 500,
}
_LEAST: Final = {
    "min_tokens": 0,
    "cold_min_tokens": 0,
    "cold_max_tokens": 0,
    "continued_interval": 1,
    "boundary_trim_tokens": 0,
    "boundary_align_tokens": 1,
    "session_resume_wait_ms": 0,
}
_ENDLESS: Final = frozenset({"min_tokens", "cold_min_tokens", "cold_max_tokens"})
"""Keys that take ``infinity``.  For ``min_tokens`` it means: never save, never hit."""

_ORDER: Final = (("min_tokens", "cold_min_tokens"), ("cold_min_tokens", "cold_max_tokens"))


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """One model's save policy.  Lengths are tokens."""

    min_tokens: int = 512
    """Shortest row saved, and shortest prefix a search answers with."""
    cold_min_tokens: int = 512
    """Shorter prompts get no cold save."""
    cold_max_tokens: int = 30000
    """Longer prompts get no cold save."""
    continued_interval: int = 2048
    """Tokens between two saves while decoding."""
    boundary_trim_tokens: int = 32
    """Tokens left off a prompt's end before its cold save."""
    boundary_align_tokens: int = 2048
    """A cold save's length is a multiple of this."""
    session_resume_wait_ms: int = 500
    """Longest wait for a ``parent_key`` that is being saved; 0 does not wait."""
    prefill_chunk_size: int | None = None
    """Most prompt tokens of one request in one step; None follows the batch size."""

    @classmethod
    def from_map(
        cls, options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
    ) -> Policy:
        """Read a load option map; ``defaults`` are the application's.

        Unknown keys are ignored, as the original does.

        :raises ErllamaError: ``{invalid, Key, Value}``, or ``{ordering, Why}`` where
            keys given together contradict each other.
        """
        given = _known(options)
        values = {**_DEFAULTS, **_known(defaults or {}), **given}
        numbers = {key: _number(key, value) for key, value in values.items()}
        for smaller, larger in _ORDER:
            if numbers[larger] >= numbers[smaller]:
                continue
            if larger in given:
                _out_of_order(smaller, larger, numbers)
            numbers[larger] = numbers[smaller]
        return cls(**numbers, prefill_chunk_size=_chunk_size(options.get("prefill_chunk_size")))

    def to_map(self) -> dict[str, Any]:
        """Return the map :meth:`from_map` reads, with ``infinity`` spelled out."""
        fields = msgspec.structs.asdict(self)
        if fields["prefill_chunk_size"] is None:
            del fields["prefill_chunk_size"]
        return {k: Atom("infinity") if v >= INFINITE else v for k, v in fields.items()}


def cold_save_split(length: int, policy: Policy) -> int | None:
    """Return how many tokens of a cold prompt are saved, or None for no split.

    The prefix is prefilled and saved before the rest; the rest may be empty.
    """
    if not policy.cold_min_tokens <= length <= policy.cold_max_tokens:
        return None
    align = policy.boundary_align_tokens
    available = length - policy.boundary_trim_tokens
    return available // align * align if available >= align else None


def should_continued_save(live: int, last_save: int, policy: Policy) -> bool:
    """Whether a save is due after a decoded token.

    :param live: tokens in the context.
    :param last_save: tokens already restored or saved for this request.  Starting it
        at 0 on warm requests would save at the first decoded token.
    """
    return live - last_save >= policy.continued_interval and live >= policy.min_tokens


def should_finish_save(length: int, policy: Policy) -> bool:
    """Whether a request that ends with ``length`` tokens leaves a row.

    The same gate decides whether there is a ``finish_key``, and whether a cold split's
    prefix is saved.
    """
    return length > 0 and length >= policy.min_tokens


def prefill_chunk(policy: Policy, n_batch: int, n_ubatch: int, block: int) -> int:
    """Return the chunk: prefill never crosses its absolute multiples.

    A multiple of ``block``, at least one block, and no larger than the engine computes
    at once, since a cut inside the engine would be a cut all the same.
    """
    wanted = policy.prefill_chunk_size
    if wanted is None:
        wanted = max(64, n_batch // 4)
    return max(block, min(wanted, n_ubatch) // block * block)


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in _DEFAULTS if key in options}


def _number(key: str, value: Any) -> int:
    if key in _ENDLESS and value in ("infinity", INFINITE):
        return INFINITE
    if type(value) is not int or value < _LEAST[key]:
        raise ErllamaError(
            (Atom("invalid"), Atom(key), value),
            f"{key} cannot be {value!r}",
            f"give a whole number from {_LEAST[key]}",
        )
    return min(value, INFINITE)


def _chunk_size(value: Any) -> int | None:
    if value is None:
        return None
    if value == "infinity":
        return INFINITE
    if type(value) is not int or value < 1:
        raise ErllamaError(
            (Atom("invalid"), Atom("prefill_chunk_size"), value),
            f"prefill_chunk_size cannot be {value!r}",
            "give a whole number from 1, or infinity",
        )
    return value


def _out_of_order(smaller: str, larger: str, numbers: Mapping[str, int]) -> None:
    raise ErllamaError(
        (Atom("ordering"), Atom(f"{larger}_lt_{smaller}")),
        f"{larger} ({numbers[larger]}) is below {smaller} ({numbers[smaller]})",
        f"raise {larger} or lower {smaller}",
    )
