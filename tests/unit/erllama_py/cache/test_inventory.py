"""What a disk tier holds, seen and tidied without a core."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from erllama_py._cache.directory import Directory
from erllama_py._cache.inventory import prune, survey
from erllama_py._cache.key import encode_tokens
from tests.containers import DESCRIPTIONS, ONE, TWO, content, entry, opened

BLOCK = 64
SIZE = 5000
LOGITS = 4000
FIRST, SECOND, LOST = b"\xa1" * 32, b"\xa2" * 32, b"\xa3" * 32


def address(parent: bytes, tokens: bytes) -> bytes:
    return hashlib.sha256(parent + tokens).digest()


def chain(digest: bytes) -> list:
    """Three blocks and a tail, and rows: of two blocks and part of the tail, of one block,
    and of a block that is not there.  The last block belongs to no row."""
    one, two, three = (encode_tokens(range(n, n + BLOCK)) for n in (0, 100, 200))
    tail = encode_tokens(range(300, 305))
    at_one = address(digest, one)
    at_two = address(at_one, two)
    row = {"kind": "row", "grade": None, "reason": "finish", "nbytes": 0, "crc": 0}
    return [
        entry(1, SIZE, parent=digest, tokens=one, length=BLOCK),
        entry(2, SIZE, parent=at_one, start=BLOCK, tokens=two, length=BLOCK),
        entry(3, SIZE, parent=at_two, start=2 * BLOCK, tokens=three, length=BLOCK),
        entry(4, SIZE, parent=at_two, start=2 * BLOCK, tokens=tail, length=5),
        entry(0, 0, parent=at_two, tokens=tail[:12], length=131, key=FIRST, used=20, **row),
        entry(5, LOGITS, **row | {"nbytes": LOGITS, "crc": 9}, parent=at_two, tokens=tail[:12],
              length=131, key=FIRST, hits=7),
        entry(0, 0, parent=at_one, tokens=b"", length=BLOCK, key=SECOND, **row),
        entry(0, 0, parent=bytes(32), tokens=b"", length=640, key=LOST, **row),
    ]  # fmt: skip


def fill(path: Path, *digests: bytes) -> Directory:
    directory = opened(path, block=BLOCK, file_bytes=256 << 10, quota=8 << 20)
    for digest in digests:
        for number, one in enumerate(chain(digest)):
            spot = directory.take(digest, DESCRIPTIONS[digest], one.nbytes)
            assert spot is not None
            if one.nbytes:
                directory.write(spot, content(number, one.nbytes))
            directory.commit([(spot, one)])
    return directory


def keys(path: Path) -> set[bytes]:
    return {row.key for row in survey(path).rows}


def entries(path: Path) -> list[tuple[str, int]]:
    """What a core that opens the directory would find of the first identity."""
    directory = opened(path, block=BLOCK)
    found = [(one.kind, one.start) for _, one, _ in directory.load(ONE)]
    directory.close()
    return sorted(found)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def test_rows_are_told_with_what_they_take_and_whether_they_are_whole(path: Path) -> None:
    fill(path, ONE).close()
    found = survey(path)
    rows = {row.key: row for row in found.rows}
    first = rows[FIRST]
    assert (first.tokens, first.hits, first.reason, first.whole) == (131, 7, "finish", True)
    assert first.nbytes == 3 * SIZE + LOGITS
    assert rows[SECOND].nbytes == SIZE
    assert not rows[LOST].whole
    (owner,) = found.owners
    assert (owner.digest, owner.rows, owner.files) == (ONE, 3, 1)
    assert found.capacity == sum(file.stat().st_size for file in path.glob("*.blk"))


def test_looking_changes_nothing_and_needs_no_lock(path: Path) -> None:
    directory = fill(path, ONE)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    assert len(survey(path).rows) == 3, "a live process has the file"
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    directory.close()


def test_a_directory_that_is_not_there_is_empty_and_not_made(path: Path) -> None:
    assert survey(path).rows == []
    assert prune(path, lambda _: True).rows == 0
    assert not path.exists()


def test_a_removed_row_takes_what_no_other_needs(path: Path) -> None:
    fill(path, ONE).close()
    gone = prune(path, lambda row: row.key == FIRST)
    assert (gone.rows, gone.busy) == (2, 0), "and the one that led nowhere"
    assert gone.freed > 0
    assert keys(path) == {SECOND}
    # The block after those removed could not be reached any more.
    assert entries(path) == [("block", 0), ("row", 0)]


def test_tidying_removes_what_leads_nowhere_and_keeps_heads_of_prompts(path: Path) -> None:
    fill(path, ONE).close()
    assert prune(path, lambda _: False).rows == 1
    assert keys(path) == {FIRST, SECOND}
    assert ("block", 2 * BLOCK) in entries(path)
    prune(path, lambda _: False, unfiled=True)
    kept = entries(path)
    assert kept.count(("block", 2 * BLOCK)) == 1, "the tail, not the block of no row"


def test_one_models_rows_may_go_alone(path: Path) -> None:
    fill(path, ONE, TWO).close()
    prune(path, lambda row: row.owner == TWO, unfiled=True)
    assert {row.owner for row in survey(path).rows} == {ONE}
    assert [owner.digest for owner in survey(path).owners] == [ONE], "its empty file is gone"


def test_what_a_live_process_has_stays_and_is_counted(path: Path) -> None:
    directory = fill(path, ONE)
    gone = prune(path, lambda _: True, unfiled=True)
    assert (gone.rows, gone.files, gone.busy) == (0, 0, 3)
    assert keys(path) == {FIRST, SECOND, LOST}
    directory.close()
    assert prune(path, lambda _: True, unfiled=True).rows == 3
    assert list(path.glob("*.blk")) == []


def test_files_of_others_are_counted_and_left(path: Path) -> None:
    fill(path, ONE).close()
    (path / "0123456789abcdef.blk").write_bytes(b"something else")
    (path / f"{'ab' * 32}.kvc").write_bytes(b"12345")
    found = survey(path)
    assert (found.foreign, found.named, found.named_bytes) == (1, 1, 5)
    prune(path, lambda _: True, unfiled=True)
    assert sorted(file.name for file in path.iterdir() if file.name != ".lock") == [
        "0123456789abcdef.blk",
        f"{'ab' * 32}.kvc",
    ]
