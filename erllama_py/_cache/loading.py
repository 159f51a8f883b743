"""Reading a file tier's entries into the index.

Entries come in no order.  A node's address is a digest over all tokens before its end,
and each entry names its parent's, so the trie is built from the front: entries sorted by
position, every one under the node its parent's address leads to.  What leads nowhere is
an orphan, of a chain that was cut by eviction or a crash, and its room is freed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from erllama_py._cache.queue import used_before
from erllama_py._cache.row import Row
from erllama_py._cache.trie import TOKEN_BYTES, Blob, Node, address, covering, tokens_upto

if TYPE_CHECKING:
    from erllama_py._cache.blockfile import Entry, Spot
    from erllama_py._cache.filetier import FileTier
    from erllama_py._cache.namespace import Namespace

__all__ = ("load",)

_AT_ONCE: Final = 256
"""Entries taken in under one hold of the cache's lock: some 5 ms."""

Found = tuple["Spot", "Entry", bool]


def load(namespace: Namespace, tier: FileTier) -> int:
    """Take in what a tier holds for a namespace; return how many entries.

    :raises OSError: the directory cannot be read.
    """
    loader = _Loader(namespace, tier)
    entries = tier.directory.load(namespace.digest)
    blocks = sorted((e for e in entries if e[1].kind == "block"), key=lambda e: e[1].start)
    wholes = [e for e in entries if e[1].kind == "whole"]
    rows = [e for e in entries if e[1].kind == "row"]
    # Records first: logits need a row to belong to.
    rows.sort(key=lambda e: (e[1].nbytes > 0, e[1].used))
    taken = loader.take(blocks, loader.block)
    taken += loader.take(wholes, loader.whole)
    taken += loader.take(rows, loader.row)
    namespace.shared.measure_files()
    return taken


class _Loader:
    def __init__(self, namespace: Namespace, tier: FileTier) -> None:
        self.namespace = namespace
        self.tier = tier
        self.shared = namespace.shared
        self.index = namespace.shared.index
        self.space = namespace.space
        self.now = self.shared.clock()
        self.wall = time.time()
        with self.shared.lock:
            self.nodes = {address(node): node for node in _blocks(self.space.root, self.space.step)}
            self.nodes |= {address(one): one for one in self.space.wholes.children.values()}

    def take(self, entries: list[Found], how: object) -> int:
        """Take entries in, a few at a time; free those of ours that fit nowhere."""
        assert callable(how)
        taken = 0
        for at in range(0, len(entries), _AT_ONCE):
            with self.shared.lock:
                for spot, entry, ours in entries[at : at + _AT_ONCE]:
                    if how(spot, entry, ours):
                        taken += 1
                    elif ours:
                        self.index.freed.append((self.tier, spot))
                self.shared.settle()
        return taken

    def _blob(self, spot: Spot, entry: Entry, ours: bool, nbytes: int) -> Blob:
        tier = self.tier if ours else self.tier.borrowed
        return Blob({tier: spot}, nbytes, entry.crc, entry.origin)

    def _used(self, entry: Entry) -> int:
        """Return an entry's time of use on the index's clock, which may be before its zero."""
        return self.now - int(max(0.0, self.wall - entry.used) * 1e9)

    def block(self, spot: Spot, entry: Entry, ours: bool) -> bool:
        parent = self.nodes.get(entry.parent)
        if parent is None or parent.end != entry.start or entry.grade is None:
            return False
        blob = self._blob(spot, entry, ours, entry.nbytes)
        node = self.index.adopt(parent, entry.tokens, entry.grade, blob, self._used(entry))
        if node is None:
            return False
        used_before(node, entry.hits)
        if len(node.tokens) == self.space.step:
            self.nodes[address(node)] = node
        return True

    def whole(self, spot: Spot, entry: Entry, ours: bool) -> bool:
        size = entry.length * TOKEN_BYTES
        tokens = bytearray(size)
        if entry.grade is None or not self.tier.directory.read_into(spot, size, tokens):
            return False
        blob = self._blob(spot, entry, ours, entry.nbytes - size)
        root = self.space.wholes
        if address(Node(root, bytes(tokens))) != entry.key:
            return False  # damaged
        node = self.index.adopt(root, bytes(tokens), entry.grade, blob, self._used(entry))
        if node is not None:
            self.nodes[address(node)] = node
        return node is not None

    def row(self, spot: Spot, entry: Entry, ours: bool) -> bool:
        tier = self.tier if ours else self.tier.borrowed
        row = self.space.rows.get(entry.key)
        if row is None:
            row = self._new_row(entry)
        if row is None:
            return False
        if not entry.nbytes:
            if tier in row.records:
                return False
            row.records[tier] = spot
            return True
        blob = self._blob(spot, entry, ours, entry.nbytes)
        if row.logits is not None:
            return False
        chunk = entry.canonical
        self.index.set_logits(row, blob, chunk, canonical=bool(chunk))
        if chunk:
            rest = row.node.tokens[: row.cut * TOKEN_BYTES]
            parent = row.node.parent
            assert parent is not None
            self.index.keep_exact(row, tokens_upto(parent) + rest)
        return True

    def _new_row(self, entry: Entry) -> Row | None:
        parent = self.nodes.get(entry.parent)
        if parent is None:
            return None
        node: Node | None = parent
        if entry.tokens:
            cover = covering(parent, entry.tokens)
            node = cover.node if cover else None
        if node is None or node.parent is None or not node.start < entry.length <= node.end:
            return None
        if node.start + len(entry.tokens) // TOKEN_BYTES != entry.length and entry.tokens:
            return None
        row = self.index.adopt_row(self.space, entry.key, node, entry.length, self._used(entry))
        row.reason, row.hits, row.created = entry.reason, entry.hits, entry.created
        used_before(row, entry.hits)
        return row


def _blocks(root: Node, step: int) -> list[Node]:
    """Return a root and all whole blocks under it."""
    found = [root]
    for node in found:  # which grows meanwhile
        found.extend(child for run, child in node.children.items() if len(run) == step)
    return found
