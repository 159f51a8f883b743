"""A directory of containers: what is written is there, the quota, what is freed."""

from __future__ import annotations

import os
import sys

import pytest

from erllama_py._cache import directory as module
from erllama_py._cache.blockfile import ALIGN
from tests.containers import (
    DESCRIPTIONS,
    ONE,
    QUOTA,
    TWO,
    content,
    entry,
    fill,
    only_file,
    opened,
    payload,
    put,
    sizes,
    whole,
)

# -- what is written is there --------------------------------------------------------------


def test_the_directory_is_private(directory, path):
    assert path.stat().st_mode & 0o777 == 0o700
    put(directory, [1])
    assert only_file(path).stat().st_mode & 0o777 == 0o600


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(OSError, match="file"):
        opened(tmp_path / "file")


def test_entries_are_there_for_the_next_process(directory, path):
    batch = put(directory, range(30))
    assert len(batch) == 30
    directory.close()
    after = opened(path)
    assert set(whole(after)) == set(range(30))
    assert after.load(ONE) == []
    after.close()


def test_all_kinds_round_trip(directory, path):
    data = content(1, 9000)
    row = entry(
        1, 9000, kind="row", grade=None, key=b"\x07" * 32, length=9, reason="finish", canonical=8
    )
    bare = entry(2, 0, kind="row", grade=None, key=b"\x08" * 32, reason="evict", nbytes=0, crc=0)
    one = entry(3, 9000, kind="whole", key=b"\x09" * 32, tokens=b"", length=100)
    spots = [directory.take(ONE, b"one", size) for size in (9000, 0, 9000)]
    assert None not in spots
    assert (spots[1].offset, spots[1].size) == (0, 0)
    for spot in (spots[0], spots[2]):
        directory.write(spot, data)
    directory.commit(list(zip(spots, (row, bare, one), strict=True)))
    directory.close()
    after = opened(path)
    found = after.load(ONE)
    assert [item[1] for item in found] == [row, bare, one]
    assert all(ours for _, _, ours in found)
    assert after.read_into(found[1][0], 0, bytearray())
    after.close()


def test_what_is_not_committed_is_not_there(directory, path):
    put(directory, [1])
    spot = directory.take(ONE, b"one", 5000)
    directory.write(spot, content(2, 5000))
    directory.close()
    after = opened(path)
    assert set(whole(after)) == {1}
    after.close()


def test_a_payload_can_be_written_in_parts_and_not_beyond_its_room(directory):
    data = content(1, 12000)
    spot = directory.take(ONE, b"one", len(data))
    for at in range(0, len(data), 5000):
        directory.write(spot._replace(offset=spot.offset + at), data[at : at + 5000])
    one = entry(1, len(data))
    directory.commit([(spot, one)])
    assert payload(directory, spot, one) == data
    for wrong in (spot._replace(offset=spot.offset - 1), spot._replace(offset=spot.offset + 289)):
        with pytest.raises(ValueError, match="not within"):
            directory.write(wrong, data)
    directory.free([spot])
    with pytest.raises(ValueError, match="not within"):
        directory.write(spot, data)


def test_touches_survive(directory, path):
    ((spot, _),) = put(directory, [1])
    directory.touch(spot, 7, 1_800_000_000)
    directory.close()
    after = opened(path)
    ((_, found, _),) = after.load(ONE)
    assert (found.hits, found.used) == (7, 1_800_000_000)
    assert after.corrupt == 0
    after.close()


def test_a_touch_of_what_is_freed_or_not_committed_changes_nothing(directory, path):
    ((spot, _),) = put(directory, [1])
    directory.free([spot])
    directory.touch(spot, 7, 7)
    early = directory.take(ONE, b"one", 10)
    directory.touch(early, 7, 7)
    data = only_file(path).read_bytes()
    assert not any(data[ALIGN : 2 * ALIGN])


def test_identities_are_known_before_they_are_read(directory, path):
    put(directory, [1], digest=ONE)
    put(directory, [2], digest=TWO)
    assert directory.identities() == DESCRIPTIONS
    directory.close()
    after = opened(path)
    assert after.identities() == DESCRIPTIONS
    assert set(whole(after, TWO)) == {2}
    assert set(whole(after, ONE)) == {1}
    after.close()


def test_descriptors_read_and_do_not_carry_the_lock(directory, path):
    ((spot, one),) = put(directory, [1])
    fd, size = directory.descriptor(spot.file)
    assert directory.path_of(spot.file) == only_file(path)
    assert size == only_file(path).stat().st_size
    assert os.pread(fd, one.nbytes, spot.offset) == content(1, one.nbytes)
    with pytest.raises(OSError, match="Bad file"):
        os.pwrite(fd, b"x", 0)
    directory.close()
    after = opened(path)
    ((_, _, ours),) = after.load(ONE)
    assert ours, "the descriptor kept the lock"
    os.close(fd)
    after.close()


def test_numbers_that_name_nothing(directory):
    spot = put(directory, [1])[0][0]
    for ask in (directory.descriptor, directory.path_of):
        with pytest.raises(KeyError):
            ask(99)
    wrong = spot._replace(file=99)
    assert not directory.read_into(wrong, 5, bytearray(5))
    directory.free([wrong])
    directory.touch(wrong, 1, 1)
    with pytest.raises(FileNotFoundError):
        directory.write(wrong, b"x")
    with pytest.raises(FileNotFoundError):
        directory.commit([(wrong, entry(1, 5000))])


