"""One file of a row, as somebody finds it: read, checked, its hit count rewritten.

Whoever put it there may have died, and may have been anyone: opening never waits, follows
no link, and nothing is believed that was not checked.  A payload is only read to be summed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from erllama_py._cache import kvc
from erllama_py._cache.checksum import crc
from erllama_py._cache.kvc import BadKvc, Facts
from erllama_py.errors import refusal_of

__all__ = (
    "ROW_NAME",
    "Entry",
    "check_entry",
    "is_damage",
    "opened",
    "opened_row",
    "read_entry",
    "touch_hits",
)

ROW_NAME: Final = re.compile(r"[0-9a-f]{64}\.kvc")
"""Of a row's file under its key."""

_CHUNK: Final = 1 << 20
"""Bytes of a payload read at a time."""


class Entry(NamedTuple):
    """A row found in a file; its payload is not checked yet."""

    key: bytes
    path: Path
    header: bytes
    """48 bytes."""
    facts: Facts

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.facts.size


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file to be read for the length of a ``with`` block.

    :raises OSError: it cannot be, or is a link.
    """
    # A FIFO of that name must not make anyone wait.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def opened_row(path: Path) -> Iterator[tuple[int, Entry]]:
    """Open the file of one row, of any name, and read all but its payload.

    A name that is a key must be the row's own.  Yields its descriptor too.

    :raises BadKvc: it is not a whole file, or not the one its name says.
    :raises ErllamaError: the system's reason.
    """
    with contextlib.ExitStack() as stack:
        try:
            fd = stack.enter_context(opened(path.resolve()))
            entry = _entry(fd, path)
        except OSError as error:
            raise refusal_of(error, path) from error
        if ROW_NAME.fullmatch(path.name):
            kvc.check_key(entry.facts, bytes.fromhex(path.stem))
        yield fd, entry


def read_entry(path: Path) -> Entry:
    """Read what a file says; neither payload nor name are checked.

    :raises BadKvc: it is not a whole file.
    :raises OSError: it cannot be read.
    """
    with opened(path) as fd:
        return _entry(fd, path)


def check_entry(path: Path, key: bytes) -> Entry:
    """Read a file and check everything in it, without keeping its payload.

    :raises BadKvc: it is not a whole file, damaged, or another key's.
    :raises OSError: it cannot be read.
    """
    with opened(path) as fd:
        found = _entry(fd, path)
        kvc.check_key(found.facts, key)
        kvc.check_crc(found.facts, payload_crc(fd, found.facts))
    return found


def payload_crc(fd: int, facts: Facts) -> int:
    """Sum a payload."""
    total = 0
    for at in range(facts.payload_offset, facts.size, _CHUNK):
        total = crc(os.pread(fd, min(_CHUNK, facts.size - at), at), total)
    return total


def is_damage(error: BadKvc) -> bool:
    """Whether a file is of no use to anybody, as opposed to a later version's."""
    reason = error.reason
    return not (isinstance(reason, tuple) and reason[0] == "unsupported_version")


def touch_hits(path: Path, hits: int) -> None:
    """Write a row's hit count into its file.  Best effort: the file may be gone."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.pwrite(fd, (hits & 0xFFFFFFFF).to_bytes(4, "little"), kvc.HITS_OFFSET)
        finally:
            os.close(fd)


def _entry(fd: int, path: Path) -> Entry:
    size = os.fstat(fd).st_size
    head = os.pread(fd, kvc.FIXED_BYTES, 0)
    data = os.pread(fd, kvc.prefix_length(head, size), 0)
    facts = kvc.parse_meta(data, size)
    return Entry(kvc.key_of(facts.meta), path, data[: kvc.HEADER_BYTES], facts)
