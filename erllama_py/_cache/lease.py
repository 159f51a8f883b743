"""One request's hold on the cache: what it may restore, and what it adds.

Life of a lease: ``lookup`` makes it with the pieces to restore pinned; ``restored`` lets
them go; ``add_block`` and ``add_row`` add what the request computes; ``close`` ends it.
From first to last it protects the request's *tip*, the deepest whole block of its own
tokens in the trie, from eviction, and with it all blocks before.

A request's chain may *break*: a block was not stored for want of room, or a block under
it failed its checksum.  Then nothing more of this request is stored, since what is
stored must be reachable from position 0; the request itself goes on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from erllama_py._cache.grade import Grade, Want
from erllama_py._cache.origin import UNKNOWN, Origin, is_one_stream
from erllama_py._cache.ram import Extent
from erllama_py._cache.row import Logits
from erllama_py._cache.tier import RAM
from erllama_py._cache.trie import TOKEN_BYTES, Blob, Node, Payload, walk
from erllama_py._cache.waiters import wake

if TYPE_CHECKING:
    from types import TracebackType

    from erllama_py._cache.divergence import Seen
    from erllama_py._cache.namespace import Namespace
    from erllama_py._cache.row import Row
    from erllama_py._cache.waiters import Waiter

__all__ = (
    "COUNTER_OF",
    "REASONS",
    "Found",
    "Lease",
    "NewLogits",
    "Piece",
    "StoredLogits",
    "Tail",
    "where",
)

REASONS: Final = ("cold", "continued", "finish", "evict", "shutdown")
"""Why rows are saved; each has its counter ``saves_<reason>``."""

COUNTER_OF: Final = {
    "exact": "hits_exact",
    "resume": "hits_resume",
    "longest_prefix": "hits_longest_prefix",
    "cold": "misses",
}
"""The counter a lookup moves, by how it found what it found."""


class Piece(NamedTuple):
    """One stored payload to restore: the KV of positions [start, end)."""

    node_id: int
    """Names this very payload, for ``quarantine``."""
    extent: Extent
    nbytes: int
    crc: int
    start: int
    end: int
    origin: Origin = UNKNOWN


class StoredLogits(NamedTuple):
    """The logits of a row's last position."""

    extent: Extent
    crc: int
    nbytes: int


class Tail(NamedTuple):
    """The part of a new row after its last whole block, as captured."""

    start: int
    extent: Extent
    nbytes: int
    crc: int
    grade: Grade
    origin: Origin = UNKNOWN


class NewLogits(NamedTuple):
    """The logits of a new row's last position, as captured."""

    extent: Extent
    crc: int
    canonical: bool
    """Made by a canonical prefill of exactly the row's tokens, in this lease's chunk."""
    origin: int = 0
    """Of the row's last token, see :mod:`erllama_py._cache.origin`."""


class Found(NamedTuple):
    """What a lookup decided; see the attributes of :class:`Lease`."""

    via: str
    prefix_len: int
    keep: int
    payloads: Sequence[Payload]
    logits: Logits | None
    label: str | None
    """``bit`` or ``token``, what the reader may count on; None cold."""
    tip: Node
    row: Row | None
    gated: int = 0
    reached: Node | None = None
    """Where the search ended: its deepest whole block.  None for an exact hit."""

    @property
    def kind(self) -> str:
        """``exact``, ``partial`` or ``cold``."""
        return self.via if self.via in ("exact", "cold") else "partial"

    @property
    def needed(self) -> list[Payload]:
        """The payloads to restore."""
        return [payload for payload in self.payloads if payload.node.start < self.keep]

    @property
    def exactness(self) -> str | None:
        """The label, or ``stream`` where what is restored is one stream's, its logits too."""
        needed = self.needed
        if self.label != "token" or not is_one_stream(needed):
            return self.label
        logits = self.logits
        return "stream" if logits is None or logits.origin.own == needed[-1].origin.own else "token"

    def tiers(self) -> Counter[str]:
        """Count the tokens to restore by the kind of tier they come from."""
        counts = Counter[str]()
        for payload in self.needed:
            end = min(payload.node.end, self.keep)
            counts[payload.tier.kind] += end - payload.node.start
        return counts


