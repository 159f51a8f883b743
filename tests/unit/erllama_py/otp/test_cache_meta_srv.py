"""The index: the engine's rows, prefixes of them, and rows that are put in by hand."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from erllama_py._cache.key import encode_tokens
from erllama_py._cache.reservations import TTL_NS
from erllama_py.errors import BadCall
from erllama_py.otp import (
    cache,
    cache_disk_srv,
    cache_meta_srv,
    cache_ram,
    cache_writer,
)
from erllama_py.types import Atom, Ref
from tests.cachelab import Lab
from tests.handrows import HEADER, KEY, META, META_KEY, counted, key_of, meta_of, reason, rows_in

# -- the engine's rows ---------------------------------------------------------------------


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


# -- prefixes ------------------------------------------------------------------------------


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


# -- saves by hand -------------------------------------------------------------------------


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
