"""Several processes and threads on one directory, and files of nobody."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.containers import (
    ONE,
    QUOTA,
    TWO,
    fill,
    number_of,
    opened,
    payload,
    put,
    read_head_of,
    sizes,
    whole,
)

ROOT = Path(__file__).resolve().parents[4]


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


# -- several processes ---------------------------------------------------------------------


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


# -- files of nobody -----------------------------------------------------------------------


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
