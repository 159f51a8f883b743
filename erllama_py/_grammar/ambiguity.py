"""How many ways the engine has to follow at once, at most.

A reply in the making may fit a grammar in several ways, and the engine tests each of them
against the whole vocabulary for every token.  Alternatives that begin alike, and hold what
may hold them again, double the ways at each level: a schema of ten lines could stop a model.
So the ways are counted before the engine sees the grammar.

What a rule needs is the most of: its own choices, each of its parts (one after the other,
or told apart by how they begin), and, for alternatives that begin alike, their sum.  Rules
may hold themselves, so the numbers are raised until nothing changes, or the limit is passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ("MAX_WAYS", "Node", "too_many_ways")

MAX_WAYS: Final = 128


class Node:
    """A rule as far as its ways are concerned."""

    __slots__ = ("alike", "own", "parts", "ways")

    def __init__(self) -> None:
        self.own = 1
        self.parts: list[Node] = []
        self.alike: list[list[Node]] = []
        self.ways = 1


def too_many_ways(nodes: Sequence[Node]) -> Node | None:
    """Return a rule with more than :data:`MAX_WAYS` ways, if there is one.

    :param nodes: all of them; those that hold others had best come first.
    """
    changed = True
    while changed:
        changed = False
        for node in reversed(nodes):
            ways = max(
                node.own,
                max((part.ways for part in node.parts), default=1),
                max((sum(one.ways for one in group) for group in node.alike), default=1),
            )
            if ways > MAX_WAYS:
                return node
            if ways > node.ways:
                node.ways = ways
                changed = True
    return None
