"""The original's cache modules over one index."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from erllama_py._cache.counters import NAMES
from erllama_py._cache.key import encode_tokens
from erllama_py._cache.reservations import TTL_NS
from erllama_py._engine.registry import core
from erllama_py.errors import BadCall, ErllamaError, ModelGone
from erllama_py.otp import (
    cache,
    cache_bench,
    cache_counters,
    cache_disk_srv,
    cache_key,
    cache_kvc,
    cache_meta_srv,
    cache_policy,
    cache_ram,
    cache_ramfile_srv,
    cache_writer,
)
from erllama_py.otp._servers import TierPid
from erllama_py.types import Atom, Ref
from tests.cachelab import IDENTITY, Lab
from tests.waiting import wait_for

KEY = b"k" * 32
HEADER = bytes(48)
META = {
    "save_reason": "finish",
    "quant_bits": 16,
    "fingerprint": b"\x07" * 32,
    "fingerprint_mode": "safe",
    "quant_type": "f16",
    "ctx_params_hash": b"\x08" * 32,
    "tokens": [1, 2, 3],
    "context_size": 4096,
}
META_KEY = cache_key.make(META)
QUOTA = 1 << 20


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A cache of the test's own in this process's core."""
    one, of_core = Lab(QUOTA), core()
    before, of_core._cache = of_core._cache, one.cache
    yield one
    of_core._cache = before
    one.cache.close()


@pytest.fixture
def disk(lab: Lab, tmp_path: Path) -> Atom:
    """A running tier server, on ``tmp_path / "rows"``."""
    name = Atom("my_disk")
    cache_disk_srv.start_link(name, os.fsencode(tmp_path / "rows"))
    return name


def reason(call: Callable[..., object], *args: object) -> object:
    with pytest.raises(ErllamaError) as caught:
        call(*args)
    return caught.value.reason


def counted(name: str) -> int:
    return cache.get_counters()[name]


def meta_of(*tokens: int, **more: object) -> dict[str, object]:
    return {**META, "tokens": list(tokens), **more}


def key_of(*tokens: int) -> bytes:
    return cache_key.make(meta_of(*tokens))


def rows_in(path: Path) -> list[str]:
    """Names of rows, finished or not; the engine's own files are there too."""
    return sorted(entry.name for entry in path.iterdir() if ".kvc" in entry.name)


# -- the engine's rows --------------------------------------------------------------------


def test_a_row_of_the_engine_is_a_tuple_of_ten(lab: Lab):
    key = lab.request([1] * 10).key
    assert key is not None
    (row,) = cache_meta_srv.dump()
    tokens = encode_tokens([1] * 10)
    assert (row[0], row[1], row[4], row[5]) == (key, "ram", 0, "available")
    assert row[2] > 0
    assert len(row) == 10
    assert isinstance(row[1], Atom)
    assert row[6][:4] == b"KVC\x01"
    assert int.from_bytes(row[6][8:12], "little") == 10
    assert row[7:] == (("ram",), tokens, 0)
    assert cache_meta_srv.dump(key) == cache_meta_srv.lookup_exact(key) == row
    assert cache_meta_srv.dump(KEY) == cache_meta_srv.lookup_exact(KEY) == Atom("miss")


def test_a_checked_out_row_survives_gc_until_it_is_checked_in(lab: Lab):
    key = lab.request([1] * 10).key
    ref, tier, location, header, tokens = cache_meta_srv.checkout(key, "pid")
    assert isinstance(ref, Ref)
    assert (tier, location, tokens) == ("ram", ("ram",), encode_tokens([1] * 10))
    assert len(header) == 48
    assert cache_meta_srv.dump(key)[4] == 1
    assert cache.gc() == ("evicted", 0)
    assert cache_meta_srv.checkin(ref) == cache_meta_srv.checkin(ref) == "ok"
    assert cache_meta_srv.dump(key)[4] == 0
    assert cache_meta_srv.dump(key)[9] == 1
    assert cache.gc() == ("evicted", 1)
    assert cache_meta_srv.checkout(key, "pid") == "miss"


