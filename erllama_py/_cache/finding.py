"""What a space has of some tokens: the longest prefix, all of them, or where they end.

Nothing is changed: what was found is not noted as used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from erllama_py._cache.grade import Grade, Want, last_slice
from erllama_py._cache.trie import TOKEN_BYTES, Match, Node, Payload, covering, longest_prefix, walk

if TYPE_CHECKING:
    from erllama_py._cache.row import Space

__all__ = ("exact", "locate", "search")


def search(space: Space, tokens: bytes, want: Want) -> Match:
    """Find the longest usable prefix of ``tokens``.

    At ``bit`` these are whole blocks; cutting down to a multiple of the chunk is
    for the caller, who also knows how many tokens must be left to compute.
    """
    match = walk(space.root, tokens, want, space.block)
    at = match.length * TOKEN_BYTES
    rest = tokens[at : at + space.step]
    if rest and not want.bit:
        found = match.tip.nearest(rest, want)
        if found is not None:
            match.payloads.append(found[0])
            match.length += found[1]
    whole = _longest_whole(space, tokens, want)
    if whole is not None and whole.node.end > match.length:
        return Match([whole], whole.node.end, match.tip)
    return match


def _longest_whole(space: Space, tokens: bytes, want: Want) -> Payload | None:
    """Find the longest sequence in one piece that leaves a token to compute."""
    if not space.wholes.order:
        return None
    return longest_prefix(space.wholes, tokens[:-TOKEN_BYTES], want)


def exact(space: Space, tokens: bytes, chunk: int) -> Match | None:
    """Find the payloads a canonical prefill of exactly these tokens left, or None."""
    one_piece = space.wholes.children.get(tokens)
    if one_piece is not None:
        only = one_piece.variants.get(Grade("P", chunk))
        return Match([only], one_piece.end, space.root) if only else None
    length = len(tokens) // TOKEN_BYTES
    boundary = length // chunk * chunk
    whole, last = Grade("P", chunk), last_slice(chunk, length)
    payloads: list[Payload] = []
    node = tip = space.root
    for at in range(0, len(tokens), space.step):
        child = node.children.get(tokens[at : at + space.step])
        payload = child.variants.get(whole if node.end < boundary else last) if child else None
        if child is None or payload is None:
            return None
        payloads.append(payload)
        node = child
        if len(node.tokens) == space.step:
            tip = node
    return Match(payloads, length, tip)


def locate(space: Space, tokens: bytes, want: Want) -> Node | None:
    """Return the deepest node of these tokens, or None where some of them are missing."""
    whole = space.wholes.children.get(tokens)
    if whole is not None and whole.usable(want.loosely):
        return whole
    match = walk(space.root, tokens, want.loosely, space.block)
    rest = tokens[match.length * TOKEN_BYTES :]
    if not rest:
        return match.tip
    last = covering(match.tip, rest, want.loosely) if len(rest) < space.step else None
    return last.node if last else None
