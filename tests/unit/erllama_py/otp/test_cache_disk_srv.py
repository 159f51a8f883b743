"""Tier servers: rows as files, beside what the engine keeps in the same directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from erllama_py._cache.key import encode_tokens
from erllama_py._cache.reservations import TTL_NS
from erllama_py._engine.registry import core
from erllama_py.errors import ModelGone
from erllama_py.otp import (
    cache,
    cache_disk_srv,
    cache_kvc,
    cache_meta_srv,
    cache_ram,
    cache_ramfile_srv,
    cache_writer,
)
from erllama_py.otp._servers import TierPid
from erllama_py.types import Atom
from tests.cachelab import Lab
from tests.handrows import (
    KEY,
    META,
    META_KEY,
    QUOTA,
    counted,
    key_of,
    meta_of,
    reason,
    rows_in,
)

# -- tier servers --------------------------------------------------------------------------


def test_a_saved_row_is_loaded_and_in_the_index(lab: Lab, disk: Atom, tmp_path: Path):
    key, header, size = cache_disk_srv.save(disk, META, b"payload")
    path = tmp_path / "rows" / f"{key.hex()}.kvc"
    assert (key, header, size) == (META_KEY, path.read_bytes()[:48], path.stat().st_size)
    info, payload = cache_disk_srv.load(disk, key)
    assert payload == b"payload"
    assert info["tokens"] == [1, 2, 3]
    assert info["hostname"]
    assert info["creation_time"] > 0
    row = cache_meta_srv.lookup_exact(key)
    assert row[1:3] == ("disk", size)
    assert row[7] == ("disk", os.fsencode(path))
    assert counted("bytes_disk") == size
    assert cache_disk_srv.delete(disk, key) == cache_disk_srv.delete(disk, key) == "ok"
    assert cache_disk_srv.load(disk, key) == "miss"
    assert (cache_meta_srv.dump(), counted("bytes_disk")) == ([], 0)


def test_servers_have_names_pids_and_directories(lab: Lab, tmp_path: Path):
    pid = cache_disk_srv.start_link("a", Atom("disk"), list(map(ord, str(tmp_path / "a"))))
    assert isinstance(pid, TierPid)
    assert cache_disk_srv.dir("a") == cache_disk_srv.dir(pid) == os.fsencode(tmp_path / "a")
    assert reason(cache_disk_srv.start_link, "a", tmp_path / "b") == ("already_started", pid)
    assert reason(cache_disk_srv.start_link, "b", "tape", tmp_path / "b") == "function_clause"
    assert not (tmp_path / "b").exists()
    (tmp_path / "file").write_text("")
    failed = reason(cache_disk_srv.start_link, "c", tmp_path / "file" / "c")
    assert failed == ("cannot_create_dir", os.fsencode(tmp_path / "file" / "c"), "enotdir")
    with pytest.raises(ModelGone) as caught:
        cache_disk_srv.load("c", KEY)
    assert caught.value.reason == "noproc"


def test_the_engine_saves_to_a_server_that_was_started(lab: Lab, disk: Atom, tmp_path: Path):
    tier = lab.cache.tier(disk)
    assert tier is not None
    assert (tier.kind, tier.path) == ("disk", tmp_path / "rows")


def test_a_row_of_the_engine_in_files(lab: Lab, disk: Atom, tmp_path: Path):
    lab.space.home = lab.cache.tier(disk)
    key = lab.request([1] * 10, logits=False).key
    assert lab.cache.flush(30)
    cache.evict_bytes(10**9, ["ram"])
    row = cache_meta_srv.dump(key)
    assert (row[1], row[7]) == ("disk", ("disk", os.fsencode(tmp_path / "rows")))
    assert reason(cache_disk_srv.load, disk, key) == "model_not_loaded"
    assert cache.gc() == ("evicted", 1)
    assert cache_disk_srv.load(disk, key) == "miss"


def test_a_tier_of_the_engine_is_a_server(lab: Lab, tmp_path: Path):
    lab.cache.add_tier("ram_file", "theirs", tmp_path / "theirs", 1 << 20)
    assert cache_disk_srv.dir(Atom("theirs")) == os.fsencode(tmp_path / "theirs")
    key = cache_ramfile_srv.save("theirs", META, b"payload")[0]
    assert cache_meta_srv.lookup_exact(key)[1] == "ram_file"
    assert reason(cache_ramfile_srv.save, "theirs", meta_of(9), bytes(1 << 19)) == "quota_exceeded"


def test_a_restarted_server_finds_its_rows_and_their_hits(lab: Lab, disk: Atom, tmp_path: Path):
    key = cache_disk_srv.save(disk, META, b"payload")[0]
    for _ in range(3):
        cache_meta_srv.checkin(cache_meta_srv.checkout(key, "pid")[0])
    size = counted("bytes_disk")
    assert cache_disk_srv.stop(disk) == "ok"
    assert (cache_meta_srv.dump(), counted("bytes_disk")) == ([], 0)
    before = lab.now
    cache_ramfile_srv.start_link("again", tmp_path / "rows")
    row = cache_meta_srv.lookup_exact(key)
    assert (row[1], row[8], row[9]) == ("ram_file", encode_tokens([1, 2, 3]), 3)
    assert row[3] >= before + 3 * 10**9
    assert (counted("bytes_disk"), counted("bytes_ramfile")) == (0, size)


def test_a_damaged_file_takes_its_row_along(lab: Lab, disk: Atom, tmp_path: Path):
    key = cache_disk_srv.save(disk, META, b"payload")[0]
    path = tmp_path / "rows" / f"{key.hex()}.kvc"
    path.write_bytes(path.read_bytes()[:-1] + b"D")
    assert reason(cache_disk_srv.load, disk, key)[0] == "crc_mismatch"
    assert (cache_meta_srv.dump(), counted("corrupt_files")) == ([], 1)
    assert cache_writer.save(disk, "disk", META, b"payload") == key


def test_a_scan_brings_the_index_up_to_date(lab: Lab, disk: Atom, tmp_path: Path):
    first = cache_disk_srv.save(disk, META, b"payload")[0]
    path = tmp_path / "rows" / f"{key_of(9).hex()}.kvc"
    path.write_bytes(cache_kvc.build(meta_of(9), b"other") + b"other")
    (tmp_path / "rows" / f"{first.hex()}.kvc").unlink()
    data = path.read_bytes()
    assert cache_disk_srv.scan(disk) == [(key_of(9), data[:48], len(data))]
    assert [row[0] for row in cache_meta_srv.dump()] == [key_of(9)]


def test_only_what_was_written_is_published(lab: Lab, disk: Atom, tmp_path: Path):
    root = cache_disk_srv.dir(disk)
    written = cache_disk_srv.write_tmp(root, META, b"payload")
    assert set(written) == {"key", "tmp", "final", "prefix", "root"}
    assert written["prefix"] + b"payload" == Path(os.fsdecode(written["tmp"])).read_bytes()
    assert reason(cache_disk_srv.publish, {**written, "final": b"/etc/x"}) == "badarg"
    assert reason(cache_disk_srv.publish, written) == "tmp_unreadable"
    assert rows_in(tmp_path / "rows") == []
    written = cache_disk_srv.write_tmp(root, META, b"payload")
    assert cache_disk_srv.abort_tmp(written) == cache_disk_srv.abort_tmp(written) == "ok"
    assert rows_in(tmp_path / "rows") == []
    written = cache_disk_srv.write_tmp(root, META, b"payload")
    paths = (root, written["tmp"], written["final"], written["key"])
    assert cache_disk_srv.publish(*paths)[0] == META_KEY


def test_what_nobody_publishes_is_dropped_in_time(lab: Lab, disk: Atom, tmp_path: Path):
    written = cache_disk_srv.write_tmp(cache_disk_srv.dir(disk), META, b"payload")
    cache_disk_srv.scan(disk)
    assert len(rows_in(tmp_path / "rows")) == 1
    lab.now += 2 * TTL_NS
    cache_disk_srv.scan(disk)
    assert rows_in(tmp_path / "rows") == []
    assert reason(cache_disk_srv.publish, written) == "tmp_unreadable"


def test_a_row_of_the_engine_needs_a_model_to_load(lab: Lab, disk: Atom):
    key = lab.request([1] * 10).key
    assert reason(cache_ram.load, key) == "model_not_loaded"
    assert cache_disk_srv.load(disk, key) == "miss"


def test_save_names_the_missing_key(lab: Lab, disk: Atom):
    meta = {key: value for key, value in META.items() if key != "tokens"}
    assert reason(cache_disk_srv.save, disk, meta, b"") == ("missing_key", "tokens")
    assert reason(cache_writer.save, disk, "disk", meta, b"") == ("missing_key", "tokens")


# -- counters, keys, formats, policy, benchmark --------------------------------------------


def test_rows_by_hand_and_containers_share_one_quota(tmp_path: Path) -> None:
    quota, where = 1 << 19, tmp_path / "rows"
    one, of_core = Lab(QUOTA, path=where, disk=quota), core()
    before, of_core._cache = of_core._cache, one.cache
    try:

        def taken() -> int:
            return sum(file.stat().st_size for file in where.iterdir())

        def fill(first: int) -> None:
            for number in range(first, first + 30):
                one.request([number] * 40, logits=False)
                one.cache.flush()
                assert taken() <= quota

        fill(1)
        assert taken() > quota * 3 // 4, "the engine has a part of the rows' quarter"
        full = bytes(quota // 4)
        assert reason(cache_disk_srv.save, "disk", meta_of(9), full) == "quota_exceeded"
        one.cache.gc()
        fill(100)
        cache_disk_srv.save("disk", meta_of(9), full[:-4096])
        assert quota * 3 // 4 < taken() <= quota
        fill(200)
    finally:
        of_core._cache = before
        one.cache.close()
