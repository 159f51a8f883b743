"""``erllama_cache_meta_srv``: the index, pins, and reservations of saves by hand.

A row is a tuple of ten: key, tier, size, last use, pins, status, header, location, tokens,
hits; one being written is a tuple of nine.  Tokens are encoded, or ``None``.

Processes are any values that compare equal when they are the same process; whoever passes
them in reports their end to :func:`process_died`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from erllama_py._cache.key import KeyHasher, encode_tokens
from erllama_py._cache.reservations import ExternalRow
from erllama_py.errors import BadCall
from erllama_py.otp._index import TIERS, index, key_argument
from erllama_py.otp._source import CachedRow
from erllama_py.types import Atom, Ref

__all__ = (
    "announce_saved",
    "cancel_reservation",
    "check_reservation",
    "checkin",
    "checkout",
    "dump",
    "evict_bytes",
    "gc",
    "insert_available",
    "lookup_exact",
    "lookup_exact_or_wait",
    "lookup_longest_prefix",
    "mark_published",
    "process_died",
    "reserve_save",
)

_OK: Final = Atom("ok")
_MISS: Final = Atom("miss")

Term = tuple[Any, ...]


def dump(*key: bytes) -> list[Term] | Term | Atom:
    """Return all rows, or with a key that one or ``miss``."""
    match key:
        case ():
            return index().terms()
        case (one,):
            return index().term(key_argument(one)) or _MISS
        case _:
            raise TypeError("dump takes a key or nothing")


def lookup_exact(key: bytes) -> Term | Atom:
    """Return an available row, or ``miss``."""
    return _term(index().available(key_argument(key)))


def lookup_exact_or_wait(key: bytes, timeout_ms: int) -> Term | Atom:
    """Return an available row, waiting for one that is being written, or ``miss``."""
    return _term(index().await_row(key_argument(key), _number(timeout_ms)))


def lookup_longest_prefix(
    key_meta: Mapping[str, Any], tokens: list[int], stride: int, min_tokens: int
) -> tuple[int, Term] | Atom:
    """Find the longest row whose tokens are the first of ``tokens``.

    Looks at multiples of ``stride``, the largest first, down to the larger of ``stride``
    and ``min_tokens``.

    :param key_meta: ``fingerprint``, ``quant_type``, ``ctx_params_hash``.
    :return: (length, row), or ``miss``.
    :raises BadCall: ``function_clause``.
    """
    if not (type(stride) is int and stride > 0 and type(min_tokens) is int and min_tokens > 0):
        raise BadCall("function_clause", "stride and floor are numbers from 1")
    if not isinstance(tokens, list):
        raise BadCall("function_clause", f"tokens are a list, not {tokens!r}")
    here, started = index(), time.perf_counter_ns()
    probes = 0
    found: tuple[int, Term] | Atom = _MISS
    for length, key in reversed(_prefix_keys(key_meta, tokens, stride, max(min_tokens, stride))):
        probes += 1
        row = here.available(key) if here.has(key) else None
        if row is not None:
            found = length, row.term()
            break
    here.source.counters.add("longest_prefix_probes", probes)
    here.source.counters.add("longest_prefix_ns", time.perf_counter_ns() - started)
    return found


def checkout(key: bytes, pid: object) -> tuple[Ref, Atom, Term, bytes, bytes | None] | Atom:
    """Pin a row for a process, until :func:`checkin` or its end.

    :return: (reference, tier, location, header, tokens), or ``miss``.
    :raises ErllamaError: ``busy``: it is being written.
    """
    pin = index().checkout(key_argument(key), pid)
    if pin is None:
        return _MISS
    row = pin.row
    return pin.ref, Atom(row.tier), row.location, row.header, row.tokens


def checkin(holder: object) -> Atom:
    """Take a pin off.

    :return: ``ok``, for unknown references too.
    """
    index().checkin(holder)
    return _OK


def reserve_save(key: bytes, tier: str, pid: object) -> Ref:
    """Reserve a row that a process is about to save; return the token.

    :raises ErllamaError: ``already_present`` or ``conflict``.
    """
    return index().reserve_save(key_argument(key), _tier(tier), pid)


def check_reservation(key: bytes, token: object) -> Atom:
    """Ask whether a reservation holds, and extend it.

    :return: ``ok``.
    :raises ErllamaError: ``expired``.
    """
    index().check_reservation(key_argument(key), token)
    return _OK


def mark_published(key: bytes, token: object, path: Any) -> Atom:
    """Note that a reserved row's file has its name.

    :return: ``ok``.
    :raises ErllamaError: ``expired``.
    """
    index().mark_published(key_argument(key), token, _path(path))
    return _OK


def announce_saved(
    key: bytes, token: object, size: int, header: bytes, tokens: bytes | None = None
) -> Atom:
    """Make a reserved row available.

    :return: ``ok``.
    :raises ErllamaError: ``expired``.
    """
    index().announce_saved(key_argument(key), token, _number(size), _bytes(header), _tokens(tokens))
    return _OK


def cancel_reservation(key: bytes, token: object) -> Atom:
    """Give a reservation up.

    :return: ``ok``, for another's token too, which changes nothing.
    """
    index().cancel_reservation(key_argument(key), token)
    return _OK


def insert_available(
    key: bytes, tier: str, size: int, header: bytes, location: Term, tokens: bytes | None = None
) -> Atom:
    """Put a row in.  The engine restores no payload because of it.

    :return: ``ok``.
    """
    if not isinstance(location, tuple):
        raise BadCall("function_clause", f"a location is a tuple, not {location!r}")
    place = (location[0], _path(location[1])) if len(location) == 2 else location
    index().insert_available(
        key_argument(key), _tier(tier), _number(size), _bytes(header), place, _tokens(tokens)
    )
    return _OK


def gc() -> tuple[Atom, int]:
    """Evict every row that is not pinned or in use, on every tier, files included.

    What is kept for the next conversation of a chat (its head) goes, too.

    :return: ``(evicted, rows)``.
    """
    return Atom("evicted"), index().evict(None)[0]


def evict_bytes(target: int, tiers: Any = "all") -> tuple[Atom, int, int]:
    """Evict until so many bytes are free.

    Rows that were put in or saved by name go first, the longest unused before the others;
    then the engine's, what is worth least first.

    :param tiers: ``all``, or a list of ``ram``, ``ram_file``, ``disk``.
    :return: ``(evicted, rows, bytes)``.
    :raises BadCall: ``function_clause``.
    """
    chosen = TIERS if tiers == "all" else tiers
    if not isinstance(chosen, list | tuple) or any(tier not in TIERS for tier in chosen):
        raise BadCall("function_clause", f"tiers are all, or some of {', '.join(TIERS)}")
    if _number(target) == 0:
        return Atom("evicted"), 0, 0
    return Atom("evicted"), *index().evict(target, tuple(chosen))


def process_died(pid: object) -> Atom:
    """Let go of all that a process held: pins, reservations, its place as a writer.

    Not in the original, which monitors.

    :return: ``ok``.
    """
    index().process_died(pid)
    return _OK


def _prefix_keys(
    key_meta: Mapping[str, Any], tokens: list[int], stride: int, floor: int
) -> list[tuple[int, bytes]]:
    """Return (length, key) of the prefixes to look at, shortest first, in one pass."""
    try:
        hasher = KeyHasher(
            key_meta["fingerprint"], key_meta["quant_type"], key_meta["ctx_params_hash"]
        )
    except (KeyError, TypeError):
        raise BadCall("function_clause", f"{key_meta!r} does not say whose tokens") from None
    encoded = memoryview(encode_tokens(tokens))
    found = []
    for end in range(stride, len(tokens) + 1, stride):
        hasher.update(encoded[(end - stride) * 4 : end * 4])
        if end >= floor:
            found.append((end, hasher.digest()))
    return found


def _term(row: CachedRow | ExternalRow | None) -> Term | Atom:
    return _MISS if row is None else row.term()


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise BadCall("function_clause", f"{value!r} is no number from 0")
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise BadCall("function_clause", f"{value!r} is not binary")
    return value


def _tokens(value: Any) -> bytes | None:
    return None if value is None or value == "undefined" else _bytes(value)


def _tier(value: Any) -> str:
    if value not in TIERS:
        raise BadCall("function_clause", f"{value!r} is not one of {', '.join(TIERS)}")
    return str(value)


def _path(value: Any) -> bytes:
    match value:
        case bytes():
            return value
        case str() | Path():
            return os.fsencode(value)
        case list() if all(type(one) is int and 0 < one < 0x110000 for one in value):
            return os.fsencode("".join(map(chr, value)))
        case _:
            raise BadCall("function_clause", f"{value!r} is no path")
