"""The cache of one core: every model's blocks and rows, under one quota.

The core side only.  Model processes write and read payloads in the shared segments; the
cache decides where, keeps what is worth keeping, and finds it again.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from erllama_py._cache.counters import Counters
from erllama_py._cache.namespace import Identity, Namespace
from erllama_py._cache.quota import default_quota
from erllama_py._cache.ram import SEGMENT_BYTES, Extent
from erllama_py._cache.shared import Shared

__all__ = ("Cache",)


class Cache:
    """Thread-safe.  Payloads are opaque bytes that others write.

    :param quota: bytes of memory the tier may take; None for a share of this machine's,
        0 to store nothing.
    :param block: tokens of a block.
    :param segment_bytes: size of a shared segment.
    :param clock: monotonic nanoseconds.
    """

    def __init__(
        self,
        quota: int | None = None,
        block: int = 64,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        quota = default_quota() if quota is None else quota
        self._shared = Shared(quota, block, segment_bytes, clock)
        self._namespaces: dict[Identity, Namespace] = {}

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

    def namespace(self, identity: Identity) -> Namespace:
        """Return the namespace of an engine identity; the same one each time."""
        with self._shared.lock:
            known = self._namespaces.get(identity)
            if known is None:
                known = self._namespaces[identity] = Namespace(identity, self._shared)
            return known

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

    @property
    def segments(self) -> dict[int, tuple[int, int]]:
        """(descriptor, size) of each shared segment by number.

        Segments are added, never removed or resized, so what a model process has mapped
        stays valid.
        """
        with self._shared.lock:
            return self._shared.ram.segments

    def view(self, extent: Extent) -> memoryview:
        """Return a granted extent's bytes in this process."""
        with self._shared.lock:
            return self._shared.ram.view(extent)

    # -- clearing ---------------------------------------------------------------------

    def gc(self) -> int:
        """Evict all that is not in use or pinned; return the rows evicted.

        Memory that falls free goes back to the system.
        """
        return self.clear()[0]

    def clear(self) -> tuple[int, int]:
        """Like :meth:`gc`; return (rows, bytes)."""
        gone = self._shared.evict(None)
        self._shared.release_idle()
        return gone

    def evict_bytes(self, target: int) -> tuple[int, int]:
        """Evict, the longest unused first, until ``target`` bytes are freed.

        Ends early where nothing is left to evict.  Segments that fall free go back to
        the system.  Returns (rows, bytes freed).
        """
        gone = self._shared.evict(max(0, target))
        self._shared.release_idle()
        return gone

    def close(self) -> None:
        """Give all memory up.  Leases may still be closed."""
        self._shared.close()

    # -- views ------------------------------------------------------------------------

    def snapshot(self, limit: int = 100, offset: int = 0) -> dict[str, Any]:
        """Return what views show: ``rows`` (last used first), ``tiers`` and ``blocks``.

        ====================  ===========================================================
        row key               value
        ====================  ===========================================================
        ``key``               hex
        ``model``             effective fingerprint, hex
        ``tokens``            length
        ``bytes``             of the row on its own, blocks shared with others included
        ``logits``            whether an exact hit needs no decode
        ``hits``              exact and resumed
        ``age_s``             since last use
        ``reason``            of the save
        ``pinned``            by callers, not by requests
        ====================  ===========================================================

        :param limit: most rows; ``row_count`` tells how many there are.
        """
        shared = self._shared
        with shared.lock:
            now, index, ram = shared.clock(), shared.index, shared.ram
            page = itertools.islice(reversed(index.rows), offset, offset + limit)
            rows = [
                {
                    "key": row.key.hex(),
                    "model": row.space.name,
                    "tokens": row.length,
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
            tier = {
                "name": "ram",
                "quota": ram.quota,
                "bytes": ram.used,
                "backed": ram.backed,
                "segments": len(ram.segments),
            }
            return {
                "rows": rows,
                "row_count": len(index.rows),
                "tiers": [tier],
                "blocks": {"nodes": index.nodes, "payloads": len(index.payloads), **grades},
            }