def test_a_dead_process_holds_nothing(lab: Lab, disk: Atom):
    key = lab.request([1] * 10).key
    cache_meta_srv.checkout(key, "pid")
    cache_disk_srv.save(disk, META, b"payload")
    cache_meta_srv.checkout(META_KEY, "pid")
    cache_meta_srv.reserve_save(KEY, "disk", "pid")
    cache_writer.acquire(0, holder="pid")
    assert [row[4] for row in cache_meta_srv.dump() if len(row) == 10] == [1, 1]
    assert cache_meta_srv.process_died("pid") == "ok"
    assert [row[4] for row in cache_meta_srv.dump()] == [0, 0]
    assert cache_writer.current() == 0


def test_a_row_being_written_by_the_engine_is_busy(lab: Lab):
    lease = lab.lookup([1] * 10)
    key = lab.key([1] * 10)
    lease.expect_row(key)
    assert reason(cache_meta_srv.checkout, key, "pid") == "busy"
    lease.close()
    assert cache_meta_srv.checkout(key, "pid") == "miss"


def test_evicting_bytes_frees_at_least_so_many(lab: Lab, disk: Atom):
    lab.request([1] * 10)
    cache_disk_srv.save(disk, META, b"payload")
    assert cache.evict_bytes(0) == ("evicted", 0, 0)
    size = cache_meta_srv.dump(META_KEY)[2]
    assert cache.evict_bytes(10**9, ["disk"]) == ("evicted", 1, size)
    assert cache.evict_bytes(10**9, ["ram_file"]) == ("evicted", 0, 0)
    evicted, rows, nbytes = cache.evict_bytes(1, "all")
    assert (evicted, rows <= 1, nbytes >= 1) == ("evicted", True, True)
    assert counted("evictions") >= 1
    for bad in (-1, 1.0, "1"):
        assert reason(cache.evict_bytes, bad) == "function_clause"
    assert reason(cache.evict_bytes, 1, ["tape"]) == "function_clause"


def test_gc_clears_every_tier(lab: Lab, disk: Atom, tmp_path: Path):
    lab.request([1] * 10)
    cache_disk_srv.save(disk, META, b"payload")
    cache_ram.put(KEY, b"slab", HEADER)
    assert cache.gc() == ("evicted", 3)
    assert (cache_meta_srv.dump(), rows_in(tmp_path / "rows")) == ([], [])
    assert [counted(name) for name in ("evictions", "bytes_ram", "bytes_disk")] == [3, 0, 0]
    assert cache_ram.load(KEY) == "miss"


# -- prefixes -----------------------------------------------------------------------------


def test_the_longest_prefix_at_multiples_of_the_stride(lab: Lab, disk: Atom):
    for length in (16, 48):
        cache_disk_srv.save(disk, meta_of(*range(length)), b"payload")
    found, row = cache.lookup_longest_prefix(META, list(range(66)), 16, 16)
    assert (found, row[0]) == (48, key_of(*range(48)))
    assert counted("longest_prefix_probes") == 2
    assert counted("longest_prefix_ns") > 0
    assert cache.lookup_longest_prefix(META, list(range(47)), 16, 16)[0] == 16
    assert cache.lookup_longest_prefix(META, list(range(47)), 16, 17) == "miss"
    assert cache.lookup_longest_prefix({**META, "quant_type": "f32"}, [0] * 66, 16, 1) == "miss"


@pytest.mark.parametrize(
    ("length", "stride", "least", "probes"),
    [(5000, 2048, 512, 2), (1500, 2048, 512, 0), (12000, 2048, 512, 5), (64, 16, 40, 2)],
)
def test_probes_go_down_to_the_floor(lab: Lab, length: int, stride: int, least: int, probes: int):
    assert cache.lookup_longest_prefix(META, [7] * length, stride, least) == "miss"
    assert counted("longest_prefix_probes") == probes


def test_the_policys_stride_and_floor_are_the_default(lab: Lab, disk: Atom):
    cache_disk_srv.save(disk, meta_of(*[7] * 2048), b"payload")
    assert cache.lookup_longest_prefix(META, [7] * 2049)[0] == 2048


