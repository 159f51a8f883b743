"""What a disk tier's files hold, without a model: for those who tidy up.

:func:`survey` only reads.  It opens files read-only and takes no lock, so no process that
has them notices; what such a process is just writing may be missing, or be seen twice.

:func:`prune` writes, to files of nobody alive: it takes them over as a core does that is
started, and gives them up at once.  What is in another live process's files it leaves, and
says how many rows that were.

A row is held by the blocks that lead to it, which it shares with others.  Removing it
removes what no other row needs, and whatever built on that.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from erllama_py._cache.blockfile import Damaged, Foreign
from erllama_py._cache.container import Container, read_head
from erllama_py._cache.directory import Directory
from erllama_py._cache.identity import Identity

if TYPE_CHECKING:
    from erllama_py._cache.blockfile import Entry

__all__ = ("Inventory", "Owner", "Pruned", "StoredRow", "prune", "survey")

_SUFFIX = ".blk"
_BLOCK = 64
"""Tokens of a block, as cores have them."""


class Owner(NamedTuple):
    """An engine identity that files are of."""

    digest: bytes
    fingerprint: bytes
    """Of the model file; empty where the description says nothing we know."""
    quant_type: str
    engine: dict[str, str]
    """What the engine said of itself."""
    files: int
    on_disk: int
    """Bytes its files take."""
    rows: int


class StoredRow(NamedTuple):
    """A context that was saved."""

    key: bytes
    owner: bytes
    """Digest of its identity."""
    tokens: int
    nbytes: int
    """On its own: blocks shared with others included."""
    whole: bool
    """Whether all that leads to it is there."""
    reason: str
    hits: int
    created: int
    """Unix seconds."""
    used: int
    """Unix seconds."""


class Inventory(NamedTuple):
    """What a directory holds."""

    owners: list[Owner]
    rows: list[StoredRow]
    """Last used first."""
    capacity: int
    """Bytes that count against a quota: the lengths of the files."""
    foreign: int
    """Files of another format or a later version, or damaged."""
    named: int
    """Whole rows saved by name, ``*.kvc``."""
    named_bytes: int


class Pruned(NamedTuple):
    """What went, and what could not."""

    rows: int
    files: int
    freed: int
    """Bytes on disk."""
    busy: int
    """Rows that stay: they are in files of a process that is running."""


def survey(path: Path) -> Inventory:
    """Read what is in a directory, which need not be there.

    :raises OSError: it is there and cannot be read.
    """
    spaces: dict[tuple[bytes, int], _Space] = {}
    descriptions: dict[bytes, bytes] = {}
    sizes: dict[bytes, list[int]] = {}
    capacity = foreign = named = named_bytes = 0
    for item in _listed(path):
        with contextlib.suppress(FileNotFoundError):
            facts = item.stat(follow_symlinks=False)
            if item.name.endswith(".kvc"):
                named += 1
                named_bytes += facts.st_size
                continue
            capacity += facts.st_size
            try:
                one = _opened(Path(item.path))
            except (Foreign, Damaged):
                foreign += 1
                continue
            try:
                head = one.head
                space = spaces.setdefault((head.digest, head.block), _Space(head.digest))
                space.take(entry for _, entry in one.news())
                descriptions[head.digest] = head.description
                sizes.setdefault(head.digest, []).append(facts.st_blocks * 512)
            finally:
                one.close(unlock=False)
    rows = [row for space in spaces.values() for row in space.described()]
    owners = [
        _owner(digest, text, sizes[digest], sum(row.owner == digest for row in rows))
        for digest, text in descriptions.items()
    ]
    rows.sort(key=lambda row: (-row.used, row.key))
    return Inventory(owners, rows, capacity, foreign, named, named_bytes)


def prune(path: Path, doomed: Callable[[StoredRow], bool], *, unfiled: bool = False) -> Pruned:
    """Remove rows, and what is of no use to the others that stay.

    Also removed is what leads nowhere, and files that are empty then.

    :param doomed: whether a row is to go.
    :param unfiled: also remove blocks that no row needs: heads of prompts, that a new
        prompt might have begun with.
    :raises OSError: the directory cannot be read or locked.
    """
    if not path.is_dir():
        return Pruned(0, 0, 0, 0)
    before = _taken(path)
    directory = Directory(path, 0, numbers=itertools.count(1).__next__, block=_BLOCK)
    rows = busy = 0
    try:
        for digest in directory.identities():
            found = directory.load(digest)
            space = _Space(digest)
            space.take(entry for _, entry, _ in found)
            going = {row.key for row in space.described() if not row.whole or doomed(row)}
            keep = space.needed(going, unfiled=unfiled)
            spots = [found[at][0] for at in range(len(found)) if at not in keep and found[at][2]]
            theirs = {entry.key for _, entry, ours in found if entry.key in going and not ours}
            busy += len(theirs)
            rows += len(going - theirs)
            directory.free(spots)
        directory.sync()
        directory.drop_empty()
    finally:
        directory.close()
    after = _taken(path)
    return Pruned(rows, len(before) - len(after), sum(before.values()) - sum(after.values()), busy)


class _Space:
    """The entries of one identity, by what leads where."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.entries: list[Entry] = []
        self.at: dict[bytes, list[int]] = {}
        """Address of a block or whole row to its variants."""
        self.under: dict[bytes, list[int]] = {}
        """Address to the blocks that follow."""
        self.rows: dict[bytes, list[int]] = {}

    def take(self, entries: Iterable[Entry]) -> None:
        """Add entries, in any order."""
        for entry in entries:
            number = len(self.entries)
            self.entries.append(entry)
            if entry.kind == "row":
                self.rows.setdefault(entry.key, []).append(number)
                continue
            whole = entry.kind == "whole"
            address = entry.key if whole else _address(entry.parent, entry.tokens)
            self.at.setdefault(address, []).append(number)
            self.under.setdefault(entry.parent, []).append(number)

    def described(self) -> list[StoredRow]:
        """Return the rows."""
        found = []
        for key, numbers in self.rows.items():
            records = [self.entries[number] for number in numbers]
            chain = self._chain(records[0])
            parts = [] if chain is None else chain
            nbytes = sum(min(self.entries[n].nbytes for n in variants) for variants in parts)
            found.append(
                StoredRow(
                    key,
                    self.digest,
                    records[0].length,
                    nbytes + max(record.nbytes for record in records),
                    chain is not None,
                    next((record.reason for record in records if record.reason), ""),
                    max(record.hits for record in records),
                    min(record.created for record in records),
                    max(max(record.used, record.created) for record in records),
                )
            )
        return found

    def needed(self, going: set[bytes], *, unfiled: bool) -> set[int]:
        """Return the numbers of the entries that stay when some rows go."""
        keep: set[int] = set()
        dropped: set[int] = set()
        for key, numbers in self.rows.items():
            chain = self._chain(self.entries[numbers[0]]) or []
            held = set(itertools.chain.from_iterable(chain))
            if key in going:
                dropped |= held
            else:
                keep |= held.union(numbers)
        if not unfiled:
            # From the front: what follows a block that goes can no longer be reached.
            waiting = [self.digest]
            while waiting:
                for number in self.under.get(waiting.pop(), ()):
                    if number in keep or number not in dropped:
                        keep.add(number)
                        entry = self.entries[number]
                        if entry.kind == "block":
                            waiting.append(_address(entry.parent, entry.tokens))
        return keep

    def _chain(self, row: Entry) -> list[list[int]] | None:
        """Return what leads to a row, each part with its variants; None where one is missing."""
        parts = []
        if row.tokens:
            tails = [
                number
                for number in self.under.get(row.parent, ())
                if self.entries[number].tokens.startswith(row.tokens)
            ]
            if not tails:
                return None
            parts.append(tails)
        address = row.parent
        while address != self.digest:
            variants = self.at.get(address)
            if variants is None:
                return None
            parts.append(variants)
            address = self.entries[variants[0]].parent
        return parts


def _address(parent: bytes, tokens: bytes) -> bytes:
    return hashlib.sha256(parent + tokens).digest()


def _owner(digest: bytes, description: bytes, sizes: list[int], rows: int) -> Owner:
    try:
        who = msgspec.json.decode(description, type=Identity)
    except ValueError:
        return Owner(digest, b"", "", {}, len(sizes), sum(sizes), rows)
    engine = dict(who.engine)
    return Owner(digest, who.fingerprint, who.quant_type, engine, len(sizes), sum(sizes), rows)


def _opened(path: Path) -> Container:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return Container(0, path, fd, read_head(fd), owned=False)
    except BaseException:
        os.close(fd)
        raise


def _listed(path: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as items:
            return [
                item
                for item in items
                if item.name.endswith((_SUFFIX, ".kvc")) and item.is_file(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return []


def _taken(path: Path) -> dict[str, int]:
    """Return the bytes on disk of each container."""
    found = {}
    for item in _listed(path):
        with contextlib.suppress(FileNotFoundError):
            if item.name.endswith(_SUFFIX):
                found[item.name] = item.stat(follow_symlinks=False).st_blocks * 512
    return found
