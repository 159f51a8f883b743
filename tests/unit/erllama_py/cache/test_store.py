"""The whole under its quota: eviction, memory given back, views, threads."""

from __future__ import annotations

import mmap
import os
import random
import threading

import pytest

from erllama_py._cache.identity import Identity
from erllama_py._cache.tier import RAM
from tests.cachelab import BLOCK, IDENTITY, TOKEN_BYTES, Lab, Run, check_pieces

PAGE = mmap.PAGESIZE
QUARTER_HOUR = 900 * 10**9
BLOCK_BYTES = BLOCK * TOKEN_BYTES
LONG = list(range(100, 130))


def counted(lab, name):
    return lab.cache.counters.snapshot()[name]


def test_the_longest_unused_leaf_goes_first():
    lab = Lab(PAGE)  # 16 blocks
    for head in range(4):
        lab.request([head] * 16, logits=False, alone=False)
    assert counted(lab, "bytes_ram") == PAGE
    lab.request([0] * 16, logits=False)
    lab.request([9] * 8, logits=False)
    assert [lab.probe([head] * 16 + [99]) for head in (0, 1, 2, 3, 9)] == [16, 8, 16, 16, 8]
    assert counted(lab, "evictions") == 1
    lab.cache.close()


def test_using_a_prefix_keeps_it_but_not_what_follows():
    lab = Lab(PAGE)
    lab.request([1] * 32, logits=False)
    lab.request([2] * 32, logits=False)
    lab.now += QUARTER_HOUR
    lab.lookup([*[1] * 16, 7]).close()
    lab.request([3] * 32, logits=False)
    assert [lab.probe([*[head] * 32, 7]) for head in (1, 2, 3)] == [16, 16, 32]
    lab.cache.close()


def test_an_evicted_leafs_time_passes_to_its_parent():
    lab = Lab()
    lab.request([1] * 8, logits=False)
    lab.request([2] * 8, logits=False)
    reader = lab.lookup([*[2] * 8, 9])
    lab.now += QUARTER_HOUR
    lab.lookup([*[1] * 8, 9]).close()
    lab.cache.evict_bytes(1)
    assert [lab.probe([*[head] * 8, 9]) for head in (1, 2)] == [4, 8]
    reader.close()
    lab.cache.evict_bytes(1)
    assert [lab.probe([*[head] * 8, 9]) for head in (1, 2)] == [4, 4]
    lab.cache.close()


def test_logits_go_before_blocks_of_their_age():
    lab = Lab(PAGE)
    lab.request([1] * 8)
    lab.cache.evict_bytes(1)
    with lab.lookup([1] * 8) as lease:
        assert (lease.kind, lease.keep) == ("exact", 7)
    lab.cache.close()


def test_a_tier_of_nothing_refuses_everything():
    lab = Lab(0)
    assert lab.cache.reserve(1) is None
    assert lab.request(LONG).key is None
    assert lab.request(LONG).kind == "cold"
    assert counted(lab, "saves_dropped") == 2
    lab.cache.close()


def test_everything_in_use_is_a_refusal_and_evicts_nothing_of_it():
    lab = Lab(PAGE)
    lease = lab.lookup([1] * 64)
    Run(lab, lease, [1] * 64, [], "token", 8, 2, canonical=True).capture(64)
    assert lab.cache.reserve(1) is None
    assert lab.probe([*[1] * 64, 2]) == 64
    lease.close()
    assert lab.cache.reserve(1) is not None
    lab.cache.close()


def test_more_than_the_quota_evicts_nothing():
    lab = Lab(PAGE)
    lab.request([1] * 16)
    assert lab.cache.reserve(PAGE + 1) is None
    assert lab.request([1] * 16).kind == "exact"
    lab.cache.close()


def test_small_idle_segments_make_room_for_a_large_payload():
    lab = Lab(4 * PAGE, segment_bytes=PAGE)
    extents = [lab.cache.reserve(PAGE) for _ in range(4)]
    for extent in extents[:3]:
        lab.cache.release(extent)
    big = lab.cache.reserve(3 * PAGE)
    assert big.size == 3 * PAGE
    assert lab.cache.snapshot()["tiers"][0]["backed"] == 4 * PAGE
    assert lab.cache.reserve(1) is None
    lab.cache.close()


