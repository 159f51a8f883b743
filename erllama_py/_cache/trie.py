"""The trie that cached pieces of KV hang in, and the walk through it.

Layout.  A node is a run of tokens after its parent's: exactly one block, or a *tail*
shorter than a block, which has no children.  Its place in the trie is the exact tokens
from position 0, so two prompts share nodes for as long as they share tokens.  A node
holds *payloads*, one for each grade it was computed in.

Search.  Whole blocks are found by dictionary, from the front, while each has a payload
the reader can use.  At the last node the child with the longest common prefix wins,
block or tail: its KV is restored and what is too much of it is cut.  So whatever two
prompts share is found to the token.

Children in byte order.  Each node keeps its children's tokens sorted as byte strings.
Little-endian order is not token order, but that does not matter: in any lexicographic
order, strings that share a prefix are neighbours, so the best match of a query is
beside the place where the query would be sorted in.  It shares the most *bytes*; a
count of tokens is a count of bytes over four, rounded down, which keeps the order.
From there outwards the common prefix only gets shorter, on either side; so candidates
the reader cannot use are stepped over, the longer side first.

This module knows no clock, no quota and no rows: see :mod:`erllama_py._cache.index`.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from erllama_py._cache.origin import UNKNOWN, Origin, interned
from erllama_py._cache.tier import RAM, Tier

if TYPE_CHECKING:
    from erllama_py._cache.grade import Grade, Want

__all__ = (
    "Blob",
    "Match",
    "Node",
    "Payload",
    "address",
    "common_tokens",
    "covering",
    "longest_prefix",
    "prefixes",
    "tokens_upto",
    "walk",
)

TOKEN_BYTES: Final = 4
_TOKEN_BITS: Final = 32

NEW: Final = 2.0
"""Uses that something new counts for."""

_FEW: Final = 64
"""Up to so many siblings, looking at each beats asking for each possible length."""


class Blob:
    """Stored bytes: where they are, and how many readers are using them.

    ``places`` says where by tier; what a place is, is the tier's affair.  A blob that is
    dropped while ``pins`` is not zero stops being found at once, and its bytes are given
    back with the last pin.
    """

    __slots__ = ("crc", "live", "nbytes", "origin", "pins", "places")

    def __init__(
        self, places: dict[Tier, Any], nbytes: int, crc: int, origin: Origin = UNKNOWN
    ) -> None:
        self.places = places
        self.nbytes = nbytes
        self.crc = crc
        self.origin = interned(*origin)
        self.pins = 0
        self.live = True

    @property
    def extent(self) -> Any:
        """The place in shared memory, or None."""
        return self.places.get(RAM)

    @property
    def tier(self) -> Tier:
        """The fastest tier it is in."""
        return RAM if RAM in self.places else min(self.places, key=lambda tier: tier.rank)


class Payload(Blob):
    """The KV of one node's tokens in one grade."""

    __slots__ = ("grade", "needed", "node", "serial")

    def __init__(self, serial: int, node: Node, grade: Grade, blob: Blob) -> None:
        super().__init__(blob.places, blob.nbytes, blob.crc, blob.origin)
        self.serial = serial
        self.node = node
        self.grade = grade
        self.needed: set[Any] = set()
        """Rows that are exact at ``bit`` through this very payload (T only)."""


class Node:
    """A run of tokens.  ``live`` is false once it has been taken out of the trie."""

    __slots__ = (
        *("children", "end", "heat", "known_address", "live", "order", "parent", "pins", "rows"),
        *("score", "start", "tokens", "under", "used", "variants", "whole"),
    )

    def __init__(self, parent: Node | None, tokens: bytes) -> None:
        self.parent = parent
        self.tokens = tokens
        self.start: int = parent.end if parent else 0
        self.end: int = self.start + len(tokens) // TOKEN_BYTES
        self.variants: dict[Grade, Payload] = {}
        self.children: dict[bytes, Node] = {}
        self.order: list[bytes] = []
        self.rows: set[Any] = set()
        """Rows whose deepest node this is."""
        self.pins = 0
        self.under: dict[Tier, int] = {}
        """How many children are in a tier."""
        self.used = 0
        """Time of last use; an ancestor's may be older than its descendants'."""
        self.heat = NEW
        """Uses, each counting less as it ages.  What is new counts as used: it must not
        make room for the next, or nothing would ever be used."""
        self.score = 0
        """What eviction orders by, see :mod:`erllama_py._cache.queue`."""
        self.known_address: bytes | None = None
        self.whole: bool = parent is not None and parent.whole
        """Whether it is a sequence in one piece, or the root of those."""
        self.live = True

    def hang(self, child: Node) -> None:
        """Add a child."""
        self.children[child.tokens] = child
        insort(self.order, child.tokens)

    def unhang(self, child: Node) -> None:
        """Take a child out of the trie.  It keeps its ``parent`` for the record."""
        del self.children[child.tokens]
        del self.order[bisect_left(self.order, child.tokens)]
        child.live = False

    def within(self, tier: Tier) -> bool:
        """Whether any of its payloads is in a tier."""
        return any(tier in payload.places for payload in self.variants.values())

    def usable(self, want: Want) -> Payload | None:
        """Return the payload a reader would take: P, else T, else S."""
        variants = self.variants
        found = variants.get(want.whole)
        if found is not None:
            return found
        if want.bit:
            return None
        for grade, payload in variants.items():
            if grade.kind == "T" and grade.number == want.chunk:
                return payload
        return variants.get(want.stream)

    def nearest(self, query: bytes, want: Want) -> tuple[Payload, int] | None:
        """Return the usable child sharing most tokens with ``query``, and how many.

        None where no usable child shares its first token.
        """
        order = self.order
        right = bisect_left(order, query)
        left = right - 1
        on_left = common_tokens(order[left], query) if left >= 0 else 0
        on_right = common_tokens(order[right], query) if right < len(order) else 0
        while on_left or on_right:
            if on_left >= on_right:
                found, shared = self.children[order[left]].usable(want), on_left
                left -= 1
                on_left = common_tokens(order[left], query) if left >= 0 else 0
            else:
                found, shared = self.children[order[right]].usable(want), on_right
                right += 1
                on_right = common_tokens(order[right], query) if right < len(order) else 0
            if found is not None:
                return found, shared
        return None