@pytest.mark.parametrize(("stride", "least"), [(0, 1), (1, 0), (1.0, 1), (1, "1")])
def test_a_stride_and_a_floor_are_numbers_from_one(lab: Lab, stride: object, least: object):
    assert reason(cache.lookup_longest_prefix, META, [1], stride, least) == "function_clause"
    assert reason(cache.lookup_longest_prefix, {}, [1], 1, 1) == "function_clause"


# -- saves by hand ------------------------------------------------------------------------


def test_a_save_by_hand_step_by_step(lab: Lab, disk: Atom):
    token = cache_meta_srv.reserve_save(META_KEY, "disk", "pid")
    assert cache_meta_srv.dump()[0][5:] == ("writing", b"", None, None)
    assert cache_meta_srv.lookup_exact(META_KEY) == "miss"
    assert reason(cache_meta_srv.checkout, META_KEY, "pid") == "busy"
    written = cache_disk_srv.write_tmp(cache_disk_srv.dir(disk), META, b"payload")
    assert cache_meta_srv.check_reservation(META_KEY, token) == "ok"
    key, header, size = cache_disk_srv.publish(written)
    assert key == META_KEY
    assert cache_meta_srv.mark_published(key, token, written["final"]) == "ok"
    assert cache_meta_srv.announce_saved(key, token, size, header, encode_tokens([1, 2, 3])) == "ok"
    row = cache_meta_srv.lookup_exact(key)
    assert row[5:9] == ("available", header, ("disk", written["final"]), encode_tokens([1, 2, 3]))
    assert reason(cache_meta_srv.check_reservation, key, token) == "expired"
    assert reason(cache_meta_srv.reserve_save, key, "disk", "pid") == "already_present"
    assert cache_meta_srv.cancel_reservation(key, token) == "ok"


def test_a_row_of_the_engine_is_not_reserved(lab: Lab):
    key = lab.request([1] * 10).key
    assert reason(cache_meta_srv.reserve_save, key, "disk", "pid") == "already_present"


def published(disk: Atom) -> Path:
    """A row whose writer has published and not announced it."""
    token = cache_meta_srv.reserve_save(META_KEY, "disk", "pid")
    written = cache_disk_srv.write_tmp(cache_disk_srv.dir(disk), META, b"payload")
    cache_disk_srv.publish(written)
    cache_meta_srv.mark_published(META_KEY, token, written["final"])
    return Path(os.fsdecode(written["final"]))


def test_what_a_dead_writer_published_becomes_a_row(lab: Lab, disk: Atom):
    published(disk)
    cache_meta_srv.process_died("pid")
    assert cache_meta_srv.lookup_exact(META_KEY)[8] == encode_tokens([1, 2, 3])
    assert cache_disk_srv.load(disk, META_KEY)[1] == b"payload"


def test_what_a_dead_writer_tore_is_deleted(lab: Lab, disk: Atom):
    path = published(disk)
    path.write_bytes(path.read_bytes()[:-1])
    cache_meta_srv.process_died("pid")
    assert cache_meta_srv.dump() == []
    assert not path.exists()
    assert counted("corrupt_files") == 1


def test_a_silent_writers_reservation_is_swept(lab: Lab, disk: Atom):
    published(disk)
    cache_meta_srv.reserve_save(KEY, "disk", "pid")
    lab.now += TTL_NS
    assert [row[0] for row in cache_meta_srv.dump()] == [META_KEY]


def test_a_file_outside_the_servers_directories_is_never_touched(
    lab: Lab, disk: Atom, tmp_path: Path
):
    precious = tmp_path / f"{KEY.hex()}.kvc"
    precious.write_bytes(b"precious" * 10)
    place = (Atom("disk"), os.fsencode(precious))
    cache_meta_srv.insert_available(KEY, "disk", 80, HEADER, place, b"")
    cache_meta_srv.checkin(cache_meta_srv.checkout(KEY, "pid")[0])
    cache_disk_srv.touch_hits(os.fsencode(precious), 7)
    assert cache.gc() == ("evicted", 1)
    token = cache_meta_srv.reserve_save(KEY, "disk", "pid")
    cache_meta_srv.mark_published(KEY, token, os.fsencode(precious))
    cache_meta_srv.process_died("pid")
    assert precious.read_bytes() == b"precious" * 10
    assert cache_meta_srv.dump() == []


