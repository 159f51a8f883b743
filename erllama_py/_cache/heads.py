"""Heads: what every new conversation begins with, kept while nobody is using it.

A chat's system text and tools stand in front of each of its conversations, and may well be
the longest part.  Between two conversations nothing else in the cache needs them, so a
flood of other prompts would evict them.  A *head* is such a run of tokens that somebody
asked to keep.  It is *pinned* as a row is, but without one: the deepest whole block of the
trie that lies on it, its *tip*, has a pin, and with that all blocks before stay, in one
tier or another.  The tip moves on as blocks of the head are stored, and back where one is
lost.

Whole blocks are enough.  What the head has beyond them is found by the search to the token
while any conversation's next block is there, and is less than a block where none is.

Bounds.  At most :data:`KEPT` heads in a namespace, and what heads pin in a tier (payloads
that are in no other tier) is at most one :data:`SHARE`-th of the tier's quota.  The head
that was asked for longest ago is let go first.  The last one of a tier is shortened
instead: its front is of use without the rest.

Pure data, as the index is; the cache's lock is held.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

from erllama_py._cache.row import Space
from erllama_py._cache.tier import Tier
from erllama_py._cache.trie import TOKEN_BYTES, Node

__all__ = ("KEPT", "SHARE", "Head", "Heads")

KEPT: Final = 8
"""Heads in one namespace: the agents of one program, or the tabs of one user."""

SHARE: Final = 4
"""Pins must leave a tier room for what is going on."""


class Head:
    """A run of tokens that is kept.  Its tip has one pin of its own."""

    __slots__ = ("owners", "space", "tip", "tokens")

    def __init__(self, space: Space, tokens: bytes) -> None:
        self.space = space
        self.tokens = tokens
        self.tip = space.root
        self.owners: set[object] = set()
        """Who asked for it, and may let it go."""

    @property
    def next_block(self) -> bytes:
        """The tokens that a child of the tip must have to be on the head."""
        at = self.tip.end * TOKEN_BYTES
        return self.tokens[at : at + self.space.step]

    def chain(self) -> Iterator[Node]:
        """Yield the blocks it pins, the deepest first."""
        node = self.tip
        while node.parent is not None:
            yield node
            node = node.parent


class Heads:
    """All heads of a cache, in the order in which they were asked for.

    :param unpin: takes one pin off a node, and offers it for eviction.
    """

    def __init__(self, unpin: Callable[[Node], None]) -> None:
        self._unpin = unpin
        self._heads: OrderedDict[tuple[Space, bytes], Head] = OrderedDict()
        self._tips: dict[Node, list[Head]] = {}
        self._cover: dict[Node, int] = {}
        """Nodes on heads, and on how many."""
        self.changed = False
        """Whether heads may pin more than when they were last trimmed."""

    def __len__(self) -> int:
        return len(self._heads)

    def __iter__(self) -> Iterator[Head]:
        return iter(self._heads.values())

    # -- asked for, and let go ------------------------------------------------------------

    def keep(self, space: Space, tokens: bytes, owner: object) -> None:
        """Keep what there is of a head, and what comes."""
        head = self._heads.get((space, tokens))
        if head is None:
            head = self._heads[space, tokens] = Head(space, tokens)
            self._settle(head, space.root)
        self._heads.move_to_end((space, tokens))
        head.owners.add(owner)
        self._advance(head)
        others = [one for one in self if one.space is space]
        for oldest in others[:-KEPT]:
            self._drop(oldest)

    def disown(self, owner: object) -> None:
        """Let go of what nobody else asked for."""
        for head in list(self):
            head.owners.discard(owner)
            if not head.owners:
                self._drop(head)

    def let_go(self, tiers: Collection[Tier] | None = None) -> bool:
        """Drop the heads that pin something in these tiers (None: all); whether any did."""
        going = [one for one in self if tiers is None or any(_pinned(one, tier) for tier in tiers)]
        for head in going:
            self._drop(head)
        return bool(going)

    # -- told by the index ------------------------------------------------------------------

    def stored(self, node: Node) -> None:
        """Take note of a payload that was stored."""
        if node in self._cover:
            self.changed = True
        parent = node.parent
        for head in list(self._tips.get(parent, ())) if parent is not None else ():
            if head.next_block == node.tokens:
                self._advance(head)

    def displaced(self, node: Node) -> None:
        """Take note of a payload that left a tier, and is pinned where it is left."""
        if node in self._cover:
            self.changed = True

    def removed(self, node: Node) -> None:
        """Take note of a node that is out of the trie: it was damaged."""
        for head in list(self._tips.get(node, ())):
            self._retreat(head)

    # -- bounds -----------------------------------------------------------------------------

    def trim(self, quotas: Mapping[Tier, int]) -> None:
        """Let go of what is beyond the heads' share of each tier."""
        self.changed = False
        for tier, quota in quotas.items():
            while self.pinned(tier) > quota // SHARE:
                guilty = [head for head in self if _pinned(head, tier)]
                if len(guilty) > 1:
                    self._drop(guilty[0])
                else:
                    self._retreat(guilty[0])

    def pinned(self, tier: Tier) -> int:
        """Return the bytes that heads keep in a tier: of payloads that are nowhere else."""
        return sum(_only_in(tier, node) for node in self._cover)

    # -- moving -----------------------------------------------------------------------------

    def _advance(self, head: Head) -> None:
        """Move the tip as far as the trie goes along the head."""
        while len(block := head.next_block) == head.space.step:
            child = head.tip.children.get(block)
            if child is None:
                return
            self._cover[child] = self._cover.get(child, 0) + 1
            self._move(head, child)
            self.changed = True

    def _retreat(self, head: Head) -> None:
        tip = head.tip
        assert tip.parent is not None
        self._uncover(tip)
        self._move(head, tip.parent)

    def _drop(self, head: Head) -> None:
        del self._heads[head.space, head.tokens]
        for node in head.chain():
            self._uncover(node)
        self._forget_tip(head)
        self._unpin(head.tip)

    def _uncover(self, node: Node) -> None:
        self._cover[node] -= 1
        if not self._cover[node]:
            del self._cover[node]

    def _move(self, head: Head, tip: Node) -> None:
        before = head.tip
        self._forget_tip(head)
        self._settle(head, tip)
        self._unpin(before)

    def _settle(self, head: Head, tip: Node) -> None:
        head.tip = tip
        tip.pins += 1
        self._tips.setdefault(tip, []).append(head)

    def _forget_tip(self, head: Head) -> None:
        self._tips[head.tip].remove(head)
        if not self._tips[head.tip]:
            del self._tips[head.tip]


def _pinned(head: Head, tier: Tier) -> bool:
    return any(_only_in(tier, node) for node in head.chain())


def _only_in(tier: Tier, node: Node) -> int:
    """Return the bytes of a node that are in this tier and in no other."""
    return sum(
        payload.nbytes
        for payload in node.variants.values()
        if tier in payload.places and len(payload.places) == 1
    )
