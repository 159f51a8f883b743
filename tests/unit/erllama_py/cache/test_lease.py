"""What a request adds, and what its lease protects."""

from __future__ import annotations

import pytest

from erllama_py._cache.checksum import crc
from erllama_py._cache.grade import last_slice, streamed, whole_chunk
from erllama_py._cache.key import encode_tokens
from erllama_py._cache.lease import NewLogits, Tail
from tests.cachelab import BLOCK, CHUNK, LOGITS_BYTES, THREADS, TOKEN_BYTES, Lab, content, logits_of

LONG = list(range(100, 130))
P, S = whole_chunk(CHUNK), streamed(THREADS)
BLOCK_BYTES = BLOCK * TOKEN_BYTES


@pytest.fixture
def lab():
    lab = Lab()
    yield lab
    lab.cache.close()


def add(lab, lease, start, grade=S, ids=LONG):
    data = content(ids[start : start + BLOCK])
    tokens = encode_tokens(ids[start : start + BLOCK])
    return lease.add_block(start, tokens, grade, lab.put(data), len(data), crc(data))


def tail_of(lab, start, end, grade=S, ids=LONG):
    data = content(ids[start:end])
    return Tail(start, lab.put(data), len(data), crc(data), grade)


def held(lab):
    return lab.cache.counters.snapshot()["bytes_ram"]


def test_blocks_are_found_before_any_row(lab):
    lease = lab.lookup(LONG)
    assert add(lab, lease, 0)
    assert add(lab, lease, 4)
    assert lab.probe(LONG) == 8
    lease.close()
    assert lab.probe(LONG) == 8


def test_a_block_that_is_there_is_freed_and_the_chain_goes_on(lab):
    one, two = lab.lookup(LONG), lab.lookup(LONG)
    assert add(lab, one, 0)
    assert not add(lab, two, 0)
    assert held(lab) == BLOCK_BYTES
    assert not two.broken
    assert add(lab, two, 4)
    one.close()
    two.close()


def test_a_gap_breaks_the_chain(lab):
    with lab.lookup(LONG) as lease:
        add(lab, lease, 0)
        assert not add(lab, lease, 8)
        assert lease.broken
        assert not add(lab, lease, 4)
        assert lease.add_row(encode_tokens(LONG[:8]), "finish") is None
    assert held(lab) == BLOCK_BYTES
    assert lab.cache.counters.snapshot()["saves_dropped"] == 1


def test_a_block_captured_twice_does_not_break_it(lab):
    with lab.lookup(LONG) as lease:
        add(lab, lease, 0)
        add(lab, lease, 4)
        assert not add(lab, lease, 0)
        assert add(lab, lease, 8)


def test_more_than_was_written_is_trimmed_off(lab):
    with lab.lookup(LONG) as lease:
        extent = lab.cache.reserve(1000)
        assert lease.add_block(0, encode_tokens(LONG[:4]), S, extent, 65, 0)
    assert held(lab) == 128


def test_canonical_follows_canonical_only(lab):
    with lab.lookup(LONG) as lease:
        add(lab, lease, 0, S)
        assert not add(lab, lease, 4, P)
        assert lease.broken


def test_canonical_takes_the_place_of_the_rest(lab):
    with lab.lookup(LONG) as lease:
        add(lab, lease, 0, S)
    with lab.lookup(LONG, exactness="bit") as lease:
        assert lease.captured == 0
        assert add(lab, lease, 0, P)
    assert lab.cache.snapshot()["blocks"]["P"] == 1
    assert lab.cache.snapshot()["blocks"]["S"] == 0
    with lab.lookup([*LONG[:4], 1]) as lease:
        assert not add(lab, lease, 0, S)
        assert not lease.broken
    assert held(lab) == BLOCK_BYTES


def test_what_is_replaced_while_it_is_read_stays_readable(lab):
    with lab.lookup(LONG) as lease:
        add(lab, lease, 0, S)
    reader = lab.lookup([*LONG[:4], 1])
    with lab.lookup(LONG, exactness="bit") as lease:
        add(lab, lease, 0, P)
    assert held(lab) == 2 * BLOCK_BYTES
    piece = reader.pieces[0]
    assert bytes(lab.cache.view(piece.extent)[: piece.nbytes]) == content(LONG[:4])
    reader.restored()
    assert held(lab) == BLOCK_BYTES
    reader.close()


