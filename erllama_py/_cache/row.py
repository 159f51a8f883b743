"""Rows: records that some exact tokens were once a whole context, by key.

A row owns no KV.  It names the node its tokens end in, and for as long as that node is
there, so is everything before it.  What a row does own is the logits of its last
position, while it is fresh.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from erllama_py._cache.trie import Blob, Node, Payload

__all__ = ("Logits", "Row", "Space")


class Logits(Blob):
    """The logits of a row's last position."""

    __slots__ = ("queued", "row")

    def __init__(self, row: Row, extent: Any, nbytes: int, crc: int) -> None:
        super().__init__(extent, nbytes, crc)
        self.row = row
        self.queued = False


class Row:
    """A record that these exact tokens were once a whole context."""

    __slots__ = (
        *("canonical", "cut", "hits", "key", "length", "logits", "nbytes", "node", "pins"),
        *("reason", "serial", "space", "used", "wants"),
    )

    def __init__(self, space: Space, key: bytes, node: Node, length: int) -> None:
        self.space = space
        self.key = key
        self.length = length
        self.node = node
        self.cut = length - node.start
        """Tokens of its deepest node that are its own."""
        self.logits: Logits | None = None
        self.canonical = 0
        """Chunk of the canonical prefill that made the logits; 0 for any other."""
        self.wants: list[Payload] = []
        self.reason = ""
        self.serial = 0
        """Order in which rows got their logits."""
        self.nbytes = 0
        """What the row would take on its own; blocks shared with others included."""
        self.pins = 0
        self.hits = 0
        self.used = 0


class Space:
    """One engine identity's trie and rows."""

    __slots__ = ("ghosts", "name", "root", "rows")

    def __init__(self, name: str = "") -> None:
        self.name = name
        """For people."""
        self.root = Node(None, b"")
        self.rows: dict[bytes, Row] = {}
        self.ghosts: OrderedDict[bytes, int] = OrderedDict()
        """Key and length of rows that are gone."""
