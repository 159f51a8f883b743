"""``erllama_cache_writer``: saves by hand, so many at once.

A place is held by a process, given as ``holder``; by the calling thread where left out.
Whoever passes holders reports their end to
:func:`erllama_py.otp.cache_meta_srv.process_died`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

from erllama_py._cache import kvc
from erllama_py._cache.lease import REASONS
from erllama_py._cache.writer import DEFAULT_TIMEOUT_MS
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.otp._index import index
from erllama_py.otp._maps import meta_of
from erllama_py.otp.cache_disk_srv import save_reserved
from erllama_py.types import Atom

__all__ = (
    "DEFAULT_TIMEOUT_MS",
    "acquire",
    "current",
    "max_concurrent",
    "release",
    "save",
    "set_max_concurrent",
)


def save(
    server: Any,
    tier: Any,
    meta: Mapping[str, Any],
    payload: bytes,
    timeout_ms: Any = DEFAULT_TIMEOUT_MS,
    *,
    holder: object = None,
) -> bytes:
    """Save a row to a tier server; return its key.

    It is in the index afterwards, and ``saves_<reason>`` has moved; else ``saves_dropped``.

    :param tier: ``disk`` or ``ram_file``.
    :param timeout_ms: how long to wait for a place, or ``infinity``.
    :raises ErllamaError: ``max_concurrent``, ``{missing_key, K}``, ``already_present``,
        ``conflict``, ``expired``, or why it cannot be written.
    :raises ModelGone: ``noproc``: no such server.
    """
    if tier not in ("disk", "ram_file"):
        raise BadCall("function_clause", f"tier {tier!r} is not disk or ram_file")
    holder = threading.current_thread() if holder is None else holder
    try:
        acquire(timeout_ms, holder=holder)
        try:
            return _save(server, tier, meta, payload, holder)
        finally:
            release(holder=holder)
    except ErllamaError:
        index().source.counters.incr("saves_dropped")
        raise


def acquire(timeout_ms: Any, *, holder: object = None) -> Atom:
    """Take a place, waiting for one if need be.  A holder has at most one.

    :param timeout_ms: 0 to try once, or ``infinity``.
    :return: ``ok``.
    :raises ErllamaError: ``max_concurrent``.
    """
    if timeout_ms != "infinity" and (type(timeout_ms) is not int or timeout_ms < 0):
        raise BadCall("function_clause", f"{timeout_ms!r} is no timeout")
    wait = math.inf if timeout_ms == "infinity" else timeout_ms
    index().places.acquire(threading.current_thread() if holder is None else holder, wait)
    return Atom("ok")


def release(*, holder: object = None) -> Atom:
    """Give a place back.

    :return: ``ok``, without one too.
    """
    index().places.release(threading.current_thread() if holder is None else holder)
    return Atom("ok")


def current() -> int:
    """Return how many places are taken."""
    return index().places.current


def max_concurrent() -> int:
    """Return how many places there are."""
    return index().places.limit


def set_max_concurrent(limit: int) -> Atom:
    """Change how many places there are.

    :return: ``ok``.
    :raises BadCall: ``function_clause``: not a number from 1.
    """
    index().places.limit = limit
    return Atom("ok")


def _save(server: Any, tier: Any, meta: Mapping[str, Any], payload: bytes, holder: object) -> bytes:
    here = index()
    where = here.server(server)
    facts = meta_of(meta)
    key = kvc.key_of(facts)
    try:
        token = here.reserve_save(key, tier, holder)
    except ErllamaError as error:
        if error.reason == "already_present":
            here.source.counters.incr("duplicate_dropped")
        raise
    save_reserved(here, where, facts, payload, key, token)
    if facts.save_reason in REASONS:
        here.source.counters.incr(f"saves_{facts.save_reason}")
    return key