def test_who_waits_for_a_row_gets_it(lab: Lab):
    token = cache_meta_srv.reserve_save(KEY, "ram", "pid")
    found: list[object] = []
    waiter = threading.Thread(
        target=lambda: found.append(cache_meta_srv.lookup_exact_or_wait(KEY, 60_000))
    )
    waiter.start()
    cache_meta_srv.announce_saved(KEY, token, 5, HEADER)
    waiter.join(30)
    assert found == [cache_meta_srv.lookup_exact(KEY)]
    assert cache_meta_srv.lookup_exact_or_wait(KEY, 0) == found[0]


def test_a_wait_ends_with_its_time_or_without_a_writer(lab: Lab):
    assert cache_meta_srv.lookup_exact_or_wait(KEY, 60_000) == "miss"
    cache_meta_srv.reserve_save(KEY, "ram", "pid")
    assert cache_meta_srv.lookup_exact_or_wait(KEY, 0) == "miss"
    assert cache_meta_srv.lookup_exact_or_wait(KEY, 30) == "miss"


def test_a_wait_sees_the_engines_row_too(lab: Lab):
    key = lab.key([1] * 10)
    lease = lab.lookup([1] * 10)
    lease.expect_row(key)
    found: list[object] = []
    waiter = threading.Thread(
        target=lambda: found.append(cache_meta_srv.lookup_exact_or_wait(key, 60_000))
    )
    waiter.start()
    lab.request([1] * 10)
    waiter.join(30)
    lease.close()
    assert found == [cache_meta_srv.lookup_exact(key)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: cache_meta_srv.dump("text"),
        lambda: cache_meta_srv.lookup_exact(1),
        lambda: cache_meta_srv.lookup_exact_or_wait(KEY, -1),
        lambda: cache_meta_srv.reserve_save(KEY, "tape", "pid"),
        lambda: cache_meta_srv.insert_available(KEY, "ram", -1, HEADER, ("ram",)),
        lambda: cache_meta_srv.insert_available(KEY, "ram", 1, HEADER, "ram"),
        lambda: cache_meta_srv.mark_published(KEY, 0, 5),
        lambda: cache_disk_srv.touch_hits(b"p", -1),
        lambda: cache_ram.put(KEY, "text", HEADER),
        lambda: cache_writer.acquire(-1),
        lambda: cache_writer.save("srv", "ram", META, b""),
        lambda: cache_writer.set_max_concurrent(0),
    ],
)
def test_arguments_of_the_wrong_kind_are_bad_calls(lab: Lab, call: Callable[[], object]):
    with pytest.raises(BadCall) as caught:
        call()
    assert caught.value.reason == "function_clause"


# -- tier servers -------------------------------------------------------------------------


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


# -- memory -------------------------------------------------------------------------------


def test_a_payload_in_memory_is_a_row_without_tokens(lab: Lab):
    assert cache_ram.put(KEY, b"slab", HEADER) == "ok"
    assert cache_ram.load(KEY) == b"slab"
    assert cache_meta_srv.dump(KEY)[1:3] == ("ram", 4)
    assert cache_meta_srv.dump(KEY)[6:] == (HEADER, ("ram",), None, 0)
    assert cache_ram.size_bytes() == counted("bytes_ram") >= 4
    cache_ram.put(KEY, b"another", HEADER)
    assert cache_ram.load(KEY) == b"another"
    assert cache_ram.delete(KEY) == cache_ram.delete(KEY) == "ok"
    assert (cache_ram.load(KEY), cache_meta_srv.dump(), cache_ram.size_bytes()) == ("miss", [], 0)
    cache_ram.put(KEY, b"", HEADER)
    assert cache_ram.load(KEY) == b""