def test_a_closed_directory_stores_nothing(directory):
    ((spot, _),) = put(directory, [1])
    directory.close()
    directory.close()
    assert directory.take(ONE, b"one", 1) is None
    assert not directory.read_into(spot, 5, bytearray(5))


# -- the quota -----------------------------------------------------------------------------


@pytest.mark.parametrize("quota", [0, 4096, 20_000, 100_000, 333_333, 1 << 20, 5 << 20])
@pytest.mark.parametrize("size", [1, 5000, 90_000])
def test_the_quota_is_never_exceeded(path, quota, size):
    directory = opened(path, quota)
    count = 0
    while put(directory, [count], size):
        count += 1
        assert sizes(path) == directory.capacity <= quota
        assert directory.used <= directory.capacity
        if count > 150:
            break
    room = -(-size // ALIGN) * ALIGN
    # A table of eight rows and a head are 3 pages in a file of blocks of four tokens.
    assert (count > 0) == (quota >= room + 2 * ALIGN)
    directory.close()


def test_a_payload_larger_than_files_gets_one_of_its_own(directory, path):
    ((spot, one),) = put(directory, [1], 300_000)
    assert payload(directory, spot, one) == content(1, 300_000)
    assert only_file(path).stat().st_size > 300_000
    assert put(directory, [2], 2 * QUOTA) == []


def test_files_are_sparse(path):
    directory = opened(path, 1 << 30, file_bytes=64 << 20, table_rows=1024)
    put(directory, [1])
    facts = only_file(path).stat()
    assert facts.st_size == 64 << 20
    assert facts.st_blocks * 512 < 1 << 20
    directory.close()


def test_many_entries_without_payload_fill_tables(directory):
    bare = entry(2, 0, kind="row", grade=None, key=b"\x08" * 32, reason="evict", nbytes=0, crc=0)
    spots = [directory.take(ONE, b"one", 0) for _ in range(50)]
    directory.commit([(spot, bare) for spot in spots])
    assert len({spot[:2] for spot in spots}) == 50
    assert len({spot.file for spot in spots}) == 4


def test_a_quota_that_shrank_lets_nothing_grow(directory, path):
    batch = fill(directory)
    directory.close()
    after = opened(path, QUOTA // 2)
    found = whole(after)
    assert len(found) == len(batch)
    assert after.capacity > after.quota
    assert after.take(ONE, b"one", 5000) is None
    by_file: dict[int, list] = {}
    for spot in found.values():
        by_file.setdefault(spot.file, []).append(spot)
    for spots in by_file.values():
        if after.capacity <= after.quota:
            break
        after.free(spots)
        assert after.drop_empty() > 0
    assert 0 < sizes(path) <= after.quota
    after.close()


# -- freeing -------------------------------------------------------------------------------


def test_room_is_granted_again_only_after_a_sync(directory, monkeypatch):
    batch = fill(directory)
    synced: list[int] = []
    real = module._sync

    def sync(fd):
        synced.append(fd)
        real(fd)

    monkeypatch.setattr(module, "_sync", sync)
    spots = [spot for spot, _ in batch[:3]]
    directory.free(spots)
    with directory._lock:
        assert directory._fit(ONE, 8192) is None
    assert synced == []
    again = directory.take(ONE, b"one", 5000)
    assert synced
    assert again[1:] in {spot[1:] for spot in spots}


def test_room_that_was_never_announced_needs_no_sync(directory, monkeypatch):
    spot = directory.take(ONE, b"one", 100)
    monkeypatch.setattr(module, "_sync", None)
    directory.free([spot])
    assert directory.take(ONE, b"one", 100) == spot


def test_freed_entries_are_gone_and_their_bytes_go_back(directory, path):
    batch = put(directory, range(4), 9000)
    before = only_file(path).stat().st_blocks
    used = directory.used
    directory.free([spot for spot, _ in batch[1:]])
    directory.sync()
    assert directory.used == used - 3 * 12288
    if sys.platform == "linux":
        assert (
            only_file(path).stat().st_blocks <= before - 2 * 12288 // 512
        )  # less a page of the file system's
    directory.close()
    after = opened(path)
    assert set(whole(after)) == {0}
    assert after.corrupt == 0
    after.close()


def test_nothing_is_freed_twice(directory):
    ((spot, _),) = put(directory, [1])
    directory.free([spot])
    with pytest.raises(ValueError, match="not granted"):
        directory.free([spot])
    with pytest.raises(ValueError, match="not granted"):
        directory.commit([(spot, entry(1, 5000))])


def test_another_identity_gets_the_quota_of_files_that_fell_empty(directory, path):
    batch = fill(directory, digest=ONE)
    assert put(directory, [1], digest=TWO) == []
    first = [spot for spot, _ in batch if spot.file == batch[0][0].file]
    directory.free(first)
    assert put(directory, [1], digest=TWO)
    assert sizes(path) <= QUOTA
    with pytest.raises(KeyError):
        directory.path_of(first[0].file)
    directory.close()
    after = opened(path)
    assert len(whole(after)) == len(batch) - len(first)
    assert set(whole(after, TWO)) == {1}
    after.close()


def test_a_reader_keeps_a_removed_file_open(directory):
    ((spot, _),) = put(directory, [1])
    with directory._using(spot.file) as one:
        directory.free([spot])
        assert directory.drop_empty() > 0
        assert os.pread(one.fd, 8, 0) == b"erllamaB"
    assert one.fd == -1
