"""Rows as files: published whole or not at all, found again, cleaned up."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from erllama_py._cache import kvc, kvcfile, kvcrow
from erllama_py._cache.key import encode_tokens
from erllama_py._cache.kvcfile import KvcDirectory
from erllama_py._cache.kvcrow import touch_hits
from erllama_py.errors import ErllamaError
from tests.killserver import KillServer
from tests.kvc_kills import META, PAYLOAD

KILLS = 260

KEY = kvc.key_of(META)


def meta_of(*tokens: int, **more: object) -> kvc.Meta:
    return msgspec.structs.replace(META, tokens=encode_tokens(tokens), **more)


class Watched:
    """A directory whose reports are counted."""

    def __init__(self, path: Path, **options: object) -> None:
        self.corrupt = 0
        self.bytes = 0
        self.dir = KvcDirectory(path, on_corrupt=self._corrupt, on_bytes=self._moved, **options)

    def _corrupt(self) -> None:
        self.corrupt += 1

    def _moved(self, change: int) -> None:
        self.bytes += change


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "rows")


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def reason(call: Callable[[], object]) -> object:
    with pytest.raises(ErllamaError) as caught:
        call()
    return caught.value.reason


# -- saving and loading -------------------------------------------------------------------


def test_a_saved_row_is_one_file_under_its_key_and_loads(watched: Watched):
    saved = watched.dir.save(META, b"payload")
    data = kvc.build(META, b"payload")
    path = watched.dir.path_of(KEY)
    assert saved == kvcfile.Saved(KEY, path, data[:48], len(data), adopted=False)
    assert names(watched.dir.dir) == [f"{KEY.hex()}.kvc"]
    assert path.read_bytes() == data
    loaded = watched.dir.load(KEY)
    assert loaded is not None
    assert (loaded.facts.meta, loaded.payload) == (META, b"payload")
    assert watched.dir.load_meta(KEY) == loaded.facts
    assert watched.bytes == watched.dir.used == watched.dir.stored == len(data)


def test_others_may_not_read_what_was_said(watched: Watched):
    saved = watched.dir.save(META, b"payload")
    assert saved.path.stat().st_mode & 0o777 == 0o600
    assert watched.dir.dir.stat().st_mode & 0o077 == 0


def test_a_row_that_is_not_there_is_none(watched: Watched):
    assert watched.dir.load(KEY) is None
    assert watched.dir.load_meta(KEY) is None
    assert watched.dir.check(KEY) is None
    assert watched.dir.delete(KEY) == 0


def test_deleting_is_idempotent_and_gives_the_bytes_back(watched: Watched):
    size = watched.dir.save(META, b"payload").size
    assert [watched.dir.delete(KEY), watched.dir.delete(KEY)] == [size, 0]
    assert (watched.bytes, watched.dir.used, names(watched.dir.dir)) == (0, 0, [])


def test_a_row_somebody_else_removed_no_longer_counts(watched: Watched):
    watched.dir.save(META, b"payload").path.unlink()
    assert watched.dir.load(KEY) is None
    assert watched.bytes == 0


def test_a_damaged_row_is_deleted_and_counted_when_loaded(watched: Watched):
    path = watched.dir.save(META, b"payload").path
    path.write_bytes(path.read_bytes()[:-1] + b"D")
    assert reason(lambda: watched.dir.load(KEY))[0] == "crc_mismatch"
    assert (watched.corrupt, watched.bytes, names(watched.dir.dir)) == (1, 0, [])
    path.write_bytes(b"KVC")
    assert reason(lambda: watched.dir.load_meta(KEY)) == "bad_header"
    assert (watched.corrupt, names(watched.dir.dir)) == (2, [])


def test_a_later_versions_row_is_refused_and_kept(watched: Watched):
    path = watched.dir.save(META, b"payload").path
    data = path.read_bytes()
    path.write_bytes(data[:3] + b"\x02" + data[4:])
    assert reason(lambda: watched.dir.load(KEY)) == ("unsupported_version", 2)
    assert reason(lambda: watched.dir.save(META, b"payload")) == "eexist"
    assert watched.dir.scan().foreign == [kvcfile.Foreign(path, ("unsupported_version", 2))]
    assert (watched.corrupt, names(watched.dir.dir)) == (0, [path.name])


def test_another_rows_file_is_not_loaded(watched: Watched):
    other = watched.dir.save(meta_of(9), b"payload").path
    other.rename(watched.dir.path_of(KEY))
    assert reason(lambda: watched.dir.load(KEY))[0] == "key_mismatch"
    assert names(watched.dir.dir) == []


def test_a_symbolic_link_is_not_followed(watched: Watched, tmp_path: Path):
    watched.dir.save(META, b"payload").path.rename(tmp_path / "elsewhere")
    watched.dir.path_of(KEY).symlink_to(tmp_path / "elsewhere")
    assert reason(lambda: watched.dir.load(KEY)) == "eloop"


def test_hits_are_written_in_place(watched: Watched):
    saved = watched.dir.save(META, b"payload")
    touch_hits(saved.path, 70000)
    loaded = watched.dir.load(KEY)
    assert loaded is not None
    assert loaded.facts.meta.hit_count == 70000
    touch_hits(saved.path.with_name("gone.kvc"), 1)
    assert names(watched.dir.dir) == [saved.path.name]


# -- publishing ---------------------------------------------------------------------------


def test_the_bytes_are_durable_before_the_name_and_the_name_before_the_answer(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
):
    seen: list[str] = []

    def spy(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: object, **options: object) -> object:
            seen.append(name.strip("_"))
            return real(*args, **options)

        monkeypatch.setattr(owner, name, call)

    spy(os, "write")
    spy(kvcfile, "_sync_data")
    spy(os, "link")
    spy(Path, "unlink")
    spy(kvcfile, "_sync_directory")
    spy(kvcrow, "payload_crc")
    watched.dir.save(META, b"payload")
    order = ["write", "write", "sync_data", "link", "unlink", "sync_directory", "payload_crc"]
    assert seen[: len(order)] == order


def test_a_row_is_not_there_before_it_is_published(watched: Watched):
    staged = watched.dir.write_tmp(META, b"payload")
    assert watched.dir.load(KEY) is None
    assert staged.tmp.name == names(watched.dir.dir)[0]
    assert staged.tmp.name.startswith(f"{KEY.hex()}.kvc.{os.getpid()}.")
    assert staged.tmp.suffix == ".part"
    watched.dir.abort_tmp(staged)
    assert (names(watched.dir.dir), watched.dir.used) == ([], 0)


def test_a_whole_row_of_that_name_is_adopted(watched: Watched):
    first = watched.dir.save(META, b"first")
    second = watched.dir.save(msgspec.structs.replace(META, save_reason="cold"), b"second!")
    assert second == first._replace(adopted=True)
    loaded = watched.dir.load(KEY)
    assert loaded is not None
    assert loaded.payload == b"first"
    assert watched.bytes == watched.dir.used == first.size


def test_another_engines_row_is_replaced(watched: Watched):
    watched.dir.save(META, b"first")
    second = watched.dir.save(msgspec.structs.replace(META, engine=b"build 2"), b"second")
    assert not second.adopted
    assert (watched.dir.stored, watched.corrupt) == (second.size, 0)


@pytest.mark.parametrize("damage", [b"", b"KVC", None])
def test_a_damaged_row_of_that_name_is_replaced(watched: Watched, damage: bytes | None):
    path = watched.dir.save(META, b"payload").path
    path.write_bytes(path.read_bytes()[:-1] + b"D" if damage is None else damage)
    assert not watched.dir.save(META, b"payload").adopted
    assert watched.dir.load(KEY) is not None
    assert (watched.corrupt, len(names(watched.dir.dir))) == (1, 1)


def test_a_name_that_is_taken_twice_is_given_up(watched: Watched, monkeypatch: pytest.MonkeyPatch):
    def taken(*_: object) -> None:
        raise FileExistsError(errno.EEXIST, "taken")

    monkeypatch.setattr(os, "link", taken)
    assert reason(lambda: watched.dir.save(META, b"payload")) == "eexist"
    assert (names(watched.dir.dir), watched.dir.used) == ([], 0)


def test_what_the_disk_did_not_keep_is_not_published(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
):
    staged = watched.dir.write_tmp(META, b"payload")
    with staged.tmp.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"D")
    assert reason(lambda: watched.dir.publish(staged))[0] == "crc_mismatch"
    assert (names(watched.dir.dir), watched.dir.used, watched.corrupt) == ([], 0, 1)


def test_a_temporary_file_somebody_removed_is_an_error(watched: Watched):
    staged = watched.dir.write_tmp(META, b"payload")
    staged.tmp.unlink()
    assert reason(lambda: watched.dir.publish(staged)) == "enoent"
    assert watched.dir.used == 0


def test_a_full_disk_leaves_nothing(watched: Watched, monkeypatch: pytest.MonkeyPatch):
    real = os.write

    def full(fd: int, data: memoryview) -> int:
        if len(data) > 100:
            return real(fd, data[:100])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    assert reason(lambda: watched.dir.save(META, b"payload" * 100)) == "enospc"
    assert (names(watched.dir.dir), watched.dir.used) == ([], 0)


def test_a_quota_counts_rows_and_those_being_written(tmp_path: Path):
    size = len(kvc.build(META, b"payload"))
    watched = Watched(tmp_path, quota=lambda: 2 * size)
    watched.dir.save(meta_of(1, 2, 3), b"payload")
    staged = watched.dir.write_tmp(meta_of(1, 2, 4), b"payload")
    assert reason(lambda: watched.dir.write_tmp(meta_of(1, 2, 5), b"payload")) == "quota_exceeded"
    watched.dir.abort_tmp(staged)
    watched.dir.save(meta_of(1, 2, 5), b"payload")
    assert watched.dir.used == watched.bytes == 2 * size
    assert len(names(tmp_path)) == 2
    assert watched.dir.delete(KEY) == size
    watched.dir.save(meta_of(1, 2, 6), b"payload")


def test_a_directory_that_cannot_be_created_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    where = tmp_path / "file" / "rows"
    expected = ("cannot_create_dir", os.fsencode(where), "enotdir")
    assert reason(lambda: KvcDirectory(where)) == expected


def test_many_writers_of_one_row_agree(watched: Watched):
    results: list[kvcfile.Saved] = []

    def write(payload: bytes) -> None:
        results.append(watched.dir.save(META, payload))

    threads = [threading.Thread(target=write, args=(bytes([n]) * 5000,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(saved.adopted for saved in results) == [False] + [True] * 7
    assert watched.dir.used == watched.bytes == results[0].size
    assert len(names(watched.dir.dir)) == 1


# -- scanning -----------------------------------------------------------------------------


def test_a_scan_finds_what_was_saved(watched: Watched, tmp_path: Path):
    saved = {watched.dir.save(meta_of(n), bytes(n)) for n in range(1, 4)}
    touch_hits(watched.dir.path_of(kvc.key_of(meta_of(2))), 9)
    later = Watched(watched.dir.dir)
    found = later.dir.scan()
    assert {(one.key, one.path, one.size) for one in found.entries} == {
        (one.key, one.path, one.size) for one in saved
    }
    hits = {one.key: kvc.hits_of(one.header) for one in found.entries}
    assert hits[kvc.key_of(meta_of(2))] == 9
    assert (found.foreign, found.removed) == ([], [])
    assert later.bytes == watched.bytes


def test_a_scan_removes_only_what_is_named_like_ours(watched: Watched):
    where = watched.dir.dir
    keep = ["notes.kvc", "a.tmp", "b.kvc.1.2.tmp", "c.part", "readme"]
    for name in keep:
        (where / name).write_bytes(b"mine")
    damaged = where / f"{'ab' * 32}.kvc"
    damaged.write_bytes(b"KVC\x01")
    misnamed = where / f"{'cd' * 32}.kvc"
    misnamed.write_bytes(kvc.build(META, b"payload"))
    copy = where / "copy.kvc"
    copy.write_bytes(kvc.build(META, b"payload"))
    left = where / f"{'ef' * 32}.kvc.1.2.part"
    left.write_bytes(b"half")
    found = watched.dir.scan()
    assert found.entries == []
    assert sorted(found.removed) == sorted([damaged, misnamed, left])
    assert {one.path.name: one.reason for one in found.foreign} == {
        "notes.kvc": "bad_header",
        "copy.kvc": ("key_mismatch", b"copy", KEY),
    }
    assert names(where) == sorted([*keep, "copy.kvc"])
    assert (watched.corrupt, watched.bytes) == (2, 0)


def test_a_scan_waits_for_nothing_and_reads_no_directory_or_pipe(watched: Watched):
    os.mkfifo(watched.dir.dir / "pipe.kvc")
    (watched.dir.dir / "folder.kvc").mkdir()
    found = watched.dir.scan()
    assert {one.path.name for one in found.foreign} == {"pipe.kvc", "folder.kvc"}


def test_a_row_being_written_survives_a_scan_by_anyone(watched: Watched):
    staged = watched.dir.write_tmp(META, b"payload")
    assert watched.dir.scan().removed == []
    assert Watched(watched.dir.dir).dir.scan().removed == []
    watched.dir.publish(staged)
    assert watched.dir.load(KEY) is not None


def test_a_scan_notes_what_went_and_what_came(watched: Watched):
    gone = watched.dir.save(meta_of(1), b"payload")
    kept = watched.dir.save(meta_of(2), b"payload")
    gone.path.unlink()
    came = KvcDirectory(watched.dir.dir).save(meta_of(3), b"longer payload")
    watched.dir.scan()
    assert watched.bytes == watched.dir.stored == kept.size + came.size


# -- writers that die ---------------------------------------------------------------------


def before(path: Path, state: str) -> None:
    """Put the name of the row to be saved into one of the states it can be in."""
    if state == "free":
        return
    data = kvc.build(META, PAYLOAD)
    path.write_bytes(data if state == "whole" else data[:-1] + b"D")


@pytest.fixture(scope="module")
def killing() -> Iterator[KillServer]:
    server = KillServer("tests.kvc_kills")
    yield server
    server.close()


def check_after_death(path: Path, *, announced: bool) -> list[Path]:
    """Everything under a final name is whole, what was announced is there, all is clean."""
    rows = KvcDirectory(path)
    key = KEY
    there = rows.check(key)  # before the scan, which would remove a torn one
    assert there is not None or not announced
    removed = rows.scan().removed
    left = names(path)
    assert left in ([], [f"{key.hex()}.kvc"])
    if left:
        loaded = rows.load(key)
        assert loaded is not None
        assert loaded.payload == PAYLOAD
    rows.save(META, PAYLOAD)
    assert names(path) == [f"{key.hex()}.kvc"]
    return removed


def calls_of_a_save(killing: KillServer, path: Path) -> int:
    """Count by dying later and later until a save gets through."""
    for fatal in range(1, 100):
        result = killing.run(path=str(path / f"count{fatal}"), fatal=fatal, when="before")
        if result["said"] and not result["killed"]:
            return fatal - 1
    pytest.fail("no save gets through")


def test_rows_are_whole_wherever_a_writer_is_killed(tmp_path: Path, killing: KillServer):
    kills = announced = leftovers = 0
    died_with: set[int] = set()
    most = calls_of_a_save(killing, tmp_path)
    assert most > 12
    plan = [
        (state, fatal, when)
        for state in ("free", "whole", "damaged")
        for when in ("before", "after", "within")
        for fatal in range(1, most + 4)
    ]
    random.shuffle(plan)
    for number, (state, fatal, when) in enumerate(plan * 3):
        if kills == KILLS:
            break
        where = tmp_path / str(number)
        where.mkdir()
        before(where / f"{KEY.hex()}.kvc", state)
        result = killing.run(path=str(where), fatal=fatal, when=when)
        kills += result["killed"]
        said = bool(result["said"])
        if state == "damaged" and not said:
            # The damaged row may still have its name: it was there before, and is not
            # taken for a whole one.
            there = where / f"{KEY.hex()}.kvc"
            if there.exists() and there.read_bytes()[-1:] == b"D":
                there.unlink()
        leftovers += len(check_after_death(where, announced=said))
        announced += said
        died_with.add(fatal)
    assert kills == KILLS
    assert set(range(1, most + 1)) <= died_with
    assert leftovers > KILLS // 10, "no writer died with a temporary file"
    assert announced > 0, "no save got through"
