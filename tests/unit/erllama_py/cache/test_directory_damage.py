"""What a disk that fails, somebody else's file and flipped bits do to a directory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from erllama_py._cache import container
from erllama_py._cache import directory as module
from erllama_py._cache.blockfile import pack_head
from erllama_py._cache.directory import Directory
from tests.containers import (
    ONE,
    content,
    entry,
    fill,
    number_of,
    only_file,
    opened,
    put,
    read_head_of,
    sizes,
    whole,
)

# -- errors of the disk --------------------------------------------------------------------


class Disk:
    """Lets some calls of the system fail."""

    def __init__(self, monkeypatch) -> None:
        self.full = False
        self.broken = False
        self.partly = False
        self.real_write, self.real_sync = os.pwrite, module._sync
        monkeypatch.setattr(container.os, "pwrite", self.write)
        monkeypatch.setattr(module, "_sync", self.sync)

    def write(self, fd, data, offset):
        if self.full:
            if self.partly:
                self.real_write(fd, data[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.real_write(fd, data, offset)

    def sync(self, fd):
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")
        self.real_sync(fd)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def test_a_full_disk_leaves_the_spot_to_be_freed(directory, disk):
    put(directory, [1])
    spot = directory.take(ONE, b"one", 5000)
    disk.full = disk.partly = True
    with pytest.raises(OSError, match="No space"):
        directory.write(spot, content(2, 5000))
    directory.free([spot])
    disk.full = False
    assert put(directory, [3])[0][0] == spot


def test_a_file_that_cannot_be_made_is_no_room_and_leaves_nothing(directory, path, disk):
    disk.full = disk.partly = True
    assert directory.take(ONE, b"one", 5000) is None
    assert [one.name for one in path.iterdir()] == [".lock"]
    disk.full = False
    assert put(directory, [1])


def test_rows_that_cannot_be_written_are_not_announced(directory, path, disk):
    put(directory, [1])
    spots = [directory.take(ONE, b"one", 5000) for _ in range(2)]
    for number, spot in enumerate(spots):
        directory.write(spot, content(number, 5000))
    disk.full = disk.partly = True
    with pytest.raises(OSError, match="No space"):
        directory.commit([(spot, entry(number, 5000)) for number, spot in enumerate(spots)])
    disk.full = False
    directory.free(spots)
    directory.close()
    after = opened(path)
    assert set(whole(after)) == {1}
    assert after.corrupt == 0
    after.close()


@pytest.mark.parametrize("at", [0, 1])
def test_a_sync_that_fails_announces_nothing(directory, path, disk, monkeypatch, at):
    put(directory, [1])
    spot = directory.take(ONE, b"one", 5000)
    directory.write(spot, content(2, 5000))
    calls = iter(range(10))

    def sync(fd):
        disk.broken = next(calls) == at
        disk.sync(fd)

    monkeypatch.setattr(module, "_sync", sync)
    with pytest.raises(OSError, match="Input/output"):
        directory.commit([(spot, entry(2, 5000))])
    directory.free([spot])
    directory.close()
    after = opened(path)
    assert set(whole(after)) == {1}
    after.close()


def test_room_stays_set_aside_while_its_row_cannot_be_zeroed(directory, disk):
    batch = fill(directory)
    spots = [spot for spot, _ in batch[:2]]
    disk.full = True
    directory.free(spots)
    assert directory.take(ONE, b"one", 5000) is None
    disk.full = False
    disk.broken = True
    assert directory.take(ONE, b"one", 5000) is None
    disk.broken = False
    assert directory.take(ONE, b"one", 5000)[1:] in {spot[1:] for spot in spots}


# -- files of nobody -----------------------------------------------------------------------


def test_what_is_not_ours_is_left_alone_and_counted(path):
    path.mkdir()
    future = bytearray(pack_head(read_only_head()))
    future[8] = 2
    foreign = {
        "a.tmp": b"t" * 100,
        "b.kvc": b"KVC\x01",
        "unknown.blk": b"something else" * 100,
        "empty.blk": b"",
        "0123456789abcdef.blk": bytes(future) + bytes(9000),
        "mine.part": b"p" * 50,
    }
    for name, data in foreign.items():
        (path / name).write_bytes(data)
    (path / "sub.blk").mkdir()
    (path / "link.blk").symlink_to(path / "b.kvc")
    directory = opened(path, 200_000)
    counted = 1400 + len(future) + 9000 + 50
    assert directory.capacity == counted
    assert directory.identities() == {}
    assert directory.idle() == []
    fill(directory)
    assert directory.load(ONE) == []
    assert directory.drop_empty() == 0
    assert sizes(path) - 4 <= directory.quota  # the glob follows the link
    directory.close()
    for name, data in foreign.items():
        assert (path / name).read_bytes() == data
    assert directory.corrupt == 0


def read_only_head():
    return container.Head(4, 8, ONE, b"one", 1)


# -- damage --------------------------------------------------------------------------------


def damage(file: Path, at: int, data: bytes) -> None:
    with file.open("rb+") as opened_file:
        opened_file.seek(at)
        opened_file.write(data)


def test_a_damaged_head_is_counted_and_deleted_unless_somebody_has_it(directory, path):
    put(directory, [1])
    file = only_file(path)
    damage(file, 20, b"damage")
    probe = opened(path)
    assert probe.load(ONE) == []
    assert (probe.corrupt, file.exists()) == (0, True)
    probe.close()
    directory.close()
    after = opened(path)
    assert (after.corrupt, file.exists(), after.capacity) == (1, False, 0)
    after.close()


def test_a_damaged_row_is_counted_and_zeroed(directory, path):
    batch = put(directory, range(3))
    file = only_file(path)
    row = read_head_of(file).row_at(batch[1][0].slot)
    damage(file, row + 40, b"damage")
    probe = opened(path)
    assert set(whole(probe)) == {0, 2}
    assert probe.corrupt == 0, "its owner may be writing it now"
    probe.close()
    directory.close()
    after = opened(path)
    assert set(whole(after)) == {0, 2}
    assert after.corrupt == 1
    assert not any(file.read_bytes()[row : row + 272])
    used = after.used
    put(after, [7])
    assert after.used == used + 8192, "its room is free again"
    after.close()


def test_rows_that_claim_the_same_room_cannot_both_stay(directory, path):
    batch = put(directory, range(2))
    (spot, _), (second, one) = batch
    file = only_file(path)
    head = read_head_of(file)
    row = container.pack_row(head, second.slot, one, spot.offset, spot.size)
    damage(file, head.row_at(second.slot), row)
    directory.close()
    after = opened(path)
    assert set(whole(after)) == {0}
    assert after.corrupt == 1
    after.close()


@pytest.mark.parametrize("cut", [0, 5, 4095, 4096, 4400, 9000, 13_000, 20_000, 30_000])
def test_a_file_cut_short_keeps_what_it_has(directory, path, cut):
    batch = put(directory, range(5))
    directory.close()
    file = only_file(path)
    os.truncate(file, cut)
    after = opened(path)
    found = set(whole(after))
    assert found == {number_of(one) for spot, one in batch if spot.offset + spot.size <= cut}
    assert after.capacity <= cut
    assert put(after, range(100, 110))
    assert set(whole(opened_again(after, path))) == found | set(range(100, 110))


def opened_again(directory: Directory, path: Path) -> Directory:
    directory.close()
    return opened(path)