@pytest.mark.parametrize(
    ("start", "grade"),
    [(0, whole_chunk(6)), (0, last_slice(CHUNK, 9)), (0, last_slice(CHUNK, 3))],
)
def test_a_grade_that_cannot_be_is_an_error_and_keeps_the_extent(lab, start, grade):
    with lab.lookup(LONG) as lease:
        extent = lab.cache.reserve(BLOCK_BYTES)
        with pytest.raises(ValueError, match=r"slice|multiple"):
            lease.add_block(start, encode_tokens(LONG[:4]), grade, extent, 4, 0)
        assert not lease.broken
        lab.cache.release(extent)
    assert held(lab) == 0


def test_arguments_that_contradict_each_other_keep_the_extents(lab):
    with lab.lookup(LONG) as lease:
        extent = lab.cache.reserve(64)
        wrong = [
            lambda: lease.add_block(0, encode_tokens(LONG[:3]), S, extent, 4, 0),
            lambda: lease.add_block(0, encode_tokens(LONG[:4]), S, extent, 65, 0),
            lambda: lease.add_block(0, encode_tokens(LONG[:4]), S, extent, 0, 0),
            lambda: lease.add_row(encode_tokens(LONG[:4]), "why"),
            lambda: lease.add_row(encode_tokens(LONG[:4]), "cold", tail=Tail(4, extent, 64, 0, S)),
            lambda: lease.add_row(encode_tokens(LONG[:7]), "cold", tail=Tail(0, extent, 64, 0, S)),
        ]
        for call in wrong:
            with pytest.raises(ValueError, match=r"bytes|not one of|no tail"):
                call()
        lab.cache.release(extent)


def test_a_tail_cut_off_a_whole_chunk_is_kept_as_any_other(lab):
    with lab.lookup(LONG) as lease:
        assert lease.add_row(encode_tokens(LONG[:3]), "cold", tail=tail_of(lab, 0, 3, P))
    assert lab.probe(LONG) == 3


def test_rows_count_by_reason_and_twice_is_a_duplicate(lab):
    for reason in ("cold", "continued", "finish", "evict", "shutdown"):
        with lab.lookup(LONG) as lease:
            lease.add_row(
                encode_tokens([len(reason)]),
                reason,
                tail=Tail(0, lab.put(content([len(reason)])), TOKEN_BYTES, 0, S),
            )
    before = lab.cache.counters.snapshot()
    with lab.lookup(LONG) as lease:
        key = lease.add_row(encode_tokens([4]), "finish")
    after = lab.cache.counters.snapshot()
    assert key == lab.key([4])
    moved = {name for name in after if after[name] != before[name] and "longest" not in name}
    assert moved == {"duplicate_dropped", "saves_dropped", "misses"}
    # cold and evict are one row: keys are of tokens, here the reason's length.
    counts = {name: after[name] for name in after if name.startswith("saves_")}
    assert counts == {
        "saves_cold": 1,
        "saves_continued": 1,
        "saves_finish": 1,
        "saves_evict": 1,
        "saves_shutdown": 1,
        "saves_dropped": 1,
    }


def test_a_row_of_nothing_is_refused(lab):
    with lab.lookup(LONG) as lease:
        assert lease.add_row(b"", "finish") is None


def test_a_row_without_its_tail_is_refused_unless_it_is_stored(lab):
    with lab.lookup(LONG) as lease:
        add(lab, lease, 0)
        assert lease.add_row(encode_tokens(LONG[:6]), "finish") is None
        add(lab, lease, 4)
        assert lease.add_row(encode_tokens(LONG[:6]), "finish") == lab.key(LONG[:6])
    with lab.lookup(LONG[:6]) as lease:
        assert (lease.kind, lease.keep) == ("exact", 5)


def test_a_block_takes_in_the_tail_it_fills_over(lab):
    lab.request(LONG[:6], logits=False)
    assert held(lab) == 6 * TOKEN_BYTES
    lab.request(LONG[:8], logits=False, alone=False)
    assert held(lab) == 8 * TOKEN_BYTES
    assert lab.request(LONG[:6]).kind == "exact"


def test_a_longer_tail_takes_in_a_shorter_and_a_shorter_adds_nothing(lab):
    lab.request(LONG[:2], logits=False)
    lab.request(LONG[:3], logits=False)
    lab.request(LONG[:1], logits=False)
    assert held(lab) == 3 * TOKEN_BYTES
    assert [lab.request(LONG[:n], logits=False).kind for n in (1, 2, 3)] == ["exact"] * 3


def test_better_logits_replace_and_equal_ones_are_freed(lab):
    lab.request(LONG[:8], alone=False)
    size = held(lab)
    lab.request(LONG[:8], exactness="bit")
    assert held(lab) == size
    with lab.lookup(LONG[:8], exactness="bit") as lease:
        assert (lease.kind, lease.label) == ("exact", "bit")
        data = logits_of(LONG[:8])
        lease.add_row(
            encode_tokens(LONG[:8]), "finish", logits=NewLogits(lab.put(data), crc(data), False)
        )
    assert held(lab) == size


