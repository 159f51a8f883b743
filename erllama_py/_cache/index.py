"""The index: what is stored, superseded and evicted, across all namespaces.

How things are found in it: :mod:`erllama_py._cache.finding`.

Pure data: no locks, no clocks (times are passed in), no bytes.  Extents are opaque; the
ones that became free wait in :attr:`Index.freed` for the owner to collect.

Replacing.  A payload of grade P takes the place of S on its node, and of T that no row
needs.  T stays beside P while a row is exact at ``bit`` through it.  An S tail goes
when a longer sibling that begins with its tokens carries S of the same thread count or
P; rows that ended in the tail then end inside the sibling.

Eviction is by tier.  What is in another tier too only loses its place in this one; what
is nowhere else goes for good, and that takes leaves, so a payload's whole chain from
position 0 is there as long as the payload is.  Exempt are nodes with pins (the tip of a
running request or of a head, a pinned row) and nodes one of whose payloads is being read.

Invariants
  * a live node other than a root has a payload or a child with one, and its parent is
    live; a childless node has a payload;
  * a live row's node is live, and ``node.start < length <= node.end``;
  * a live blob has a place in some tier; ``node.under`` counts the children in a tier;
  * no live blob has a place in ``freed``; a place enters ``freed`` once, when it is
    given up or its blob is dropped, and nobody reads it.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

from erllama_py._cache.finding import exact, locate
from erllama_py._cache.grade import Grade, Want
from erllama_py._cache.heads import Heads
from erllama_py._cache.queue import EvictionQueue, used
from erllama_py._cache.row import Ghost, Logits, Row, Space
from erllama_py._cache.tier import RAM, Tier
from erllama_py._cache.trie import (
    TOKEN_BYTES,
    Blob,
    Node,
    Payload,
    covering,
    prefixes,
)

__all__ = ("Index",)

LOGITS_KEPT: Final = 4
"""Rows of one branch that keep their logits: the turns a user is likely to redo."""

GHOSTS_KEPT: Final = 4096
"""Evicted rows whose key and length are remembered, so that a ``parent_key`` still
finds what is left of its row, and a prompt that misses it can be told."""


class Index:
    """All spaces, with one eviction order over them."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.freed: list[tuple[Tier, Any]] = []
        """Places nothing refers to any more, for the owner to take."""
        self.rows_gone = 0
        """Rows evicted or broken since the owner last looked."""
        self.payloads: dict[int, Payload] = {}
        self.rows: OrderedDict[Row, None] = OrderedDict()
        """All rows, the longest unused first."""
        self.nodes = 0
        self.grades = {"P": 0, "T": 0, "S": 0}
        """Payloads by kind of grade."""
        self.serial = itertools.count(1).__next__
        """Numbers payloads, logits, ends of rows and lookups, in their order."""
        self._queues: dict[Tier, EvictionQueue] = {}
        self.heads = Heads(self.unpin_node)
        """What is kept for the next conversation."""

    def queue(self, tier: Tier) -> EvictionQueue:
        """Return a tier's order of eviction."""
        found = self._queues.get(tier)
        if found is None:
            found = self._queues[tier] = EvictionQueue(tier)
        return found

    def _offer(self, item: Node | Logits, tiers: Iterable[Tier]) -> None:
        for tier in tiers:
            self.queue(tier).offer(item)

    def _offer_everywhere(self, node: Node) -> None:
        """Offer a node in every tier: what it waited for may have ended."""
        self._offer(node, {t for payload in node.variants.values() for t in payload.places})

    # -- storing --------------------------------------------------------------------

    def add(
        self, parent: Node, tokens: bytes, grade: Grade, blob: Blob, want: Want, now: int
    ) -> tuple[Node | None, bool]:
        """Store a block or a tail under ``parent``; return (its node, whether it was new).

        The node is None where the chain is broken: the parent is gone, or is not of a
        grade that ``grade`` may follow.  Where the payload is not new, the node is the
        one that covers the tokens, and ``blob`` stays the caller's.

        :raises ValueError: tokens of such a length, at this place, cannot have this grade.
        """
        self._check(parent, tokens, grade)
        if not parent.live or not self._may_follow(parent, grade):
            return None, False
        node = parent.children.get(tokens)
        if node is not None and self._has(node, grade, want):
            self.touch(node, now)
            return node, False
        if grade.kind == "S" and len(tokens) < self._step:
            cover = covering(parent, tokens, want.loosely)
            if cover is not None:
                self.touch(cover.node, now)
                return cover.node, False
        return self._store(parent, tokens, grade, blob, now), True

    def add_whole(
        self, space: Space, tokens: bytes, grade: Grade, blob: Blob, now: int
    ) -> tuple[Node, bool]:
        """Store a sequence in one piece; return (its node, whether it was new)."""
        node = space.wholes.children.get(tokens)
        if node is not None and grade in node.variants:
            self.touch(node, now)
            return node, False
        return self._store(space.wholes, tokens, grade, blob, now), True

    def _store(self, parent: Node, tokens: bytes, grade: Grade, blob: Blob, now: int) -> Node:
        node = parent.children.get(tokens)
        if node is None:
            node = Node(parent, tokens)
            parent.hang(node)
            self.nodes += 1
            node.used = now
            node.score = now
        self.touch(node, now)
        payload = Payload(self.serial(), node, grade, blob)
        places, payload.places = payload.places, {}
        node.variants[grade] = payload
        self.payloads[payload.serial] = payload
        self.grades[grade.kind] += 1
        for tier, place in places.items():
            self.place(payload, tier, place)
        self._supersede(node, grade)
        self._absorb(node, grade)
        self.heads.stored(node)
        return node

    def adopt(
        self, parent: Node, tokens: bytes, grade: Grade, blob: Blob, used_at: int
    ) -> Node | None:
        """Take in a payload found in a file; None, and nothing is stored, if it fits nowhere.

        What is known already gets one more place.
        """
        if not parent.whole:
            try:
                self._check(parent, tokens, grade)
            except ValueError:
                return None
            if not parent.live or not self._may_follow(parent, grade):
                return None
        node = parent.children.get(tokens)
        known = node.variants.get(grade) if node is not None else None
        if known is not None:
            same = (known.nbytes, known.crc) == (blob.nbytes, blob.crc)
            ((tier, place),) = blob.places.items()
            if not same or tier in known.places:
                return None
            self.place(known, tier, place)
            return node
        if node is not None and self._superseded(node, grade):
            return None
        return self._store(parent, tokens, grade, blob, used_at)

    # -- places ---------------------------------------------------------------------

    def place(self, blob: Blob, tier: Tier, place: Any) -> None:
        """Note that a live blob is in a tier, too."""
        if isinstance(blob, Payload):
            node = blob.node
            if not node.within(tier) and node.parent is not None:
                node.parent.under[tier] = node.parent.under.get(tier, 0) + 1
            blob.places[tier] = place
            # Its other places may be given up now that it has one more.
            self._offer(node, blob.places)
        elif isinstance(blob, Logits):
            blob.places[tier] = place
            self._offer(blob, blob.places)

    def _displace(self, blob: Blob, tier: Tier) -> None:
        self.freed.append((tier, blob.places.pop(tier)))
        if isinstance(blob, Payload):
            self._left(blob.node, tier)
            self.heads.displaced(blob.node)

    def _left(self, node: Node, tier: Tier) -> None:
        """A payload of the node is not in the tier any more: perhaps the node is not."""
        if node.within(tier):
            return
        parent = node.parent
        assert parent is not None
        parent.under[tier] -= 1
        if not parent.under[tier]:
            del parent.under[tier]
        parent.score = max(parent.score, node.score)
        for row in node.rows:
            self._forget_record(row, tier)
        self.queue(tier).offer(parent)

    def _forget_record(self, row: Row, tier: Tier) -> None:
        record = row.records.pop(tier, None)
        if record is not None:
            self.freed.append((tier, record))

    def _check(self, parent: Node, tokens: bytes, grade: Grade) -> None:
        if not 0 < len(tokens) <= self._step or len(tokens) % TOKEN_BYTES:
            raise ValueError(f"{len(tokens)} bytes are not 1 to {self.block} tokens")
        end = parent.end + len(tokens) // TOKEN_BYTES
        kind, chunk, last = grade
        if kind != "S" and (chunk < 1 or chunk % self.block):
            raise ValueError(f"chunk {chunk} is not a multiple of {self.block} tokens")
        if kind == "P" and len(tokens) < self._step:
            raise ValueError("a tail cannot be part of a whole chunk")
        if kind == "T" and not last // chunk * chunk <= parent.end < end <= last:
            raise ValueError(f"[{parent.end}, {end}) is not in the last slice of {last} tokens")

    def _may_follow(self, parent: Node, grade: Grade) -> bool:
        """P follows P; T follows P at a multiple of its chunk, else T of the same end."""
        if grade.kind == "S" or parent.parent is None:
            return True
        before = Grade("P", grade.number)
        if grade.kind == "T" and parent.end % grade.number:
            before = grade
        return before in parent.variants

    def _has(self, node: Node, grade: Grade, want: Want) -> bool:
        if grade in node.variants:
            return True
        return grade.kind == "S" and node.usable(want.loosely) is not None

    def _supersede(self, node: Node, grade: Grade) -> None:
        if grade.kind != "P":
            return
        for other in list(node.variants.values()):
            if other.grade.kind == "S" or (other.grade.kind == "T" and not other.needed):
                self._detach(other)

    def _superseded(self, node: Node, grade: Grade) -> bool:
        return grade.kind == "S" and any(other.kind == "P" for other in node.variants)

    def _absorb(self, node: Node, grade: Grade) -> None:
        if grade.kind == "T" or node.whole:
            return
        for tail in list(prefixes(node)):
            for other in list(tail.variants.values()):
                if other.grade == grade or (grade.kind == "P" and other.grade.kind == "S"):
                    self._detach(other)
            if not tail.variants:
                self._remove(tail)

    # -- rows -----------------------------------------------------------------------

    @property
    def _step(self) -> int:
        return self.block * TOKEN_BYTES

    def add_row(
        self, space: Space, key: bytes, tokens: bytes, want: Want, reason: str, now: int
    ) -> Row | None:
        """Record a row, or return the one that is there; None where its chain is broken."""
        row = space.rows.get(key)
        node = locate(space, tokens, want)
        if row is None and node is not None and tokens:
            row = self.adopt_row(space, key, node, len(tokens) // TOKEN_BYTES, now)
            row.reason = reason
        if row is not None:
            self.touch_row(row, now)
        return row

    def adopt_row(self, space: Space, key: bytes, node: Node, length: int, used_at: int) -> Row:
        """Make a row that ends in ``node``, last used at the time given."""
        row = Row(space, key, node, length)
        row.used = row.score = used_at
        row.nbytes = _chain_bytes(node)
        space.rows[key] = row
        node.rows.add(row)
        self.rows[row] = None
        return row

    def set_logits(self, row: Row, blob: Blob, chunk: int, *, canonical: bool) -> bool:
        """Give a row its logits; False, and ``blob`` stays the caller's, if it has as good."""
        if row.logits is not None and (not canonical or row.canonical == chunk):
            return False
        self._drop_logits(row)
        row.logits = Logits(row, blob)
        row.nbytes += blob.nbytes
        row.serial = self.serial()
        row.canonical = chunk if canonical else 0
        if not row.node.whole:
            self._thin(row)
        self._offer(row.logits, row.logits.places)
        return True

    def keep_exact(self, row: Row, tokens: bytes) -> None:
        """Keep what makes a row exact at ``bit``, if it is, for as long as its logits."""
        if not row.canonical or row.wants:
            return
        match = exact(row.space, tokens, row.canonical)
        if match is not None:
            row.wants = [p for p in match.payloads if p.grade.kind == "T"]
            for payload in row.wants:
                payload.needed.add(row)

    def _thin(self, newest: Row) -> None:
        """Take the logits of all but the newest rows that are prefixes of ``newest``."""
        found = [row for row in newest.node.rows if row.cut <= newest.cut]
        node = newest.node
        while node.parent is not None:
            for tail in prefixes(node):
                within = node is not newest.node or tail.end <= newest.length
                found.extend(tail.rows if within else ())
            node = node.parent
            found.extend(node.rows)
        bearing = sorted((r for r in found if r.logits and not r.pins), key=lambda r: -r.serial)
        for row in bearing[LOGITS_KEPT:]:
            self._drop_logits(row)

    def touch(self, node: Node, now: int, uses: float = 0.0) -> None:
        """Note that a node was stored or used, and with it all before it.

        :param uses: 1 where it saved somebody a prefill; storing it does not.
        """
        used(node, now, uses)

    def touch_row(self, row: Row, now: int, uses: float = 0.0) -> None:
        """Note that a row was stored or used."""
        used(row, now, uses)
        self.touch(row.node, now, uses)
        self.rows.move_to_end(row)

    def pin_row(self, row: Row) -> None:
        """Protect a row, its whole chain and its logits.  Counted."""
        row.pins += 1
        row.node.pins += 1

    def unpin_row(self, row: Row) -> None:
        """Undo one :meth:`pin_row`."""
        row.pins -= 1
        self.unpin_node(row.node)
        if row.logits is not None:
            self._offer(row.logits, row.logits.places)

    # -- pins -----------------------------------------------------------------------

    def unpin_node(self, node: Node) -> None:
        """Take one pin off a node."""
        node.pins -= 1
        self._offer_everywhere(node)

    def unpin(self, blob: Blob) -> None:
        """Take one reader off a payload or a row's logits."""
        blob.pins -= 1
        if blob.pins:
            return
        if not blob.live:
            self._free(blob)
        elif isinstance(blob, Payload):
            self._offer_everywhere(blob.node)
        elif isinstance(blob, Logits):
            self._offer(blob, blob.places)

    # -- dropping -------------------------------------------------------------------

    def evict(self, tier: Tier = RAM) -> bool:
        """Take a node's payloads or a row's logits out of a tier; False if nothing may go."""
        item = self.queue(tier).pop()
        if item is None:
            return False
        self.give_up(item, tier)
        return True

    def give_up(self, item: Node | Logits, tier: Tier) -> None:
        """Take what a tier's queue named out of the tier, for good where it is nowhere else."""
        if isinstance(item, Logits):
            if len(item.places) == 1:
                self._drop_logits(item.row)
            else:
                self._displace(item, tier)
            return
        held = [payload for payload in item.variants.values() if tier in payload.places]
        if any(len(payload.places) > 1 for payload in held):
            for payload in held:
                if len(payload.places) > 1:
                    self._displace(payload, tier)
                else:
                    self._detach(payload)
        elif len(held) == len(item.variants):
            self._cut_off(item)
        else:
            for payload in held:
                self._detach(payload)

    def quarantine(self, serial: int) -> bool:
        """Drop one payload, and what hangs on it if it was its node's last."""
        payload = self.payloads.get(serial)
        if payload is None:
            return False
        self._detach(payload)
        if payload.node.live and not payload.node.variants:
            self._fell(payload.node)
        return True

    def quarantine_logits(self, logits: Logits) -> bool:
        """Drop a row's logits, if it still has these; the row stays."""
        if not logits.live:
            return False
        self._drop_logits(logits.row)
        return True

    def _fell(self, top: Node) -> None:
        stack, order = [top], []
        while stack:
            node = stack.pop()
            order.append(node)
            stack.extend(node.children.values())
        for node in reversed(order):
            self._cut_off(node)

    def _cut_off(self, leaf: Node) -> None:
        for payload in list(leaf.variants.values()):
            if payload.live:
                self._detach(payload)
        self._remove(leaf)

    def _detach(self, payload: Payload) -> None:
        """Take a payload off its node; its extent is free once nobody reads it."""
        del payload.node.variants[payload.grade]
        del self.payloads[payload.serial]
        self.grades[payload.grade.kind] -= 1
        payload.live = False
        for tier in payload.places:
            self._left(payload.node, tier)
        if not payload.pins:
            self._free(payload)
        rows, payload.needed = payload.needed, set()
        for row in rows:
            self._release_wants(row)
        # It may have been the one that was being read, and kept its node from eviction.
        self._offer_everywhere(payload.node)

    def _release_wants(self, row: Row) -> None:
        """A row is no longer exact at ``bit``: free what was kept for that alone."""
        wants, row.wants = row.wants, []
        for payload in wants:
            payload.needed.discard(row)
            if payload.live and not payload.needed and self._shadowed(payload):
                self._detach(payload)

    def _shadowed(self, payload: Payload) -> bool:
        """Whether every reader of a T payload can use another of its node instead."""
        chunk = payload.grade.number
        return any(
            grade.number == chunk and grade.kind in ("P", "T") and other is not payload
            for grade, other in payload.node.variants.items()
        )

    def _remove(self, node: Node) -> None:
        """Take an empty, childless node out; its rows move to a covering sibling or go."""
        parent = node.parent
        if parent is None:
            return
        parent.unhang(node)
        self.nodes -= 1
        parent.used = max(parent.used, node.used)
        parent.score = max(parent.score, node.score)
        self.heads.removed(node)
        rows, node.rows = node.rows, set()
        for row in rows:
            own = node.tokens[: row.cut * TOKEN_BYTES]
            cover = None if node.whole else covering(parent, own)
            if cover is None:
                self._drop_row(row)
            else:
                row.node = cover.node
                row.node.rows.add(row)
                row.node.pins += row.pins
        self._offer_everywhere(parent)

    def _drop_row(self, row: Row) -> None:
        space = row.space
        del space.rows[row.key]
        del self.rows[row]
        # Gone once, stored again by a request that missed it, and gone again: the first
        # time still tells that request why, and what finds the row does not ask.
        known = space.ghosts.pop(row.key, None)
        space.ghosts[row.key] = known or Ghost(row.length, self.serial())
        if len(space.ghosts) > GHOSTS_KEPT:
            space.ghosts.popitem(last=False)
        row.live = False
        for tier in list(row.records):
            self._forget_record(row, tier)
        self._drop_logits(row)
        self._release_wants(row)
        self.rows_gone += 1

    def _drop_logits(self, row: Row) -> None:
        logits, row.logits, row.canonical = row.logits, None, 0
        if logits is not None:
            row.nbytes -= logits.nbytes
            logits.live = False
            if not logits.pins:
                self._free(logits)
            self._release_wants(row)

    def _free(self, blob: Blob) -> None:
        places, blob.places = blob.places, {}
        self.freed.extend(places.items())


def _chain_bytes(node: Node) -> int:
    """Return the bytes of one payload of each node from the front to this one."""
    nbytes = 0
    one: Node | None = node
    while one is not None and one.variants:
        nbytes += next(iter(one.variants.values())).nbytes
        one = one.parent
    return nbytes
