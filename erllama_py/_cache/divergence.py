"""Why a prompt was not found whole: where it parts from what is cached, and from which row.

The search that admission makes stops at what the reader may use.  This one follows the
tokens alone, so the two together tell a prompt that was never seen from one that was
computed in another way, or for another engine identity.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Final

import msgspec

from erllama_py._cache.namespace import Identity, Namespace
from erllama_py._cache.row import Row, Space
from erllama_py._cache.trie import TOKEN_BYTES, Node, common_tokens

__all__ = ("Divergence", "differing_fields", "diverge", "others")

_STEPS: Final = 1000
"""Nodes looked at for a row to name: enough for 64 000 tokens behind the fork."""


class Divergence(msgspec.Struct, frozen=True):
    """Where a prompt leaves the cached tokens nearest to it."""

    shared: int
    """Tokens in common: the index of the first that differs."""
    cached_token: int | None
    """What the nearest context has there; None where it ends."""
    prompt_token: int | None
    """What the prompt has there; None where the prompt ends."""
    nearest_key: bytes | None
    """The key of a row of that context."""
    nearest_length: int
    grades: tuple[str, ...]
    """How the last shared tokens were computed: P, T or S and their number."""


def diverge(space: Space, tokens: bytes) -> Divergence:
    """Follow a prompt as far as its tokens lead.  The cache's lock is held."""
    node = space.root
    at = 0
    while (child := node.children.get(tokens[at : at + space.step])) is not None:
        node, at = child, at + len(child.tokens)
        if len(child.tokens) < space.step:
            break
    last, extra = _best(node, tokens[at : at + space.step])
    whole, whole_shared = _best(space.wholes, tokens)
    shared = at // TOKEN_BYTES + extra
    if whole_shared > shared:
        last, shared = whole, whole_shared
    own = (shared - last.start) * TOKEN_BYTES
    theirs = last.tokens[own : own + TOKEN_BYTES]
    if not theirs and last.order:
        theirs = last.order[0][:TOKEN_BYTES]
    ours = tokens[shared * TOKEN_BYTES : (shared + 1) * TOKEN_BYTES]
    row = _row_near(last) if shared else None
    return Divergence(
        shared=shared,
        cached_token=int.from_bytes(theirs, "little") if theirs else None,
        prompt_token=int.from_bytes(ours, "little") if ours else None,
        nearest_key=row.key if row else None,
        nearest_length=row.length if row else 0,
        grades=tuple(sorted(f"{grade.kind}{grade.number}" for grade in last.variants)),
    )


def others(namespaces: list[Namespace], tokens: bytes, own: Namespace) -> list[dict[str, Any]]:
    """Return where else more of a prompt is cached, and what of the key differs there.

    The cache's lock is held.
    """
    here = diverge(own.space, tokens).shared
    found = []
    for other in namespaces:
        shared = diverge(other.space, tokens).shared if other is not own else 0
        if shared > here:
            differs = differing_fields(own.identity, other.identity)
            found.append({"shared": shared, "differs": differs})
    return sorted(found, key=lambda one: -one["shared"])


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


def _best(parent: Node, query: bytes) -> tuple[Node, int]:
    """Return the child that shares most with ``query``, and how much; the parent if none does.

    In sorted order it is beside the place of the query.
    """
    at = bisect_left(parent.order, query)
    beside = [parent.children[run] for run in parent.order[max(0, at - 1) : at + 1]]
    best = max(beside, key=lambda child: common_tokens(child.tokens, query), default=None)
    shared = common_tokens(best.tokens, query) if best else 0
    return (best, shared) if best and shared else (parent, 0)


def _row_near(node: Node) -> Row | None:
    stack = [node]
    for _ in range(_STEPS):
        if not stack:
            return None
        one = stack.pop()
        if one.rows:
            nearest: Row = max(one.rows, key=lambda row: row.used)
            return nearest
        stack.extend(one.children.values())
    return None
