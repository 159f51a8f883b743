"""Rows: records that some exact tokens were once a whole context, by key.

A row owns no KV.  It names the node its tokens end in, and for as long as that node is
there, so is everything before it.  What a row does own is the logits of its last
position, while it is fresh.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

from erllama_py._cache.tier import Tier
from erllama_py._cache.trie import NEW, TOKEN_BYTES, Blob, Node, Payload

__all__ = ("Ghost", "Logits", "Row", "Space")


class Logits(Blob):
    """The logits of a row's last position."""

    __slots__ = ("row",)

    def __init__(self, row: Row, blob: Blob) -> None:
        super().__init__(blob.places, blob.nbytes, blob.crc, blob.origin)
        self.row = row


class Row:
    """A record that these exact tokens were once a whole context."""

    __slots__ = (
        *("canonical", "created", "cut", "heat", "hits", "key", "length", "live", "logits"),
        *("nbytes", "node", "pins", "reason", "records", "score", "serial", "space", "used"),
        *("wants",),
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
        self.records: dict[Tier, Any] = {}
        """Where it is written down, by file tier."""
        self.reason = ""
        self.created = 0
        """Unix seconds."""
        self.serial = 0
        """Order in which rows got their logits."""
        self.nbytes = 0
        """What the row would take on its own; blocks shared with others included."""
        self.pins = 0
        self.hits = 0
        self.used = 0
        self.heat = NEW
        self.score = 0
        self.live = True


class Ghost(NamedTuple):
    """What is remembered of a row that is gone, or was before it was stored again."""

    length: int
    gone: int
    """Serial number of its end, the first if there were several."""


class Space:
    """One engine identity's trie and rows."""

    __slots__ = ("ghosts", "name", "root", "rows", "step", "wholes")

    def __init__(self, name: str, digest: bytes, step: int) -> None:
        self.name = name
        """For people."""
        self.step = step
        """Bytes of a whole block's tokens."""
        self.root = Node(None, b"")
        self.root.known_address = digest
        self.wholes = Node(None, b"")
        """Root of sequences stored in one piece, each a child with all its tokens."""
        self.wholes.known_address = digest
        self.wholes.whole = True
        self.rows: dict[bytes, Row] = {}
        self.ghosts: OrderedDict[bytes, Ghost] = OrderedDict()
        """Rows that are gone, or were, by key; who looks at rows first is not misled."""

    @property
    def block(self) -> int:
        """Tokens of a whole block."""
        return self.step // TOKEN_BYTES