def test_the_newest_four_of_a_branch_keep_their_logits(lab):
    for length in range(1, 8):
        lab.request(LONG[:length])
    lab.request([9, 9])
    kept = {row["tokens"] for row in lab.cache.snapshot()["rows"] if row["logits"]}
    assert kept == {2, 4, 5, 6, 7}  # 2 is the other branch's
    assert held(lab) == (7 + 2) * TOKEN_BYTES + 5 * LOGITS_BYTES


def test_canonical_rows_are_a_branch_too():
    """Their tails stay beside the blocks that fill over them."""
    lab = Lab()
    for length in range(1, 8):
        lab.request(LONG[:length], exactness="bit")
    kept = {row["tokens"] for row in lab.cache.snapshot()["rows"] if row["logits"]}
    assert kept == {4, 5, 6, 7}
    lab.cache.close()


def test_a_pinned_row_stays_pinned_when_a_block_takes_in_its_tail(lab):
    key = lab.request(LONG[:6]).key
    lab.space.pin(key)
    lab.request(LONG[:8], alone=False)
    lab.cache.gc()
    assert lab.request(LONG[:6]).kind == "exact"
    lab.space.unpin(key)
    lab.cache.gc()
    assert held(lab) == 0


def test_a_pinned_row_keeps_its_logits(lab):
    lab.request(LONG[:1])
    assert lab.space.pin(lab.key(LONG[:1]))
    for length in range(2, 9):
        lab.request(LONG[:length])
    assert lab.request(LONG[:1]).logits
    lab.space.unpin(lab.key(LONG[:1]))
    assert not lab.space.pin(b"none")


# -- protection -------------------------------------------------------------------------------


def test_a_running_request_keeps_its_own_blocks(lab):
    lease = lab.lookup(LONG)
    add(lab, lease, 0)
    add(lab, lease, 4)
    lease.restored()
    assert lab.cache.gc() == 0
    assert lab.probe(LONG) == 8
    lease.close()
    lab.cache.gc()
    assert lab.probe(LONG) == 0
    assert held(lab) == 0


def test_what_is_being_restored_is_not_evicted(lab):
    lab.request(LONG)
    with lab.lookup([*LONG[:10], 1]) as lease:
        lab.cache.gc()
        assert lab.probe(LONG) == 12  # the third block, though only half of it was asked for
        lease.restored()
        lab.cache.gc()
        assert lab.probe(LONG) == 8
    assert lab.cache.counters.snapshot()["evictions"] == 1


def test_a_lease_closes_once(lab):
    lab.request(LONG)
    lease = lab.lookup(LONG)
    lease.close()
    lease.close()
    lease.restored()
    assert not add(lab, lease, 24)
    extent = lab.put(b"1234")
    assert (
        lease.add_row(encode_tokens([1, 2]), "finish", logits=NewLogits(extent, 0, False)) is None
    )
    lab.cache.gc()
    assert held(lab) == 0


def test_a_failed_restore_drops_the_payload_and_all_behind_it(lab):
    lab.request(LONG)
    other = lab.lookup([*LONG[:20], 5])
    with lab.lookup(LONG) as lease:
        bad = lease.pieces[2]
        lab.space.quarantine([bad.node_id])
        lease.restart()
        assert (lease.kind, lease.via, lease.keep, lease.pieces) == ("cold", "cold", 0, [])
        assert lease.captured == 8
        assert lab.probe(LONG) == 8
        assert lab.space.status(lab.key(LONG)) is None
        assert add(lab, lease, 8, P)
        assert lab.probe(LONG) == 12
    values = lab.cache.counters.snapshot()
    assert (values["corrupt_files"], values["hits_exact"], values["misses"]) == (1, 0, 2)
    assert other.broken
    piece = other.pieces[3]
    assert bytes(lab.cache.view(piece.extent)[: piece.nbytes]) == content(LONG[12:16])
    other.close()
    lab.cache.gc()
    assert held(lab) == 0


def test_a_payload_is_quarantined_once_and_suspicion_is_not_corruption(lab):
    lab.request(LONG)
    with lab.lookup(LONG) as lease:
        last = lease.pieces[-1].node_id
        assert lab.space.quarantine([last], corrupt=False) == 1
        assert lab.space.quarantine([last, 10**9]) == 0
    assert lab.cache.counters.snapshot()["corrupt_files"] == 0
    assert lab.probe(LONG) == 28