class Lease:
    """Made by ``Namespace.lookup``; to be closed, or used as a context manager.

    Methods may be called from any thread, one at a time.
    """

    kind: str
    """``exact``, ``partial`` or ``cold``."""
    via: str
    """``exact``, ``resume``, ``longest_prefix`` or ``cold``: the counter that moved."""
    prefix_len: int
    """Tokens of the prompt that were found, as reported to callers."""
    keep: int
    """Tokens that stay in the KV after restoring ``pieces``; the rest is computed."""
    pieces: list[Piece]
    """To be restored in this order.  They cover [0, keep) and may reach beyond it."""
    logits: StoredLogits | None
    """Of position ``keep - 1``; only for an exact hit.  The KV ends there too."""
    label: str | None
    """``bit`` where the hit is identical to a cold run's state; ``stream`` where it is to
    what one stream had in its cells; else ``token``; None cold."""
    gated: int
    """Tokens that are there but quicker to compute than to restore."""
    tiers: Counter[str]
    """Tokens to be restored by the kind of tier they come from."""
    captured: int
    """Tokens in whole blocks that are there already: capture starts at this position."""
    seen: Seen
    """What was found, and what not, for who asks why; restarting does not change it."""

    def __init__(
        self, namespace: Namespace, tokens: bytes, want: Want, found: Found, *, counted: bool
    ) -> None:
        """Pin what was found.  The cache's lock is held."""
        self._namespace = namespace
        self._shared = namespace.shared
        self._tokens = tokens
        self._want = want
        self._counted = counted
        self._expected: list[bytes] = []
        self._closed = False
        self.kind = found.kind
        self.via = found.via
        self.prefix_len = found.prefix_len
        self.keep = found.keep
        self.label = found.exactness
        self.gated = found.gated
        needed = found.needed
        self._restoring = needed
        self.pieces = [
            Piece(p.serial, where(p), p.nbytes, p.crc, p.node.start, p.node.end, p.origin)
            for p in needed
        ]
        self.tiers = found.tiers()
        logits = found.logits
        self.logits = StoredLogits(where(logits), logits.crc, logits.nbytes) if logits else None
        self._pinned: list[Blob] = [*needed, logits] if logits else [*needed]
        for blob in self._pinned:
            blob.pins += 1
        self._tip: Node | None = None
        self._shared.began()
        self._move_tip(found.tip)
        self.captured = found.tip.end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def broken(self) -> bool:
        """Whether nothing more of this request will be stored."""
        return self._tip is None or not self._tip.live

    # -- restoring --------------------------------------------------------------------

    def restored(self, *, logits_damaged: bool = False) -> None:
        """The pieces and the logits have been read: others may evict them now.

        :param logits_damaged: they failed their checksum: they are dropped, and counted.
        """
        with self._shared.lock:
            if logits_damaged:
                self._quarantine_logits()
            self._unpin()
            self._shared.settle()
            if self._shared.mover is not None:
                self._shared.mover.restored(self._restoring)
            self._restoring = []

    def _quarantine_logits(self) -> None:
        """Drop the row's logits, as :meth:`Namespace.quarantine` does payloads."""
        for logits in self._pinned:
            if isinstance(logits, Logits):
                ours = logits.tier.ours
                if self._shared.index.quarantine_logits(logits) and ours:
                    self._shared.counters.incr("corrupt_files")

    def restart(self) -> None:
        """The restore failed: the request goes on cold, from position 0.

        Call after ``quarantine``.  The hit counts as a miss instead.
        """
        with self._shared.lock:
            self._unpin()
            if self._counted:
                self._shared.counters.add(COUNTER_OF[self.via], -1)
                self._shared.counters.add(COUNTER_OF["cold"], 1)
            self.kind = self.via = "cold"
            self.prefix_len = self.keep = 0
            self.pieces = []
            self._restoring = []
            self.tiers.clear()
            self.logits = self.label = None
            tip = self._namespace.capture_tip(self._tokens, self._want)
            self._move_tip(None if self._closed else tip)
            self.captured = tip.end
            self._shared.settle()

    # -- adding -----------------------------------------------------------------------

    def add_block(
        self,
        start: int,
        tokens: bytes,
        grade: Grade,
        extent: Extent,
        nbytes: int,
        crc: int,
        origin: Origin = UNKNOWN,
    ) -> bool:
        """Store the block of positions [start, start + block); the extent is given away.

        Blocks come in order, the first at ``captured``.  Returns False where it was not
        stored: it is there already, and capture goes on behind it, or the chain is
        broken (see ``broken``).

        :param nbytes: bytes written at the start of ``extent``; the rest is freed.
        :raises ValueError: the arguments contradict each other; the extent is still the
            caller's.
        """
        shared = self._shared
        if len(tokens) != shared.index.block * TOKEN_BYTES:
            raise ValueError(f"{len(tokens)} bytes are not one block of tokens")
        _check_size(extent, nbytes)
        with shared.lock:
            tip = self._tip
            new = False
            if tip is None or tip.end < start:
                self._move_tip(None)
            elif tip.end == start:
                blob = Blob({RAM: extent}, nbytes, crc, origin)
                node, new = self._add(tip, tokens, grade, blob)
                self._move_tip(node)
            if not new:
                shared.give_back(extent)
            shared.settle()
        return new

    def add_row(
        self,
        tokens: bytes,
        reason: str,
        *,
        tail: Tail | None = None,
        logits: NewLogits | None = None,
        counted: bool = True,
    ) -> bytes | None:
        """Publish a row of exactly these tokens; the extents are given away.

        Its whole blocks must have been added; ``tail`` holds what is beyond them, and
        may be left out where it is stored already.  Returns the row's key, or None where
        there is no such row afterwards.  Moves ``saves_<reason>``, or ``saves_dropped``
        (together with ``duplicate_dropped`` where the row was there before; better
        logits and a better grade of tail are taken over all the same).

        :param counted: False for a row that was saved, and counted, before.
        :raises ValueError: the arguments contradict each other; the extents are still
            the caller's.
        """
        self._check_row(tokens, reason, tail, logits)
        key = self._namespace.key(tokens)
        with self._shared.lock:
            index, now = self._shared.index, self._shared.clock()
            before = key in self._namespace.space.rows
            if tail is not None and not (len(tokens) and self._add_tail(tokens, tail)):
                self._shared.give_back(tail.extent)
            row = index.add_row(self._namespace.space, key, tokens, self._want, reason, now)
            if logits is not None and not (row and self._add_logits(row, logits)):
                self._shared.give_back(logits.extent)
            if row is not None:
                index.keep_exact(row, tokens)
                if not before:
                    row.created = int(time.time())
                    self._shared.stored(self._namespace, row)
            if counted:
                self._count_save(reason, row, before=before)
            waiting = self._namespace.waiters.published(key) if row else []
            waiting += self._give_up(key)
            self._shared.settle()
        wake(waiting)
        return key if row else None

    def _count_save(self, reason: str, row: Row | None, *, before: bool) -> None:
        counters = self._shared.counters
        if row is not None and not before:
            counters.incr(f"saves_{reason}")
        else:
            counters.incr("saves_dropped")
            counters.add("duplicate_dropped", int(before))

    def _add_tail(self, tokens: bytes, tail: Tail) -> bool:
        whole = walk(
            self._namespace.space.root, tokens, self._want.loosely, self._shared.index.block
        )
        if whole.tip.end != tail.start:
            return False
        rest = tokens[tail.start * TOKEN_BYTES :]
        # What is cut off a whole chunk is no part of a canonical chain by itself.
        grade = self._want.stream if tail.grade.kind == "P" else tail.grade
        blob = Blob({RAM: tail.extent}, tail.nbytes, tail.crc, tail.origin)
        return self._add(whole.tip, rest, grade, blob)[1]

    def _add_logits(self, row: Row, new: NewLogits) -> bool:
        blob = Blob({RAM: new.extent}, new.extent.size, new.crc, Origin(new.origin))
        chunk = self._want.chunk
        taken = self._shared.index.set_logits(row, blob, chunk, canonical=new.canonical)
        if taken and row.logits is not None:
            self._shared.stored(self._namespace, row.logits)
        return taken

    def _add(
        self, parent: Node, tokens: bytes, grade: Grade, blob: Blob
    ) -> tuple[Node | None, bool]:
        shared = self._shared
        now = shared.clock()
        if self._closed or shared.closed:
            return None, False
        node, new = shared.index.add(parent, tokens, grade, blob, self._want, now)
        if node is not None and new:
            payload = node.variants[grade]
            payload.places[RAM] = shared.ram.trim(blob.extent, blob.nbytes)
            shared.stored(self._namespace, payload)
        return node, new

    # -- announcing -------------------------------------------------------------------

    def expect_row(self, key: bytes) -> None:
        """Announce a row: ``await_row`` waits for it until ``add_row`` or ``close``."""
        with self._shared.lock:
            if not self._closed:
                self._namespace.waiters.expect(key)
                self._expected.append(key)

    def abandon_row(self, key: bytes) -> None:
        """Take an announcement back.  One that was not made is ignored."""
        with self._shared.lock:
            waiting = self._give_up(key)
        wake(waiting)

    def _give_up(self, key: bytes) -> list[Waiter]:
        if key not in self._expected:
            return []
        self._expected.remove(key)
        return self._namespace.waiters.given_up(key)

    # -- ending -----------------------------------------------------------------------

    def close(self) -> None:
        """Let everything go.  Idempotent; later additions are refused and freed."""
        with self._shared.lock:
            if self._closed:
                return
            self._closed = True
            self._shared.ended()
            self._unpin()
            self._move_tip(None)
            waiting = [one for key in list(self._expected) for one in self._give_up(key)]
            self._shared.settle()
        wake(waiting)

    def _unpin(self) -> None:
        pinned, self._pinned = self._pinned, []
        for blob in pinned:
            self._shared.index.unpin(blob)

    def _move_tip(self, tip: Node | None) -> None:
        before, self._tip = self._tip, tip
        if tip is not None:
            tip.pins += 1
        if before is not None:
            self._shared.index.unpin_node(before)

    def _check_row(
        self, tokens: bytes, reason: str, tail: Tail | None, logits: NewLogits | None
    ) -> None:
        if reason not in REASONS:
            raise ValueError(f"{reason!r} is not one of {', '.join(REASONS)}")
        if tail is not None:
            _check_size(tail.extent, tail.nbytes)
            length = len(tokens) // TOKEN_BYTES
            start = length - length % self._shared.index.block
            if tail.start != start or start == length:
                raise ValueError(f"a row of {length} tokens has no tail at {tail.start}")
        if logits is not None:
            _check_size(logits.extent, logits.extent.size)


def where(blob: Payload | Logits) -> Extent:
    """Return where to read a blob: a segment of memory, or a file, by its number."""
    tier = blob.tier
    place = blob.places[tier]
    if tier is RAM:
        extent: Extent = place
        return extent
    # In a file, a sequence in one piece has its tokens before its KV.
    head = len(blob.node.tokens) if isinstance(blob, Payload) and blob.node.whole else 0
    return Extent(place.file, place.offset + head, blob.nbytes)


def _check_size(extent: Extent, nbytes: int) -> None:
    if not 0 < nbytes <= extent.size:
        raise ValueError(f"{nbytes} bytes are not in an extent of {extent.size}")
