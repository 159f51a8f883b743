"""Why a prompt was not found whole: where it parts from what is cached, and from which row.

The search that admission makes stops at what the reader may use.  What is here follows
the tokens alone, so the two together tell a prompt that was never seen from one that was
computed in another way, or for another engine identity.

When it is asked.  A request soon stores its own blocks, and then nothing in the trie says
where it left what was there before.  So that is taken with the lookup, under the same hold
of the lock, starting from the node where the search ended: a few microseconds.  What a
request does not change by itself, other namespaces and the list of evicted rows, is looked
at when somebody asks, and what came after the lookup is told apart by its serial number.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import msgspec

from erllama_py._cache.grade import Grade
from erllama_py._cache.identity import Identity
from erllama_py._cache.row import Row, Space
from erllama_py._cache.trie import TOKEN_BYTES, Node, common_tokens

if TYPE_CHECKING:
    from erllama_py._cache.key import KeyHasher

__all__ = ("Divergence", "NearRow", "Seen", "differing_fields", "diverge", "evicted", "known")

_STEPS: Final = 2000
"""Nodes looked at for a row to name: enough for 128 000 tokens behind the fork."""


class NearRow(msgspec.Struct, frozen=True):
    """The row that shares most tokens with a prompt."""

    key: bytes
    length: int
    shared: int


class Divergence(msgspec.Struct, frozen=True):
    """Where a prompt leaves the cached tokens nearest to it."""

    shared: int
    """Tokens in common: the index of the first that differs."""
    cached_token: int | None
    """What the nearest context has there; None where it ends, or shares nothing."""
    whole: bool
    """Whether that context can be restored whole only."""
    grades: tuple[Grade, ...]
    """How the shared tokens behind those that the search took were computed."""
    row: NearRow | None
    """None where no row shares a token."""


class Seen(msgspec.Struct, frozen=True):
    """What a lookup found, and where the prompt left what is cached."""

    kind: str
    via: str
    prefix_len: int
    label: str | None
    tiers: dict[str, int]
    gated: int
    resumes: bool
    """Whether ``parent_key`` was that of a row, there or gone, that the prompt begins with."""
    apart: Divergence | None
    """None for an exact hit."""
    mark: int
    """Serial number of the lookup: what has a greater one came after it."""


def diverge(space: Space, tokens: bytes, reached: Node) -> Divergence:
    """Follow a prompt as far as its tokens lead.  The cache's lock is held.

    :param reached: a node of the prompt's own tokens to start from: the deepest whole
        block that the search took.
    """
    path = [reached]
    while (child := _next(path[-1], tokens, space.step)) is not None:
        path.append(child)
    node = path[-1]
    beside, common = next(_outward(node, _rest(node, tokens, space.step)), (node, 0))
    shared = node.end + common
    last, passed = beside, [*path[1:], beside] if common else path[1:]
    one_piece, common = next(_outward(space.wholes, tokens), (space.wholes, 0))
    whole = common > shared
    if whole:
        shared, last, passed = common, one_piece, [one_piece]
    nearest = _Nearest(tokens, space.step)
    nearest.search(node)
    nearest.search(space.wholes)
    row, row_shared = nearest.row, nearest.shared
    if row is not None and row_shared == shared:
        following = _token_of(row, shared)
    else:
        following = _token_at(last, shared) if shared else None
    return Divergence(
        shared=shared,
        cached_token=following,
        whole=whole,
        grades=tuple(sorted({grade for one in passed for grade in one.variants})),
        row=NearRow(row.key, row.length, row_shared) if row else None,
    )


def known(space: Space, tokens: bytes, mark: int) -> int:
    """Return how many leading tokens were stored before ``mark``, by anybody, and still are.

    The cache's lock is held.
    """
    node = space.root
    while (child := _next(node, tokens, space.step)) is not None and _older(child, mark):
        node = child
    found = 0
    for parent, query in ((node, _rest(node, tokens, space.step)), (space.wholes, tokens)):
        older = (common for child, common in _outward(parent, query) if _older(child, mark))
        found = max(found, parent.end + next(older, 0))
    return found


def evicted(ghosts: dict[bytes, int], hasher: KeyHasher, tokens: bytes) -> tuple[bytes, int] | None:
    """Return key and length of the longest evicted row that a prompt begins with.

    One pass over the prompt, and a key made at each length: a microsecond each.

    :param ghosts: lengths by key, none of them 0.
    :param hasher: one of the namespace, with no tokens yet.
    """
    total = len(tokens) // TOKEN_BYTES
    lengths = sorted({length for length in ghosts.values() if length <= total})
    best = None
    for before, length in pairwise([0, *lengths]):
        hasher.update(tokens[before * TOKEN_BYTES : length * TOKEN_BYTES])
        key = hasher.digest()
        if ghosts.get(key) == length:
            best = key, length
    return best


def differing_fields(one: Identity, other: Identity) -> dict[str, tuple[str, str]]:
    """Return the fields in which two identities differ, with both values as text."""
    mine, theirs = _fields(one), _fields(other)
    names = sorted(mine.keys() | theirs.keys())
    pairs = {name: (mine.get(name, ""), theirs.get(name, "")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _fields(identity: Identity) -> dict[str, str]:
    return {
        "fingerprint": identity.fingerprint.hex(),
        "quant_type": identity.quant_type,
        "ctx_params_hash": identity.ctx_params_hash.hex(),
        **dict(identity.engine),
    }


# -- along the tokens -----------------------------------------------------------------------


def _next(node: Node, tokens: bytes, step: int) -> Node | None:
    """Return the whole block that follows a node in a prompt."""
    at = node.end * TOKEN_BYTES
    run = tokens[at : at + step]
    return node.children.get(run) if len(run) == step else None


def _rest(node: Node, tokens: bytes, step: int) -> bytes:
    at = node.end * TOKEN_BYTES
    return tokens[at : at + step]


def _outward(parent: Node, query: bytes) -> Iterator[tuple[Node, int]]:
    """Yield the children that share tokens with ``query``, and how many, falling.

    In sorted order they are on both sides of the place of the query.
    """
    order, children = parent.order, parent.children
    right = bisect_left(order, query)
    left = right - 1
    on_left = common_tokens(order[left], query) if left >= 0 else 0
    on_right = common_tokens(order[right], query) if right < len(order) else 0
    while on_left or on_right:
        if on_left >= on_right:
            yield children[order[left]], on_left
            left -= 1
            on_left = common_tokens(order[left], query) if left >= 0 else 0
        else:
            yield children[order[right]], on_right
            right += 1
            on_right = common_tokens(order[right], query) if right < len(order) else 0


def _older(node: Node, mark: int) -> bool:
    return any(payload.serial < mark for payload in node.variants.values())


def _token_at(node: Node, at: int) -> int | None:
    """Return the token at a position in a node or right behind it, of any child."""
    own = (at - node.start) * TOKEN_BYTES
    token = node.tokens[own : own + TOKEN_BYTES]
    if not token and node.order:
        token = node.order[0][:TOKEN_BYTES]
    return int.from_bytes(token, "little") if token else None


def _token_of(row: Row, at: int) -> int | None:
    """Return a row's token at a position, None where it ends there."""
    if at >= row.length:
        return None
    node = row.node
    while node.start > at and node.parent is not None:
        node = node.parent
    return _token_at(node, at)


