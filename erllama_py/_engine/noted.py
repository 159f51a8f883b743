"""What is kept of lookups, so that somebody can ask later why one found no more.

A prompt of 30 000 tokens is 120 kB, and hundreds of requests come and go: a model keeps
the lookups of its latest requests, a few hundred bytes each, and their prompts only as
far as a fixed number of bytes goes.  Where a prompt had to go, what was looked up is
still told; only what else would need its tokens is not: whether another key had more of
it, and whether a row of it had been evicted.
"""

from __future__ import annotations

import itertools
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from erllama_py._cache.divergence import Seen
from erllama_py._cache.trie import TOKEN_BYTES
from erllama_py.types import Ref

if TYPE_CHECKING:
    from erllama_py._cache.namespace import Namespace
    from erllama_py._engine.request import Request

__all__ = ("Beyond", "History", "Noted", "Past", "around", "past_of")

KEPT: Final = 64
"""Requests a model remembers."""

KEPT_BYTES: Final = 4 << 20
"""Bytes of their prompts, together."""

BEFORE: Final = 4
"""Tokens shown before the first that differs."""


class Noted(msgspec.Struct):
    """A lookup, as it was answered."""

    seen: Seen
    namespace: Namespace
    """Where it looked."""
    total: int
    """Tokens of the prompt."""
    excerpt: bytes
    """The first token that differs, and up to :data:`BEFORE` before it."""
    bit: bool
    """Whether exactness ``bit`` was asked for."""
    floor: int
    """The policy's ``min_tokens``."""
    took_ns: int
    tokens: bytes | None
    """The prompt, as long as it is kept."""
    settled: bool
    """Whether nothing can be found that needs the prompt."""
    parented: bool = False
    """Whether a ``parent_key`` was given."""


class Beyond(NamedTuple):
    """Where more of a prompt than was found is, or was."""

    others: list[tuple[int, dict[str, tuple[str, str]]]]
    """Tokens, and the fields of the key that differ: its value here, and there."""
    evicted: tuple[bytes, int] | None
    """Key and length of a row that is gone."""


class Past(msgspec.Struct, frozen=True):
    """One request's dealings with the cache."""

    serial: int
    mode: str
    prompt_len: int
    cached: bool
    """False for a request that was to be computed without the cache."""
    admitted: bool
    over: bool
    kind: str
    """As admitted; so is the length."""
    prefix_len: int
    exactness: str | None
    """As in its stats."""
    restore_ns: int | None
    lookup: Noted | None
    stats: dict[str, Any] | None

    def tells_of(self, outcome: Mapping[str, Any]) -> bool:
        """Whether a map is this request's result or stats."""
        stats = self.stats
        if stats is None:
            return False
        if self.mode == "prefill_only" and "context_tokens" in outcome:
            names = ("committed_tokens", "finish_key", "cache_hit_kind")
            return all(outcome.get(name) == stats[name] for name in names) and (
                stats["finish_key"] is not None or self._begins(outcome["context_tokens"])
            )
        return bool(outcome.get("stats", outcome) == stats)

    def _begins(self, tokens: Any) -> bool:
        """Whether the prompt that was kept is these tokens."""
        mine = self.lookup.tokens if self.lookup else None
        return mine is None or mine == array("I", tokens).tobytes()


class History:
    """The latest requests of a model that are over.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Past] = OrderedDict()
        self._nbytes = 0

    def keep(self, past: Past) -> None:
        """Take one more, or the same as it is now, and let go what is too old."""
        with self._lock:
            before = self._kept.pop(past.serial, None)
            self._nbytes += _prompt_bytes(past) - (_prompt_bytes(before) if before else 0)
            self._kept[past.serial] = past
            while len(self._kept) > KEPT:
                self._nbytes -= _prompt_bytes(self._kept.popitem(last=False)[1])
            for old in self._kept.values():
                if self._nbytes <= KEPT_BYTES:
                    break
                self._nbytes -= _prompt_bytes(old)
                if old.lookup:
                    old.lookup.tokens = None

    def find(self, what: Ref | Mapping[str, Any] | None, running: Iterable[Request]) -> Past | None:
        """Return a request by its ref or its outcome, or the latest admitted.

        :param running: the requests that are not over, or not closed yet.
        """
        live = [past_of(request) for request in running]
        with self._lock:
            known = {one.serial: one for one in itertools.chain(self._kept.values(), live)}
        if isinstance(what, Ref):
            return known.get(what.serial)
        newest = [known[serial] for serial in sorted(known, reverse=True)]
        if what is None:
            return next((one for one in newest if one.admitted), None)
        matching = [one for one in newest if one.tells_of(what)]
        stats = what.get("stats", what)
        return next((one for one in matching if one.stats is stats), next(iter(matching), None))


def past_of(request: Request) -> Past:
    """Return what a request has come to by now."""
    return Past(
        serial=request.id,
        mode=request.mode,
        prompt_len=request.prompt_len,
        cached=request.options.cached,
        admitted=request.admitted,
        over=request.over,
        kind=request.kind,
        prefix_len=request.prefix_len,
        exactness=(request.stats or {}).get("exactness", request.exactness),
        restore_ns=request.restore_ns,
        lookup=request.lookup,
        stats=request.stats,
    )


def around(tokens: bytes, seen: Seen) -> bytes:
    """Return the first token that differs, and a few before it; nothing where none does."""
    at = len(tokens) if seen.apart is None else seen.apart.shared * TOKEN_BYTES
    if at >= len(tokens):
        return b""
    return tokens[max(0, at - BEFORE * TOKEN_BYTES) : at + TOKEN_BYTES]


def _prompt_bytes(past: Past) -> int:
    return len(past.lookup.tokens) if past.lookup and past.lookup.tokens else 0
