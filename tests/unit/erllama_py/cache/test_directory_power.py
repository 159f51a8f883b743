"""What a directory holds after a power cut: syncs are where they must be.

A run's calls to the disk are recorded.  A cut at one of them keeps what was synced before,
and of everything later any sectors, in any combination.
"""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from erllama_py._cache import container
from erllama_py._cache import directory as module
from tests import container_kills
from tests.containers import ONE, TWO, opened, whole

CUTS = 40
SECTOR = 512


class Disk:
    """Records what is done to files, by inode, and to names."""

    def __init__(self, monkeypatch) -> None:
        self.log: list[tuple] = []
        self.real = os.pwrite, os.ftruncate, Path.rename, Path.unlink, container._punch
        monkeypatch.setattr(os, "pwrite", self.write)
        monkeypatch.setattr(os, "ftruncate", self.truncate)
        monkeypatch.setattr(os, "fsync", self.sync)
        monkeypatch.setattr(module, "_sync", self.sync)
        monkeypatch.setattr(container, "_punch", self.punch)
        # Only a plain function in a class is called with the path.
        monkeypatch.setattr(Path, "rename", lambda *names: self.rename(*names))  # noqa: PLW0108
        monkeypatch.setattr(Path, "unlink", lambda path: self.unlink(path))  # noqa: PLW0108
        self.kept: list[int] = []
        """Descriptors of deleted files, so that no other gets the inode's number."""

    def write(self, fd, data, offset):
        self.log.append(("write", os.fstat(fd).st_ino, offset, bytes(data)))
        return self.real[0](fd, data, offset)

    def truncate(self, fd, size):
        self.log.append(("size", os.fstat(fd).st_ino, size))
        self.real[1](fd, size)

    def sync(self, fd):
        facts = os.fstat(fd)
        name = "names" if stat.S_ISDIR(facts.st_mode) else "sync"
        self.log.append((name, facts.st_ino))

    def punch(self, fd, offset, size):
        self.log.append(("write", os.fstat(fd).st_ino, offset, bytes(size)))
        self.real[4](fd, offset, size)

    def rename(self, path, target):
        self.log.append(("name", path.stat().st_ino, target.name))
        return self.real[2](path, target)

    def unlink(self, path):
        self.log.append(("unname", path.stat().st_ino, path.name))
        self.kept.append(os.open(path, os.O_RDONLY))
        self.real[3](path)

    def say(self, sign: str, numbers: list[int]) -> None:
        self.log.append(("said", 0, sign, numbers))


def cut(log: list[tuple], path: Path, rng: random.Random) -> None:
    """Make the directory that a power cut after ``log`` may leave."""
    last_sync = {step[1]: at for at, step in enumerate(log) if step[0] == "sync"}
    last_names = max((at for at, step in enumerate(log) if step[0] == "names"), default=-1)
    files: dict[int, bytearray] = {}
    names: dict[int, str] = {}
    for at, (what, inode, *rest) in enumerate(log):
        certain = at <= last_sync.get(inode, -1)
        data = files.setdefault(inode, bytearray())
        if what == "write":
            offset, written = rest
            for start in range(0, len(written), SECTOR):
                if certain or rng.random() < 0.5:
                    piece = written[start : start + SECTOR]
                    data.extend(bytes(max(0, offset + start + len(piece) - len(data))))
                    data[offset + start : offset + start + len(piece)] = piece
        elif what == "size" and (certain or rng.random() < 0.5):
            data.extend(bytes(max(0, rest[0] - len(data))))
        elif what in {"name", "unname"} and (at <= last_names or rng.random() < 0.5):
            if what == "name":
                names[inode] = rest[0]
            else:
                names.pop(inode, None)
    path.mkdir()
    for inode, name in names.items():
        (path / name).write_bytes(files[inode])


def said(log: list[tuple]) -> set[int]:
    """Return the numbers that were announced and not freed."""
    must: set[int] = set()
    for what, _, *rest in log:
        if what == "said":
            sign, numbers = rest
            must = must | set(numbers) if sign == "+" else must - set(numbers)
    return must


@pytest.mark.parametrize("seed", range(3))
def test_a_power_cut_leaves_whole_entries(tmp_path, seed):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        container_kills.work(tmp_path / "kv", seed, 0, disk.say)
        for fd in disk.kept:
            os.close(fd)
    rng = random.Random(seed)
    rows = 0
    for number in range(CUTS):
        log = disk.log[: rng.randrange(len(disk.log))]
        path = tmp_path / str(number)
        cut(log, path, rng)
        after = opened(path)
        found = whole(after, ONE).keys() | whole(after, TWO).keys()
        after.close()
        assert said(log) <= found, "announced entries are lost"
        rows += len(found)
    assert rows > CUTS


def test_a_cut_keeps_what_was_synced_and_may_lose_the_rest(tmp_path):
    log = [
        *[("write", 1, 0, b"a" * 1024), ("name", 1, "one"), ("names", 9), ("sync", 1)],
        *[("write", 1, 0, b"b" * 1024), ("name", 2, "two")],
    ]
    seen = set()
    for number in range(100):
        path = tmp_path / str(number)
        cut(log, path, random.Random(number))
        data = (path / "one").read_bytes()
        seen.add((data[:1] + data[512:513], (path / "two").exists()))
    assert len(seen) == 8


@pytest.mark.parametrize("which", ["first sync of a commit", "sync before room is reused"])
def test_the_test_would_see_a_sync_that_is_missing(tmp_path, monkeypatch, which):
    def unsynced(self, files):
        for one in files:
            for spot in one.unsettled().values():
                one.give_back(spot)

    def half_synced(self, files):
        for one in files:
            freed = one.unsettled()
            for spot in freed.values():
                one.give_back(spot)
            module._sync(one.fd)

    first = which.startswith("first")
    monkeypatch.setattr(module.Directory, "_settle", unsynced if first else half_synced)
    if not first:
        # Room is given back at once, as if the rows could not come back.
        real = container.Container.free

        def free(self, spot):
            real(self, spot)
            for freed in self.unsettled().values():
                self.give_back(freed)

        monkeypatch.setattr(container.Container, "free", free)
    with pytest.raises(AssertionError):
        some_cuts(tmp_path)


def some_cuts(path: Path) -> None:
    for seed in range(20):
        (path / str(seed)).mkdir()
        test_a_power_cut_leaves_whole_entries(path / str(seed), seed)
