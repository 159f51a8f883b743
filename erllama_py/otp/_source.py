"""What these modules need of the engine's cache, and the adapter that gives it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from erllama_py._cache import kvc
from erllama_py._cache.counters import Counters
from erllama_py._cache.filetier import FileTier
from erllama_py._cache.ram import Extent
from erllama_py._cache.row import Row
from erllama_py._cache.store import Cache, tier_of
from erllama_py._engine.tiers import start_tier
from erllama_py.errors import ErllamaError, system_reason
from erllama_py.types import Atom

__all__ = ("CacheSource", "CachedRow", "Source")


class CachedRow(NamedTuple):
    """A row of the engine's cache."""

    key: bytes
    tier: str
    size: int
    """As exported on its own."""
    used: int
    refcount: int
    header: bytes
    """48 bytes, as a file of it would begin."""
    location: tuple[Any, ...]
    tokens: bytes
    hits: int

    def term(self) -> tuple[Any, ...]:
        """Return the original's row of ten."""
        return (
            *(self.key, Atom(self.tier), self.size, self.used, self.refcount),
            *(Atom("available"), self.header, self.location, self.tokens, self.hits),
        )


class Source(Protocol):
    """The engine's cache.  Thread-safe."""

    @property
    def counters(self) -> Counters:
        """The 20 counters."""

    def clock(self) -> int:
        """Return monotonic nanoseconds."""

    def rows(self) -> list[CachedRow]:
        """Return all available rows."""

    def row(self, key: bytes) -> CachedRow | None:
        """Return an available row."""

    def has(self, key: bytes) -> bool:
        """Whether :meth:`row` would return one.  Cheap: a search asks often."""

    def writing(self, key: bytes) -> str | None:
        """Return the tier of a row that a running request is saving."""

    def pin(self, key: bytes) -> bool:
        """Protect a row and count a hit; False if it is not there."""

    def unpin(self, key: bytes) -> None:
        """Undo one :meth:`pin`."""

    def evict(self, target: int | None, kinds: Collection[str]) -> tuple[int, int]:
        """Evict until so many bytes are free, or all that may go; return (rows, bytes)."""

    def start_tier(self, kind: str, name: str, path: Path, share: int) -> Callable[[], int]:
        """Let models be saved to a directory under this name.

        :param share: one part in so many of its quota is for rows put in by hand.
        :return: tells how many bytes those may take.
        :raises ErllamaError: it cannot be used.
        """

    def tier(self, name: object) -> tuple[str, Path] | None:
        """Return kind and directory of a tier that the engine uses."""

    def memory_quota(self) -> int:
        """Return the byte quota of the RAM tier."""

    def reserve(self, nbytes: int) -> Extent | None:
        """Grant memory of the RAM tier, within its quota."""

    def view(self, extent: Extent) -> memoryview:
        """Return granted memory."""

    def release(self, extent: Extent) -> None:
        """Give granted memory back."""


class CacheSource:
    """:class:`Source` over a :class:`~erllama_py._cache.store.Cache`."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._shared = cache._shared
        self.reserve = cache.reserve
        self.view = cache.view
        self.release = cache.release

    @property
    def counters(self) -> Counters:
        """The 20 counters."""
        return self.cache.counters

    def clock(self) -> int:
        """Return monotonic nanoseconds."""
        return self._shared.clock()

    def memory_quota(self) -> int:
        """Return the byte quota of the RAM tier."""
        return self._shared.ram.quota

    def rows(self) -> list[CachedRow]:
        """Return all available rows."""
        with self._shared.lock:
            rows = list(self._shared.index.rows)
        found = []
        for row in rows:
            with self._shared.lock:  # once for each: their tokens add up to megabytes
                if row.space.rows.get(row.key) is row:
                    found.append(self._facts(row))
        return found

    def row(self, key: bytes) -> CachedRow | None:
        """Return an available row."""
        with self._shared.lock:
            for namespace in self.cache._namespaces.values():
                found = namespace.space.rows.get(key)
                if found is not None:
                    return self._facts(found)
        return None

    def has(self, key: bytes) -> bool:
        """Whether there is such a row."""
        return any(key in one.space.rows for one in list(self.cache._namespaces.values()))

    def writing(self, key: bytes) -> str | None:
        """Return the tier of a row that a running request is saving."""
        spaces = list(self.cache._namespaces.values())
        return "ram" if any(one.status(key) == "writing" for one in spaces) else None

    def pin(self, key: bytes) -> bool:
        """Protect a row and count a hit."""
        with self._shared.lock:
            for namespace in self.cache._namespaces.values():
                row = namespace.space.rows.get(key)
                if row is not None:
                    row.hits += 1
                    self._shared.index.touch_row(row, self._shared.clock())
                    self._shared.index.pin_row(row)
                    return True
        return False

    def unpin(self, key: bytes) -> None:
        """Undo one :meth:`pin`."""
        for namespace in list(self.cache._namespaces.values()):
            namespace.unpin(key)

    def evict(self, target: int | None, kinds: Collection[str]) -> tuple[int, int]:
        """Evict rows and blocks."""
        return self.cache.clear() if target is None else self.cache.evict_bytes(target, kinds)

    def start_tier(self, kind: str, name: str, path: Path, share: int) -> Callable[[], int]:
        """Let models be saved to a directory under this name."""
        try:
            tier = start_tier(self.cache, kind, name, path)
        except OSError as error:
            raise ErllamaError(
                (Atom("cannot_create_dir"), os.fsencode(path), system_reason(error)),
                f"cannot use {path}: {error.strerror}",
                "name a directory you may write to",
            ) from error
        theirs = tier.quota // share
        # From now on the engine leaves them their share; what it has of it already it
        # keeps, and they get the less.
        tier.directory.quota = tier.quota - theirs
        return lambda: min(theirs, tier.quota - tier.directory.capacity)

    def tier(self, name: object) -> tuple[str, Path] | None:
        """Return kind and directory of a tier that the engine uses."""
        found = self.cache.tier(name) if isinstance(name, str) else None
        return None if found is None else (found.kind, found.path)

    def _facts(self, row: Row) -> CachedRow:
        identity = next(
            one for one, space in self.cache._namespaces.items() if space.space is row.space
        )
        tokens = _tokens_of(row)
        tier = tier_of(row)
        meta = kvc.Meta(
            save_reason=row.reason if row.reason in kvc.REASONS else "unknown",
            quant_bits=0,
            fingerprint=identity.fingerprint,
            fingerprint_mode=identity.fingerprint_mode,
            quant_type=identity.quant_type,
            ctx_params_hash=identity.ctx_params_hash,
            tokens=tokens,
            context_size=0,
            hit_count=row.hits,
        )
        return CachedRow(
            key=row.key,
            tier=tier.kind,
            size=row.nbytes,
            used=row.used,
            refcount=row.pins,
            header=kvc.header(meta, row.nbytes),
            location=(Atom(tier.kind), os.fsencode(tier.path))
            if isinstance(tier, FileTier)
            else (Atom(tier.kind),),
            tokens=tokens,
            hits=row.hits,
        )


def _tokens_of(row: Row) -> bytes:
    node = row.node
    parts = [node.tokens[: row.cut * 4]]
    while node.parent is not None:
        node = node.parent
        parts.append(node.tokens)
    return b"".join(reversed(parts))
