"""The cache of one core: every model's blocks and rows, in tiers with a quota each.

The core side only.  Model processes write payloads into shared segments and read them
there and in files; the cache decides where, keeps what is worth keeping, and finds it
again.  What is stored is in memory first, and in the file tier of its namespace soon
after (:mod:`erllama_py._cache.mover`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from operator import attrgetter
from pathlib import Path
from typing import Any

from erllama_py._cache.checksum import crc
from erllama_py._cache.counters import Counters
from erllama_py._cache.divergence import differing_fields, known
from erllama_py._cache.filetier import FileTier
from erllama_py._cache.identity import Identity
from erllama_py._cache.lease import Piece
from erllama_py._cache.loading import load
from erllama_py._cache.mover import Mover
from erllama_py._cache.namespace import Namespace
from erllama_py._cache.ram import SEGMENT_BYTES, Extent
from erllama_py._cache.row import Row
from erllama_py._cache.shared import Shared
from erllama_py._cache.tier import KINDS, RAM, Tier
from erllama_py._cache.trie import TOKEN_BYTES

__all__ = ("Cache",)

_log = logging.getLogger(__name__)


class Cache:
    """Thread-safe.  Payloads are opaque bytes that others write.

    :param quota: bytes of memory the tier may take; None for a share of this machine's,
        0 to store nothing.
    :param block: tokens of a block.
    :param save: write what is stored to the file tier soon after.
    :param demote: write it there when memory is needed; without either, nothing is saved.
    :param promote: read into memory what was restored from a file.
    :param segment_bytes: size of a shared segment.
    :param clock: monotonic nanoseconds.
    """

    def __init__(
        self,
        quota: int,
        block: int = 64,
        *,
        save: bool = True,
        demote: bool = True,
        promote: bool = True,
        segment_bytes: int = SEGMENT_BYTES,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._shared = Shared(quota, block, segment_bytes, clock)
        self._moves = {"save": save, "demote": demote, "promote": promote}
        self._namespaces: dict[Identity, Namespace] = {}
        self._loading = threading.Lock()
        """Held while files are read in; taken before the shared lock."""
        self.home: FileTier | None = None
        """Where namespaces without a tier of their own are saved."""

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return self._shared.index.block

    @property
    def counters(self) -> Counters:
        """The 20 counters.

        ``bytes_ram`` is the sum of all granted extents: payloads, logits, and extents
        reserved but not filled yet, each rounded up to 64 bytes.
        """
        return self._shared.counters

    def namespace(self, identity: Identity, home: FileTier | None = None) -> Namespace:
        """Return the namespace of an engine identity; the same one each time.

        The first time, what file tiers hold for it is read in: some 20 us an entry.

        :param home: where it is saved; None for the cache's own :attr:`home`.
        """
        with self._loading:
            known = self._namespaces.get(identity)
            if known is None:
                known = self._namespaces[identity] = Namespace(identity, self._shared)
                if self._shared.mover is not None:
                    self._shared.mover.adopt(known)
                for tier in self._shared.files:
                    _read_in(known, tier)
            known.home = home or self.home
            return known

    # -- tiers ------------------------------------------------------------------------

    def add_tier(self, kind: str, name: str, path: Path, quota: int, **sizes: int) -> FileTier:
        """Use a directory as a tier, and read in what it holds for namespaces there are.

        :param kind: ``ram_file`` or ``disk``.
        :param sizes: ``file_bytes``, ``table_rows``: of the containers in it.
        :raises OSError: the directory cannot be made.
        """
        shared = self._shared
        sizes.setdefault("block", self.block)
        tier = FileTier(kind, name, path, quota, shared.numbers, **sizes)
        with self._loading:
            if shared.mover is None:
                shared.mover = Mover(shared, self.refresh, **self._moves)
            with shared.lock:
                shared.files = sorted([*shared.files, tier], key=lambda one: one.rank)
            for namespace in self._namespaces.values():
                shared.mover.adopt(namespace)
                _read_in(namespace, tier)
        shared.measure_files()
        return tier

    def tier(self, name: str) -> FileTier | None:
        """Return the file tier of a name."""
        return next((tier for tier in self._shared.files if tier.name == name), None)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until all that is stored is in its file tier; False if time ran out."""
        mover = self._shared.mover
        return mover is None or mover.flush(timeout_s)

    def refresh(self, namespace: Namespace) -> None:
        """Read in what other processes added to the file tiers since."""
        with self._loading:
            for tier in self._shared.files:
                _read_in(namespace, tier)

    # -- bytes ------------------------------------------------------------------------

    def reserve(self, nbytes: int) -> Extent | None:
        """Grant at least ``nbytes`` to be written, evicting if need be.

        None where everything is in use or pinned, the quota is too small, or the system
        refuses memory.  The extent is the caller's until it is given to a lease, or back
        with :meth:`release`.  May take some 20 ms when a new segment is made.
        """
        return self._shared.reserve(nbytes)

    def release(self, extent: Extent) -> None:
        """Give back an extent that was not used.

        :raises ValueError: it is not granted.
        """
        with self._shared.lock:
            if not self._shared.closed:
                self._shared.ram.free(extent)
            self._shared.settle()

    def segment(self, number: int) -> tuple[int, int, bool]:
        """Return (descriptor, size, whether it is a file) of what extents name.

        Shared segments are added, never removed or resized, so what a model process has
        mapped stays valid.  A file's descriptor is the caller's to close after use.

        :raises KeyError: there is none of that number (any more).
        """
        with self._shared.lock:
            known = self._shared.ram.segments.get(number)
        if known is not None:
            return (*known, False)
        for tier in self._shared.files:
            with contextlib.suppress(KeyError, OSError):
                return (*tier.directory.descriptor(number), True)
        raise KeyError(number)

    def number(self) -> int:
        """Return a number for a segment of the caller's own, which no other has."""
        return self._shared.numbers()

    def holds(self, key: bytes) -> bool:
        """Whether any namespace has a row of this key."""
        return any(one.has(key) for one in list(self._namespaces.values()))

    def read(self, piece: Piece) -> bytes | None:
        """Return the bytes of a piece whose lease is open; None where they are damaged."""
        extent = piece.extent
        try:
            fd, _, is_file = self.segment(extent.segment)
        except KeyError:
            return None
        if is_file:
            try:
                data = os.pread(fd, piece.nbytes, extent.offset)
            except OSError:
                return None
            finally:
                os.close(fd)
        else:
            data = bytes(self.view(extent)[: piece.nbytes])
        return data if len(data) == piece.nbytes and crc(data) == piece.crc else None

    def view(self, extent: Extent) -> memoryview:
        """Return a granted extent's bytes in this process."""
        with self._shared.lock:
            return self._shared.ram.view(extent)

    # -- clearing ---------------------------------------------------------------------

    def gc(self) -> int:
        """Evict all that is not in use or pinned, from every tier; return the rows evicted.

        Heads are no exception: who clears a cache wants it empty.  Memory and file space that
        fall free go back to the system.
        """
        return self.clear()[0]

    def clear(self) -> tuple[int, int]:
        """Like :meth:`gc`; return (rows, bytes)."""
        with self._shared.lock:
            self._shared.index.heads.let_go()
        rows, nbytes = self._shared.evict(None, self._shared.tiers)
        for tier in self._shared.files:
            for _, number, _ in tier.directory.idle():
                nbytes += tier.directory.remove(number)
        self._shared.release_idle()
        self.flush()
        for tier in self._shared.files:
            tier.directory.sync()
            tier.directory.drop_empty()
        self._shared.measure_files()
        return rows, nbytes

    def evict_bytes(self, target: int, kinds: Collection[str] = KINDS) -> tuple[int, int]:
        """Evict, what is worth least first, until ``target`` bytes are freed.

        The fastest tier first; what is in another tier too only leaves this one.  Ends
        early where nothing is left to evict.  Heads go last: memory that is asked for is
        needed more than they are.  Segments that fall free go back to the system.
        Returns (rows, bytes freed).

        :param kinds: of the tiers to evict from: ``ram``, ``ram_file``, ``disk``.
        """
        tiers = [tier for tier in self._shared.tiers if tier.kind in kinds]
        rows, nbytes = self._shared.evict(max(0, target), tiers)
        if nbytes < target and self._let_heads_go(tiers):
            more = self._shared.evict(target - nbytes, tiers)
            rows, nbytes = rows + more[0], nbytes + more[1]
        self._shared.release_idle()
        return rows, nbytes

    def _let_heads_go(self, tiers: Collection[Tier]) -> bool:
        with self._shared.lock:
            return self._shared.index.heads.let_go(tiers)

    def disown_heads(self, owner: object) -> None:
        """Let go of the heads that ``owner`` alone asked for.

        They are evicted when their turn comes, like everything else.
        """
        with self._shared.lock:
            self._shared.index.heads.disown(owner)
            self._shared.settle()

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is not saved, as far as the time goes, and give all memory up.

        Leases may still be closed.
        """
        if self._shared.mover is not None:
            self._shared.mover.close(timeout_s)
        self._shared.close()
        for tier in self._shared.files:
            tier.directory.close()

    def abandon(self) -> None:
        """Close a forked child's copies of the files; the locks on them are the parent's."""
        for tier in self._shared.files:
            tier.directory.abandon()

    # -- why ---------------------------------------------------------------------------

    def alone(self, namespace: Namespace) -> bool:
        """Whether there is nothing but a namespace, and nothing of it was evicted."""
        return len(self._namespaces) == 1 and not namespace.space.ghosts

    def elsewhere(
        self, namespace: Namespace, tokens: bytes, longer_than: int, mark: int
    ) -> list[tuple[int, dict[str, tuple[str, str]]]]:
        """Return where more of a prompt is cached under another key, the most first.

        Each is the number of tokens, and the fields of the key that differ: to the pair
        of values, the namespace's own first.

        :param mark: the lookup's serial number: what was stored later is not meant.
        """
        others = [one for one in list(self._namespaces.values()) if one is not namespace]
        found = []
        for other in others:
            with self._shared.lock:
                shared = known(other.space, tokens, mark)
            if shared > longer_than:
                found.append((shared, differing_fields(namespace.identity, other.identity)))
        return sorted(found, key=lambda one: -one[0])

    # -- views ------------------------------------------------------------------------

    def snapshot(self, limit: int = 100, offset: int = 0) -> dict[str, Any]:
        """Return what views show: ``rows``, ``tiers``, ``blocks``, ``saving``, ``namespaces``.

        Rows come last used first.  ``saving`` has what waits to be written to files
        (``queued``) and what was not written for want of room (``dropped``).  Namespaces,
        the models that rows are of, have ``model``, ``quant_type``, ``fingerprint_mode``
        and the number of ``rows``; and ``heads`` what is kept for the next conversation:
        ``model``, ``tokens``, and how many of these are ``pinned``.

        ====================  ===========================================================
        row key               value
        ====================  ===========================================================
        ``key``               hex
        ``model``             effective fingerprint, hex
        ``tokens``            length
        ``tier``              the slowest a restore needs
        ``bytes``             of the row on its own, blocks shared with others included
        ``logits``            whether an exact hit needs no decode
        ``hits``              exact and resumed
        ``age_s``             since last use
        ``reason``            of the save
        ``pinned``            by callers, not by requests
        ====================  ===========================================================

        :param limit: most rows; ``row_count`` tells how many there are.
        """
        # Looked up before the lock is held: a directory may be slow.
        files = [
            {
                "name": tier.kind,
                "server": tier.name,
                "path": str(tier.path),
                "quota": tier.quota,
                "bytes": tier.directory.used,
                "backed": tier.directory.capacity,
            }
            for tier in self._shared.files
        ]
        shared = self._shared
        with shared.lock:
            now, index, ram = shared.clock(), shared.index, shared.ram
            # What was read from files was used at other times than it was put into the index.
            latest = sorted(index.rows, key=attrgetter("used"))[::-1]
            page = latest[offset : offset + limit]
            rows = [
                {
                    "key": row.key.hex(),
                    "model": row.space.name,
                    "tokens": row.length,
                    "tier": tier_of(row).kind,
                    "bytes": row.nbytes,
                    "logits": row.logits is not None,
                    "hits": row.hits,
                    "age_s": (now - row.used) / 1e9,
                    "reason": row.reason,
                    "pinned": row.pins > 0,
                }
                for row in page
            ]
            grades = Counter(index.grades)
            memory = {
                "name": "ram",
                "quota": ram.quota,
                "bytes": ram.used,
                "backed": ram.backed,
                "segments": len(ram.segments),
            }
            namespaces = [
                {
                    "model": space.space.name,
                    "quant_type": identity.quant_type,
                    "fingerprint_mode": identity.fingerprint_mode,
                    "rows": len(space.space.rows),
                }
                for identity, space in list(self._namespaces.items())
            ]
            return {
                "rows": rows,
                "row_count": len(index.rows),
                "tiers": [memory, *files],
                "namespaces": namespaces,
                "blocks": {"nodes": index.nodes, "payloads": len(index.payloads), **grades},
                "saving": {
                    "queued": shared.mover.queued if shared.mover else 0,
                    "dropped": shared.mover.dropped if shared.mover else 0,
                },
                "heads": [
                    {
                        "model": head.space.name,
                        "tokens": len(head.tokens) // TOKEN_BYTES,
                        "pinned": head.tip.end,
                    }
                    for head in index.heads
                ],
            }


def tier_of(row: Row) -> Tier:
    """Return the slowest tier that restoring a row takes."""
    slowest = RAM
    node = row.node
    while node.parent is not None:
        held = [payload.tier for payload in node.variants.values()]
        best = min(held, key=lambda tier: tier.rank, default=RAM)
        slowest = max(slowest, best, key=lambda tier: tier.rank)
        node = node.parent
    return slowest


def _read_in(namespace: Namespace, tier: FileTier) -> None:
    try:
        load(namespace, tier)
    except OSError as error:
        _log.warning("%s: what is cached there cannot be read: %s", tier.path, error)
