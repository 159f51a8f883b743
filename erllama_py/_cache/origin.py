"""Origins: which computation a stored run of KV came out of.

A sequence is given a random number, an *origin*, whenever it begins to compute: at its
first token, or behind what was restored into it or taken over.  What it computes from
there on has that number.  A payload keeps two: that of its own last token, and that of
the token before its first.

Within one origin nothing is computed twice, so number and position name bits.  A chain
in which each payload was computed behind the very one that stands before it now is
therefore, bit for bit, what one sequence had in its cells when it had got there, as if
nothing had ever left them.  That is what a hit calls ``stream``.  Where a chain was put
together of several computations of the same tokens, one of the links does not hold.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from erllama_py._cache.trie import Payload

__all__ = ("UNKNOWN", "Origin", "interned", "is_one_stream")


class Origin(NamedTuple):
    """Where a payload came from.  Numbers have 64 bits; 0 is unknown."""

    own: int = 0
    """Of its last token."""
    before: int = 0
    """Of the token before its first; anything for a payload from position 0."""


UNKNOWN: Final = Origin()

interned = functools.lru_cache(maxsize=256)(Origin)
"""Return an :class:`Origin`, the same object again for the next block of a stream."""


def is_one_stream(payloads: Iterable[Payload]) -> bool:
    """Whether payloads that cover the tokens from position 0 on are one stream's bits."""
    before = 0
    for payload in payloads:
        own, behind = payload.origin
        if not own or (payload.node.start and behind != before):
            return False
        before = own
    return True