def test_no_more_is_evicted_than_a_large_payload_needs():
    lab = Lab(4 * PAGE, segment_bytes=PAGE)
    extent = lab.cache.reserve(PAGE)
    for head in range(3):
        lab.request([head] * 64, logits=False)
    lab.cache.release(extent)
    assert lab.cache.reserve(2 * PAGE) is not None
    assert [lab.probe([*[head] * 64, 9]) for head in range(3)] == [0, 64, 64]
    lab.cache.close()


def test_refused_memory_means_eviction_not_failure(monkeypatch):
    lab = Lab(4 * PAGE, segment_bytes=PAGE)
    lab.request([1] * 64, logits=False)

    def full(fd, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    lab.request([2] * 64, logits=False)
    assert lab.probe([*[2] * 64, 3]) == 64
    assert lab.cache.snapshot()["tiers"][0]["backed"] == PAGE
    monkeypatch.undo()
    lab.request([3] * 64, logits=False)
    assert lab.cache.snapshot()["tiers"][0]["backed"] == PAGE, "not asked again at once"
    lab.now += 10_000_000_000
    lab.request([4] * 64, logits=False)
    assert lab.cache.snapshot()["tiers"][0]["backed"] == 2 * PAGE
    lab.cache.close()


def test_gc_gives_memory_back():
    lab = Lab(8 * PAGE, segment_bytes=2 * PAGE)
    lab.request([1] * 100)
    fds = [fd for fd, _ in lab.cache._shared.ram.segments.values()]
    assert sum(os.fstat(fd).st_blocks for fd in fds) > 0
    assert lab.cache.gc() == 1
    assert sum(os.fstat(fd).st_blocks for fd in fds) == 0
    assert counted(lab, "bytes_ram") == 0
    assert lab.request([1] * 100).kind == "cold"
    assert lab.request([1] * 100).kind == "exact"
    lab.cache.close()


def test_evict_bytes_reports_rows_and_physical_bytes():
    lab = Lab()
    lab.request([1] * 8, logits=False)
    lab.request([2] * 8, logits=False)
    assert lab.cache.evict_bytes(0) == (0, 0)
    assert lab.cache.evict_bytes(BLOCK_BYTES) == (1, BLOCK_BYTES)
    assert lab.cache.evict_bytes(10**9) == (1, 3 * BLOCK_BYTES)
    assert lab.cache.evict_bytes(1) == (0, 0)
    lab.cache.close()


def test_a_pinned_row_outlives_gc():
    lab = Lab()
    key = lab.request([1] * 10).key
    lab.request([2] * 10)
    lab.space.pin(key)
    assert lab.cache.gc() == 1
    assert lab.request([1] * 10).logits
    lab.space.unpin(key)
    assert lab.cache.gc() == 1
    assert counted(lab, "bytes_ram") == 0
    lab.cache.close()


def test_a_namespace_is_one_for_equal_identities():
    lab = Lab()
    same = Identity(bytes([1]) * 32, "f16", bytes(32), (("build", "1"),))
    assert lab.cache.namespace(same) is lab.space
    other = lab.cache.namespace(Identity(bytes(32), "f16", bytes(32)))
    assert other is not lab.space
    lab.cache.close()


def test_the_quota_is_shared_by_all_namespaces():
    lab = Lab(PAGE)
    lab.request([1] * 64, logits=False)
    lab.space = lab.cache.namespace(Identity(bytes(32), "f16", bytes(32)))
    lab.request([1] * 64, logits=False)
    assert lab.probe([*[1] * 64, 2]) == 64
    lab.space = lab.cache.namespace(IDENTITY)
    assert lab.probe([*[1] * 64, 2]) == 0
    lab.cache.close()


def test_the_snapshot_pages_rows_by_last_use():
    lab = Lab()
    for head in range(5):
        lab.request([head] * 6)
    lab.request([1] * 6)
    lab.space.pin(lab.key([1] * 6))
    shot = lab.cache.snapshot(limit=2)
    assert shot["row_count"] == 5
    assert [row["key"] for row in shot["rows"]] == [
        lab.key([1] * 6).hex(),
        lab.key([4] * 6).hex(),
    ]
    first = shot["rows"][0]
    assert (first["tokens"], first["hits"], first["logits"], first["pinned"]) == (6, 1, True, True)
    assert first["bytes"] == 6 * TOKEN_BYTES + 128
    assert first["reason"] == "finish"
    assert 0 <= first["age_s"] < shot["rows"][1]["age_s"]
    assert len(lab.cache.snapshot(limit=10, offset=4)["rows"]) == 1
    (tier,) = shot["tiers"]
    assert tier["name"] == "ram"
    assert tier["bytes"] == counted(lab, "bytes_ram") <= tier["backed"] <= tier["quota"]
    assert shot["blocks"] == {"nodes": 10, "payloads": 10, "P": 0, "T": 0, "S": 10}


def test_the_snapshot_goes_by_use_whatever_was_read_from_files_when():
    lab = Lab()
    for head in range(3):
        lab.request([head] * 6)
    oldest, _, latest = lab.cache._shared.index.rows
    latest.used = oldest.used - 1  # as the rows of a file are, which is read row after row
    rows = lab.cache.snapshot()["rows"]
    assert [row["key"] for row in rows] == [lab.key([head] * 6).hex() for head in (1, 0, 2)]
    assert [row["age_s"] for row in rows] == sorted(row["age_s"] for row in rows)
    assert lab.cache.snapshot(limit=1, offset=1)["rows"][0]["key"] == rows[1]["key"]
    lab.cache.close()


def test_nothing_breaks_after_close():
    lab = Lab()
    lab.request(LONG)
    lease = lab.lookup(LONG)
    extent = lab.cache.reserve(64)
    lab.cache.close()
    lab.cache.close()
    lease.restored()
    lease.close()
    lab.cache.release(extent)
    assert lab.cache.reserve(64) is None
    assert lab.request([1, 2, 3, 4, 5]).key is None
    assert counted(lab, "bytes_ram") == 0


def test_the_queue_does_not_grow_with_what_was_replaced():
    lab = Lab()
    for turn in range(3000):
        lab.request([1, 2], logits=False)
        lab.request([1, 2, 3], logits=False)
        with lab.lookup([1, 2, 3]) as lease:
            lab.space.quarantine([piece.node_id for piece in lease.pieces], corrupt=False)
        assert turn or lab.cache.snapshot()["row_count"] == 0
    assert len(lab.cache._shared.index.queue(RAM)) < 3000
    lab.cache.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_threads_never_read_each_others_bytes(seed):
    """Eight requests at a time in a tier for about three: what is leased stays put."""
    lab = Lab(4 * PAGE, segment_bytes=PAGE)
    problems = []
    heads = [[random.Random(n).randrange(5) for _ in range(60)] for n in range(4)]

    def work(number):
        rng = random.Random(seed * 100 + number)
        try:
            for _ in range(60):
                head = rng.choice(heads)[: rng.randrange(1, 60)]
                ids = [*head, *(rng.randrange(5) for _ in range(rng.randrange(8)))]
                exactness = rng.choice(["token", "bit"])
                with lab.lookup(ids, exactness=exactness) as lease:
                    check_pieces(lab.cache, lease, ids)
                    if rng.random() < 0.1 and lease.pieces:
                        lab.space.quarantine([rng.choice(lease.pieces).node_id])
                        lease.restart()
                    else:
                        lease.restored()
                    canonical = lease.kind == "cold" or lease.label == "bit"
                    run = Run(lab, lease, ids, [6, 6], exactness, 8, 2, canonical=canonical)
                    run.save(len(ids), "cold", logits=True)
                    run.save(len(ids) + 2, "finish", logits=True)
                if rng.random() < 0.02:
                    lab.cache.gc()
        except BaseException as error:
            problems.append(error)
            raise

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert lab.cache.snapshot()["tiers"][0]["backed"] <= 4 * PAGE
    lab.cache.gc()
    assert counted(lab, "bytes_ram") == 0
    lab.cache.close()
