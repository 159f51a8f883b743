"""A directory of containers: room, announcements, sharing, damage."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from erllama_py._cache import container
from erllama_py._cache import directory as module
from erllama_py._cache.blockfile import ALIGN, pack_head
from erllama_py._cache.container import read_head
from erllama_py._cache.directory import Directory
from tests.containers import (
    DESCRIPTIONS,
    ONE,
    QUOTA,
    TWO,
    content,
    entry,
    number_of,
    opened,
    payload,
    put,
    sizes,
    whole,
)

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "kv"


@pytest.fixture
def directory(path):
    made = opened(path)
    yield made
    made.close()


@pytest.fixture
def other(path):
    """A process of its own on the same directory, with entries 100 and up."""
    with Other(path) as process:
        yield process


class Other:
    """Speaks the lines of :mod:`tests.container_process`."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-m", "tests.container_process", str(path)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self):
        return self

    def ask(self, *words: object) -> list[int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(*words, file=self.process.stdin, flush=True)
        return [int(word) for word in self.process.stdout.readline().split()]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __exit__(self, *_):
        self.kill()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


def only_file(path: Path) -> Path:
    (found,) = path.glob("*.blk")
    return found


def fill(directory: Directory, size: int = 5000, digest: bytes = ONE):
    return put(directory, range(10_000), size, digest)


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


# -- several processes -----------------------------------------------------------------------


def test_a_live_processs_entries_are_read_and_left_alone(directory, path, other):
    other.ask("put", 3)
    found = directory.load(ONE)
    assert sorted(number_of(one) for _, one, _ in found) == [100, 101, 102]
    assert not any(ours for _, _, ours in found)
    assert all(payload(directory, spot, one) is not None for spot, one, _ in found)
    directory.free([spot for spot, _, _ in found])
    directory.touch(found[0][0], 9, 9)
    ((mine, _),) = put(directory, [1])
    assert mine.file not in {spot.file for spot, _, _ in found}
    assert other.ask("there") == [100, 101, 102]
    with pytest.raises(ValueError, match="not within"):
        directory.write(found[0][0], b"x")


def test_a_second_look_shows_what_is_new_of_a_live_process(directory, other):
    other.ask("put", 2)
    assert len(directory.load(ONE)) == 2
    assert directory.load(ONE) == []
    other.ask("put", 20)
    fresh = directory.load(ONE)
    assert sorted(number_of(one) for _, one, _ in fresh) == list(range(102, 122))
    other.ask("touch", 5)
    assert directory.load(ONE) == []
    other.ask("free", number_of(fresh[0][1]))
    assert directory.load(ONE) == []


def test_what_a_dead_process_left_is_taken_over(directory, other):
    other.ask("put", 5)
    before = directory.load(ONE)
    other.kill()
    after = directory.load(ONE)
    assert [item[:2] for item in after] == [item[:2] for item in before]
    assert all(ours for _, _, ours in after)
    assert directory.load(ONE) == []
    directory.free([after[0][0]])


def test_two_processes_never_exceed_the_quota_together(directory, path, other):
    mine, theirs = [], []
    for number in range(1000):
        got = put(directory, [number])
        also = other.ask("put", 1)
        mine += got
        theirs += also
        assert sizes(path) <= QUOTA
        if not got and not also:
            break
    assert len(mine) > 20
    assert len(theirs) > 20
    assert sizes(path) > QUOTA * 0.9


def test_growing_at_once_does_not_exceed_the_quota(path):
    with Other(path) as one, Other(path) as two:
        for process in (one, two):
            process.ask("put", 0)  # up, or the other may be done before it is
        for process in (one, two):
            assert process.process.stdin is not None
            process.process.stdin.write("put 100000\n")
            process.process.stdin.flush()
        largest = 0
        while one.process.poll() is None and largest <= QUOTA:
            largest = max(largest, sizes_while_changing(path))
            if largest > QUOTA * 0.99:
                break
        assert one.process.stdout is not None
        assert two.process.stdout is not None
        counts = [len(each.process.stdout.readline().split()) for each in (one, two)]
        assert sizes(path) <= QUOTA
        assert largest <= QUOTA
        assert sum(counts) > 0, "who gets how much is the system's affair"


def sizes_while_changing(path: Path) -> int:
    try:
        return sizes(path)
    except FileNotFoundError:  # renamed meanwhile
        return 0


def test_a_removed_file_of_another_process_is_forgotten(directory, other):
    other.ask("put", 1)
    ((spot, one, _),) = directory.load(ONE)
    other.ask("free", 100)
    other.ask("drop")
    assert payload(directory, spot, one) is None
    assert directory.load(ONE) == []
    assert not directory.read_into(spot, 10, bytearray(10))


def test_a_forked_child_neither_keeps_nor_frees_the_locks(directory, path):
    put(directory, [1])
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:  # pragma: no cover - another process
        try:
            os.close(write_end)
            directory.abandon()
            os.read(read_end, 1)
        finally:
            os._exit(0)
    try:
        os.close(read_end)
        probe = opened(path)
        ((_, _, ours),) = probe.load(ONE)
        assert not ours, "the child freed the lock"
        probe.close()
        directory.close()
        probe = opened(path)
        ((_, _, ours),) = probe.load(ONE)
        assert ours, "the child kept the lock"
        probe.close()
    finally:
        os.close(write_end)
        os.waitpid(child, 0)


def test_close_in_a_forked_child_leaves_the_parents_locks(directory, path):
    put(directory, [1])
    child = os.fork()
    if not child:  # pragma: no cover - another process
        directory.close()
        os._exit(0)
    os.waitpid(child, 0)
    probe = opened(path)
    ((_, _, ours),) = probe.load(ONE)
    assert not ours
    probe.close()


def test_threads_share_a_directory(directory, path):
    batches: list[list] = [[] for _ in range(4)]

    def work(which: int) -> None:
        for step in range(10):
            got = put(directory, [which * 1000 + step * 2, which * 1000 + step * 2 + 1])
            batches[which] += got
            if step % 3 == 2:
                spot, _ = batches[which].pop(0)
                directory.free([spot])

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    expected = {number_of(one) for batch in batches for _, one in batch}
    assert sizes(path) <= QUOTA
    directory.close()
    after = opened(path)
    assert set(whole(after)) == expected
    after.close()


# -- files of nobody ---------------------------------------------------------------------------


def test_idle_files_are_listed_oldest_first_and_removed(directory, path):
    put(directory, [1], 30_000, ONE)
    put(directory, [2], 30_000, TWO)
    assert directory.idle() == []
    directory.close()
    files = {read_head_of(one).digest: one for one in path.glob("*.blk")}
    os.utime(files[ONE], (1000, 1000))
    os.utime(files[TWO], (2000, 2000))
    after = opened(path)
    (first, second) = after.idle()
    assert (first[0], second[0]) == (1000, 2000)
    assert after.path_of(first[1]) == files[ONE]
    assert first[2] == files[ONE].stat().st_blocks * 512
    assert after.used == first[2] + second[2]
    after.load(TWO)
    assert after.idle() == [first]
    assert after.remove(second[1]) == 0, "it is in use"
    assert after.remove(first[1]) == first[2]
    assert after.remove(first[1]) == 0
    assert list(path.glob("*.blk")) == [files[TWO]]
    after.close()


def test_files_of_live_processes_are_not_idle(directory, other):
    other.ask("put", 1)
    assert directory.idle() == []
    other.kill()
    ((_, number, _),) = directory.idle()
    with directory.path_of(number).open("rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert directory.remove(number) == 0
    assert directory.remove(number) > 0


def test_files_with_another_block_length_are_not_loaded(directory, path):
    put(directory, [1])
    directory.close()
    after = opened(path, block=8)
    assert after.load(ONE) == []
    ((_, number, _),) = after.idle()
    assert after.remove(number) > 0
    after.close()


def read_head_of(path: Path):
    with path.open("rb") as file:
        return read_head(file.fileno())


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


def test_dead_parts_are_removed_and_live_ones_stay(path):
    path.mkdir()
    dead, live = path / ("a" * 16 + ".part"), path / ("b" * 16 + ".part")
    dead.write_bytes(b"")
    live.write_bytes(bytes(5000))
    with live.open("rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        directory = opened(path)
        assert not dead.exists()
        assert live.exists()
        assert directory.capacity == 5000
        directory.close()
    opened(path).close()
    assert not live.exists()


def test_the_lock_file_may_be_deleted(directory, path):
    put(directory, [1])
    (path / ".lock").unlink()
    assert len(fill(directory)) > 10
    assert (path / ".lock").exists()


def test_the_directory_may_be_deleted_and_comes_back(directory, path):
    shutil.rmtree(path)
    assert len(fill(directory)) > 10
    assert (path / ".lock").exists()
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_come_back_closes_no_file_of_anybody_else(directory, path):
    shutil.rmtree(path)
    path.write_bytes(b"in its place")
    assert put(directory, [1]) == []
    # The lock's number is given to the next file that is opened.
    reading, writing = os.pipe()
    assert put(directory, [2]) == []
    os.write(writing, b"still open")
    assert os.read(reading, 99) == b"still open"
    os.close(reading)
    os.close(writing)


# -- damage --------------------------------------------------------------------------------------


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
