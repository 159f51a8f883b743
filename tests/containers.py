"""Directories of containers whose entries and payloads are told by a number.

The payload of entry N is made of N alone, so that whatever a directory gives back can be
compared with what was written for these tokens.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

from erllama_py._cache.blockfile import Entry, Head, Spot
from erllama_py._cache.checksum import crc
from erllama_py._cache.container import read_head
from erllama_py._cache.directory import Directory
from erllama_py._cache.grade import streamed
from erllama_py._cache.key import decode_tokens, encode_tokens

ONE, TWO = b"\x01" * 32, b"\x02" * 32
DESCRIPTIONS = {ONE: b"one", TWO: b"two"}
QUOTA = 1 << 20
SIZES = {"file_bytes": 64 << 10, "table_rows": 16, "block": 4}


def opened(path: Path, quota: int = QUOTA, **options) -> Directory:
    """Open a directory of small files."""
    return Directory(path, quota, numbers=itertools.count(1).__next__, **{**SIZES, **options})


def content(number: int, size: int) -> bytes:
    """Return the payload of an entry."""
    return hashlib.shake_128(number.to_bytes(8, "little")).digest(size)


def entry(number: int, size: int, **changes) -> Entry:
    """Return an entry for a payload of so many bytes."""
    facts = {
        "kind": "block",
        "parent": bytes(32),
        "start": 0,
        "length": 2,
        "key": bytes(32),
        "tokens": encode_tokens([number, size]),
        "grade": streamed(1),
        "nbytes": size,
        "crc": crc(content(number, size)),
        "reason": "",
        "canonical": 0,
        "created": 1_700_000_000,
    }
    return Entry(**{**facts, **changes})


def put(
    directory: Directory, numbers: Sequence[int], size: int = 5000, digest: bytes = ONE
) -> list[tuple[Spot, Entry]]:
    """Write and commit entries as one batch; stop where there is no room."""
    batch: list[tuple[Spot, Entry]] = []
    for number in numbers:
        spot = directory.take(digest, DESCRIPTIONS[digest], size)
        if spot is None:
            break
        directory.write(spot, content(number, size))
        batch.append((spot, entry(number, size)))
    directory.commit(batch)
    return batch


def number_of(one: Entry) -> int:
    """Return which entry it is."""
    return decode_tokens(one.tokens)[0]


def payload(directory: Directory, spot: Spot, one: Entry) -> bytes | None:
    """Return an entry's payload if it passes its checksum."""
    data = bytearray(one.nbytes)
    if not directory.read_into(spot, one.nbytes, data) or crc(data) != one.crc:
        return None
    return bytes(data)


def whole(directory: Directory, digest: bytes = ONE) -> dict[int, Spot]:
    """Load an identity; return its entries by number.  Each must be as it was written."""
    found: dict[int, Spot] = {}
    for spot, one, _ in directory.load(digest):
        number = number_of(one)
        assert number not in found, f"entry {number} is there twice"
        assert payload(directory, spot, one) == content(number, one.nbytes)
        found[number] = spot
    return found


def sizes(path: Path) -> int:
    """Return the sum of lengths of the containers, made or being made."""
    files = [*path.glob("*.blk"), *path.glob("*.part")]
    return sum(one.stat().st_size for one in files)


def only_file(path: Path) -> Path:
    """Return the only container of a directory."""
    (found,) = path.glob("*.blk")
    return found


def fill(directory: Directory, size: int = 5000, digest: bytes = ONE) -> list[tuple[Spot, Entry]]:
    """Write entries until there is no room."""
    return put(directory, range(10_000), size, digest)


def read_head_of(path: Path) -> Head:
    """Return the head of a container."""
    with path.open("rb") as file:
        return read_head(file.fileno())