def test_payloads_by_hand_take_a_quarter_of_the_memory_at_most(lab: Lab):
    for number in range(6):
        cache_ram.put(bytes([number]) * 32, bytes(QUOTA // 8), HEADER)
    assert [cache_ram.load(bytes([number]) * 32) != "miss" for number in range(6)] == [
        *(False, False, False, False, True, True)
    ]
    assert counted("bytes_ram") <= QUOTA // 4
    cache_meta_srv.checkout(bytes([4]) * 32, "pid")
    cache_ram.put(KEY, b"small", HEADER)
    assert cache_ram.load(bytes([4]) * 32) != "miss"
    assert reason(cache_ram.put, KEY, bytes(QUOTA // 2), HEADER) == "quota_exceeded"
    assert cache_meta_srv.dump(KEY) == "miss"


# -- the writer ---------------------------------------------------------------------------


def test_the_writer_saves_announces_and_counts(lab: Lab, disk: Atom):
    for name in ("cold", "continued", "finish", "evict", "shutdown", "unknown"):
        meta = meta_of(len(name), 5, save_reason=name)
        assert cache_writer.save(disk, "disk", meta, b"payload", 0) == key_of(len(name), 5)
    assert [
        counted(f"saves_{n}") for n in ("cold", "continued", "finish", "evict", "shutdown")
    ] == [1] * 5
    assert [row[5] for row in cache_meta_srv.dump()] == ["available"] * len(cache_meta_srv.dump())
    assert cache_writer.current() == 0


def test_a_save_that_does_not_publish_is_counted(lab: Lab, disk: Atom):
    cache_writer.save(disk, "disk", META, b"payload")
    assert reason(cache_writer.save, disk, "disk", META, b"payload") == "already_present"
    assert [counted(n) for n in ("saves_finish", "saves_dropped", "duplicate_dropped")] == [1, 1, 1]
    cache_writer.set_max_concurrent(1)
    cache_writer.acquire(0, holder="another")
    assert reason(cache_writer.save, disk, "disk", meta_of(9), b"", 0) == "max_concurrent"
    cache_writer.release(holder="another")
    cache_meta_srv.reserve_save(key_of(9), "disk", "another")
    assert reason(cache_writer.save, disk, "disk", meta_of(9), b"", 0) == "conflict"
    assert [counted(n) for n in ("saves_dropped", "duplicate_dropped")] == [3, 1]
    assert reason(cache_writer.save, "nobody", "disk", meta_of(8), b"", 0) == "noproc"
    assert cache_writer.current() == 0


def test_a_failed_save_gives_its_reservation_up(
    lab: Lab, disk: Atom, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        assert reason(cache_writer.save, disk, "disk", META, b"payload") == "enospc"
    assert cache_meta_srv.dump() == []
    assert cache_writer.save(disk, "disk", META, b"payload") == META_KEY


def test_places_are_taken_by_processes(lab: Lab):
    cache_writer.set_max_concurrent(2)
    assert cache_writer.max_concurrent() == 2
    assert cache_writer.release() == "ok"
    assert cache_writer.acquire(0) == "ok"
    assert cache_writer.acquire("infinity", holder="pid") == "ok"
    assert reason(lambda: cache_writer.acquire(0, holder="more")) == "max_concurrent"
    waiter = threading.Thread(target=cache_writer.acquire, args=(60_000,))
    waiter.start()
    cache_meta_srv.process_died("pid")
    waiter.join(30)
    wait_for(lambda: cache_writer.current() == 1)
    cache_writer.release()
    assert cache_writer.current() == 0


# -- counters, keys, formats, policy, benchmark -------------------------------------------


def test_counters_by_slot(lab: Lab):
    assert cache_counters.init() == "ok"
    for slot in range(1, 21):
        assert cache_counters.incr(slot) == cache_counters.add(slot, slot) == "ok"
    assert cache_counters.incr(1, 5) == "ok"
    expected = {name: slot + 1 for slot, name in enumerate(NAMES, 1)}
    expected |= {"hits_exact": 7, "bytes_ram": 0, "bytes_ramfile": 0, "bytes_disk": 0}
    assert cache_counters.snapshot() == cache.get_counters() == expected
    assert cache_counters.get(20) == 21
    assert cache.reset_counters() == cache_counters.reset() == "ok"
    assert set(cache_counters.snapshot().values()) == {0}
    for bad in (0, 21, "misses", True):
        assert reason(cache_counters.get, bad) == "badarg"
    assert reason(cache_counters.add, 1, -1) == "badarg"


def test_keys():
    parts = {"fingerprint": b"\xaa" * 32, "quant_type": "f16", "ctx_params_hash": b"\xbb" * 32}
    key = bytes.fromhex("8cc177adeda2e7c42843eb357ed501d2f979b9a8b4eacf7734740b128e9902c6")
    assert cache_key.make({**parts, "tokens": [1, 2, 3]}) == key
    assert cache_key.make(*parts.values(), cache_key.encode_tokens([1, 2, 3])) == key
    assert cache_key.decode_tokens(cache_key.encode_tokens([1, 70000])) == [1, 70000]
    assert [cache_key.quant_byte("f16"), cache_key.quant_atom(1)] == [1, "f16"]
    assert reason(cache_key.quant_atom, 30) == "unknown_quant"
    for bad in ((parts,), ({**parts, "tokens": b"abcd"},), (b"", "f16", b"", b""), (1, 2)):
        assert reason(cache_key.make, *bad) == "function_clause"


def test_formats(lab: Lab):
    prefix = cache_kvc.build({**META, "hostname": b"h"}, b"payload")
    info, payload = cache_kvc.parse(prefix + b"payload", META_KEY)
    assert (payload, info["hostname"]) == (b"payload", b"h")
    assert cache_kvc.parse_meta(prefix + b"payload") == info
    assert reason(cache_kvc.parse, prefix, META_KEY) == "truncated"
    assert reason(cache_kvc.build, {}, b"") == ("missing_key", "save_reason")


CONFIG = {
    "min_tokens": 4,
    "cold_min_tokens": 8,
    "cold_max_tokens": 100,
    "continued_interval": 10,
    "boundary_trim_tokens": 2,
    "boundary_align_tokens": 4,
}


def test_policy():
    tokens = list(range(15))
    assert cache_policy.trim_boundary(tokens, 2, 4) == tokens[:12]
    assert cache_policy.trim_boundary(tokens[:5], 2, 4) == ("skip", "too_short")
    assert cache_policy.cold_save_split(tokens, CONFIG) == ("trim", tokens[:12], tokens[12:])
    assert cache_policy.cold_save_split(tokens[:7], CONFIG) == "no_save"
    assert cache_policy.should_continued_save(20, 10, CONFIG)
    assert not cache_policy.should_continued_save(19, 10, CONFIG)
    assert cache_policy.should_finish_save(4, CONFIG)
    assert not cache_policy.should_finish_save(4, {**CONFIG, "min_tokens": Atom("infinity")})
    assert reason(cache_policy.should_finish_save, 4, {}) == ("badkey", "min_tokens")
    assert reason(cache_policy.trim_boundary, tokens, 0, 0) == "function_clause"


def test_a_policy_map_is_checked():
    assert cache_policy.validate_config(CONFIG) == "ok"
    missing = {k: v for k, v in CONFIG.items() if k not in ("min_tokens", "cold_max_tokens")}
    expected = ("missing_keys", ["min_tokens", "cold_max_tokens"])
    assert reason(cache_policy.validate_config, missing) == expected
    invalid = ("invalid", "min_tokens", -1)
    assert reason(cache_policy.validate_config, {**CONFIG, "min_tokens": -1}) == invalid
    order = ("ordering", "cold_min_tokens_lt_min_tokens")
    assert reason(cache_policy.validate_config, {**CONFIG, "min_tokens": 9}) == order


def test_the_benchmark_leaves_nothing(lab: Lab, disk: Atom, tmp_path: Path):
    result = cache_bench.save_load(disk, 3, 1000)
    assert set(result) == {"save_us_avg", "load_us_avg", "runs", "payload_bytes"}
    assert (result["runs"], result["payload_bytes"]) == (3, 1000)
    assert result["save_us_avg"] > 0
    assert (rows_in(tmp_path / "rows"), cache_meta_srv.dump()) == ([], [])
    assert reason(cache_bench.save_load, disk, 0, 1) == "function_clause"


def test_identities_of_the_lab_are_those_of_its_rows(lab: Lab):
    key = lab.request([1] * 16).key
    meta = {
        "fingerprint": IDENTITY.fingerprint,
        "quant_type": IDENTITY.quant_type,
        "ctx_params_hash": IDENTITY.ctx_params_hash,
    }
    found = cache.lookup_longest_prefix(meta, [1] * 20, 8, 8)
    assert found == (16, cache_meta_srv.lookup_exact(key))


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