class Match:
    """What a search found: payloads in order, covering ``length`` tokens and maybe more."""

    __slots__ = ("length", "payloads", "tip")

    def __init__(self, payloads: list[Payload], length: int, tip: Node) -> None:
        self.payloads = payloads
        self.length = length
        """Tokens of the query that are covered."""
        self.tip = tip
        """The deepest whole block that is covered entirely; the root if none is."""


def walk(root: Node, tokens: bytes, want: Want, block: int) -> Match:
    """Follow whole blocks for as long as each has a usable payload."""
    step = block * TOKEN_BYTES
    whole, stream, loose = want.whole, want.stream, not want.bit
    payloads: list[Payload] = []
    node = root
    for at in range(0, len(tokens) - step + 1, step):
        child = node.children.get(tokens[at : at + step])
        if child is None:
            break
        # The two common grades by hand: this loop runs once a block of a long prompt.
        found = child.variants.get(whole)
        if found is None and loose:
            found = child.variants.get(stream)
            if found is None or len(child.variants) > 1:
                found = child.usable(want)
        if found is None:
            break
        payloads.append(found)
        node = child
    return Match(payloads, node.end, node)


def common_tokens(one: bytes, other: bytes) -> int:
    """Return how many leading tokens two encoded runs share."""
    size = min(len(one), len(other))
    differing = int.from_bytes(one[:size], "little") ^ int.from_bytes(other[:size], "little")
    if not differing:
        return size // TOKEN_BYTES
    return ((differing & -differing).bit_length() - 1) // _TOKEN_BITS


def covering(parent: Node, tokens: bytes, want: Want | None = None) -> Payload | None:
    """Return a payload of a child that begins with ``tokens``.

    :param want: whose payload it must be usable by; None takes any.
    """
    order = parent.order
    for at in range(bisect_left(order, tokens), len(order)):
        if not order[at].startswith(tokens):
            break
        child = parent.children[order[at]]
        found = child.usable(want) if want else next(iter(child.variants.values()), None)
        if found is not None:
            return found
    return None


def prefixes(node: Node) -> Iterator[Node]:
    """Yield the siblings that are tails and a proper prefix of ``node``'s tokens."""
    parent, tokens = node.parent, node.tokens
    if parent is None or len(parent.order) == 1:
        return
    if len(parent.order) <= _FEW:
        shorter = [run for run in parent.order if len(run) < len(tokens) and tokens.startswith(run)]
    else:
        lengths = range(TOKEN_BYTES, len(tokens), TOKEN_BYTES)
        shorter = [tokens[:size] for size in lengths if tokens[:size] in parent.children]
    for run in shorter:
        yield parent.children[run]


def longest_prefix(root: Node, query: bytes, want: Want) -> Payload | None:
    """Return the usable child whose tokens are the longest prefix of ``query``.

    For the rows of models that cannot be cut, which all hang under one root.  The child
    sorted just before the query shares some tokens with it; any child that is a prefix
    of the query is a prefix of those, too.  So the query gets shorter with every look.
    """
    while query:
        child = root.children.get(query)
        found = child.usable(want) if child else None
        if found is not None:
            return found
        at = bisect_left(root.order, query) - 1
        if at < 0:
            return None
        shared = common_tokens(root.order[at], query)
        query = query[: shared * TOKEN_BYTES]
    return None


def address(node: Node) -> bytes:
    """Return a node's address in files: a digest over all tokens up to its end.

    A root's is given to it: that of whatever its tokens mean something for.
    """
    chain = [node]
    while chain[-1].known_address is None:
        parent = chain[-1].parent
        assert parent is not None
        chain.append(parent)
    known = chain.pop().known_address
    assert known is not None
    for one in reversed(chain):
        known = one.known_address = hashlib.sha256(known + one.tokens).digest()
    return known


def tokens_upto(node: Node) -> bytes:
    """Return all tokens from position 0 to a node's end."""
    runs = []
    one: Node | None = node
    while one is not None:
        runs.append(one.tokens)
        one = one.parent
    return b"".join(reversed(runs))