# -- the nearest row ------------------------------------------------------------------------


class _Nearest:
    """The row that shares most with a prompt, by looking where that can be only.

    From the node where the prompt's own blocks end outwards: what a node's other
    children can share is known from their tokens, so it ends as soon as nothing that is
    left could share more.
    """

    def __init__(self, tokens: bytes, step: int) -> None:
        self.row: Row | None = None
        self.shared = 0
        self._tokens = tokens
        self._step = step
        self._steps = _STEPS

    def search(self, node: Node) -> None:
        """Look at the children of a node of the prompt, at its rows, and before it."""
        came: Node | None = None
        while True:
            self._beside(node, came)
            if self.shared >= node.end or self._steps <= 0:
                return
            for row in node.rows:
                self._offer(row, node.start + row.cut)
            if self.shared < node.end:
                self._offer_below(node, node.end)
            if node.parent is None:
                return
            came, node = node, node.parent

    def _beside(self, node: Node, came: Node | None) -> None:
        query = self._tokens[node.end * TOKEN_BYTES :]
        for child, common in _outward(node, query if node.whole else query[: self._step]):
            shared = node.end + common
            if shared <= self.shared or self._steps <= 0:
                return
            self._steps -= 1
            if child is came:
                continue
            for row in child.rows:
                self._offer(row, min(child.start + row.cut, shared))
            if self.shared < shared:
                self._offer_below(child, shared)

    def _offer(self, row: Row, shared: int) -> None:
        best = self.row
        used = -1 if best is None or shared > self.shared else best.used
        if shared >= self.shared and shared and row.used > used:
            self.row, self.shared = row, shared

    def _offer_below(self, node: Node, shared: int) -> None:
        """Offer a row from under a node, of the branch that was hung there last."""
        stack = [iter(reversed(node.children.values()))]
        while stack and self._steps > 0:
            one = next(stack[-1], None)
            if one is None:
                stack.pop()
                continue
            self._steps -= 1
            if one.rows:
                for row in one.rows:
                    self._offer(row, shared)
                return
            stack.append(iter(reversed(one.children.values())))
