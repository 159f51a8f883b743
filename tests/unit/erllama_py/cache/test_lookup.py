"""What a lookup answers, in its order, and what it counts."""

from __future__ import annotations

import pytest

from erllama_py._cache.identity import Identity
from tests.cachelab import BLOCK, CHUNK, Lab, check_pieces

LONG = list(range(100, 130))
HITS = ("hits_exact", "hits_resume", "hits_longest_prefix", "misses")


@pytest.fixture
def lab():
    lab = Lab()
    yield lab
    lab.cache.close()


def hits(lab):
    values = lab.cache.counters.snapshot()
    return tuple(values[name] for name in HITS)


def test_the_first_request_is_cold_and_the_same_again_is_exact(lab):
    first = lab.request(LONG)
    again = lab.request(LONG)
    assert (first.kind, first.prefix_len, first.label) == ("cold", 0, None)
    assert (again.kind, again.via, again.prefix_len, again.keep) == ("exact", "exact", 30, 30)
    assert again.logits
    assert again.key == first.key == lab.key(LONG)
    assert hits(lab) == (1, 0, 0, 1)


def test_any_shared_prefix_is_a_hit_to_the_token(lab):
    lab.request(LONG)
    for length in range(1, 30):
        other = [*LONG[:length], 7, 7, 7]
        assert lab.probe(other) == length
        with lab.lookup(other) as lease:
            check_pieces(lab.cache, lease, other)
            assert (lease.kind, lease.via) == ("partial", "longest_prefix")
            assert (lease.keep, lease.prefix_len) == (length, length)
            assert lease.captured == length // BLOCK * BLOCK


def test_the_same_tokens_without_a_row_are_one_token_less(lab):
    lab.request(LONG)
    with lab.lookup(LONG[:20]) as lease:
        assert (lease.kind, lease.keep, lease.logits, lease.captured) == ("partial", 19, None, 20)


def test_an_exact_row_without_logits_decodes_its_last_token_again(lab):
    lab.request(LONG, logits=False)
    with lab.lookup(LONG) as lease:
        assert (lease.kind, lease.prefix_len, lease.keep) == ("exact", 30, 29)
        assert lease.logits is None


def test_pieces_that_are_not_needed_are_left_out(lab):
    lab.request(LONG[:9], logits=False)
    with lab.lookup(LONG[:9]) as lease:
        assert (lease.keep, lease.pieces[-1].end) == (8, 8)


def test_the_floor_holds_for_the_search_and_not_for_a_resume(lab):
    key = lab.request(LONG[:10]).key
    longer = [*LONG[:10], 1, 2]
    assert lab.request(longer, floor=11).kind == "cold"
    lab = Lab()
    key = lab.request(LONG[:10]).key
    with lab.lookup(longer, floor=11, parent_key=key) as lease:
        assert (lease.via, lease.prefix_len) == ("resume", 10)
    assert lab.request(LONG[:10], floor=11).kind == "exact"
    lab.cache.close()


def test_below_the_floor_no_probe_is_made(lab):
    lab.request(LONG[:5], floor=10)
    assert lab.cache.counters.snapshot()["longest_prefix_probes"] == 0
    lab.request(LONG, floor=10)
    values = lab.cache.counters.snapshot()
    assert values["longest_prefix_probes"] == 1
    assert values["longest_prefix_ns"] > 0


def test_exact_comes_before_the_parent(lab):
    parent = lab.request(LONG[:10]).key
    lab.request(LONG)
    with lab.lookup(LONG, parent_key=parent) as lease:
        assert lease.via == "exact"


def test_a_conversation_resumes_from_its_last_reply(lab):
    first = lab.request(LONG[:10], reply=LONG[10:17])
    turn = [*LONG[:17], 1, 2, 3, 4, 5]
    second = lab.request(turn, reply=[6, 6], parent_key=first.key)
    assert (second.kind, second.via, second.prefix_len) == ("partial", "resume", 17)
    assert hits(lab) == (0, 1, 0, 1)


@pytest.mark.parametrize("parent", [None, b"x" * 32, "text", 7, b""])
def test_an_unknown_parent_falls_on_to_the_search(lab, parent):
    lab.request(LONG[:10])
    with lab.lookup(LONG, parent_key=parent) as lease:
        assert (lease.via, lease.keep) == ("longest_prefix", 10)


def test_a_parent_that_is_no_prefix_falls_on_to_the_search(lab):
    key = lab.request([1, 2, 3, 4, 5]).key
    lab.request(LONG[:10])
    with lab.lookup(LONG, parent_key=key) as lease:
        assert (lease.via, lease.keep) == ("longest_prefix", 10)
    with lab.lookup([1, 2, 3, 9], parent_key=key) as lease:
        assert (lease.via, lease.keep) == ("longest_prefix", 3)


def test_what_is_left_of_an_evicted_parent_is_resumed(lab):
    key = lab.request(LONG, logits=False).key
    while lab.space.status(key):
        lab.cache.evict_bytes(1)
    assert lab.cache.counters.snapshot()["evictions"] == 1
    with lab.lookup([*LONG, 1], parent_key=key, floor=1000) as lease:
        assert (lease.via, lease.keep) == ("resume", 28)


def test_a_row_whose_head_is_another_engines_is_a_miss(lab):
    """Same key, another engine: nothing of it is found."""
    other = Identity(*[bytes([1]) * 32, "f16", bytes(32)], engine=(("build", "2"),))
    key = lab.request(LONG).key
    space = lab.cache.namespace(other)
    assert space.key(b"") == lab.space.key(b"")
    assert space.status(key) is None
    lab.space = space
    assert lab.request(LONG).kind == "cold"


@pytest.mark.parametrize("prompt", [[], [1]])
def test_prompts_too_short_to_leave_anything(lab, prompt):
    with lab.lookup(prompt) as lease:
        assert (lease.kind, lease.keep, lease.captured) == ("cold", 0, 0)


def test_a_row_of_one_token_is_exact_and_keeps_nothing_without_logits(lab):
    lab.request([5], logits=False)
    with lab.lookup([5]) as lease:
        assert (lease.kind, lease.prefix_len, lease.keep, lease.pieces) == ("exact", 1, 0, [])


def test_another_thread_count_cannot_use_what_was_decoded(lab):
    lab.request(LONG[:10], reply=LONG[10:20])
    assert lab.probe(LONG) == 20
    assert lab.probe(LONG, threads=3) == CHUNK
    assert lab.probe(LONG, chunk=12) == 10 - 10 % BLOCK or lab.probe(LONG, chunk=12) == 0


def test_an_uncounted_lookup_moves_nothing(lab):
    lab.request(LONG)
    before = lab.cache.counters.snapshot()
    with lab.lookup(LONG, counted=False) as lease:
        assert lease.kind == "exact"
        lease.restart()
    assert lab.cache.counters.snapshot() == before


def test_an_exactness_of_neither_kind_is_refused(lab):
    with pytest.raises(ValueError, match="exactness"):
        lab.lookup(LONG, exactness="about")


# -- bit exactness --------------------------------------------------------------------------


def test_bit_restores_whole_chunks_only(lab):
    lab.request(LONG)
    with lab.lookup([*LONG[:20], 1, 2], exactness="bit") as lease:
        assert (lease.keep, lease.label, lease.captured) == (16, "bit", 16)
    with lab.lookup(LONG[:16], exactness="bit") as lease:
        assert (lease.kind, lease.keep) == ("partial", 8)


def test_bit_takes_an_exact_row_whose_tail_is_canonical(lab):
    lab.request(LONG, exactness="bit")
    with lab.lookup(LONG, exactness="bit") as lease:
        check_pieces(lab.cache, lease, LONG)
        assert (lease.kind, lease.keep, lease.label) == ("exact", 30, "bit")
        assert lease.captured == 28
    with lab.lookup([*LONG, 1], exactness="bit") as lease:
        assert (lease.kind, lease.keep) == ("partial", 24)


def test_bit_does_not_take_a_row_made_at_token(lab):
    lab.request(LONG)
    assert lab.request(LONG, exactness="bit").kind == "partial"
    assert lab.request(LONG, exactness="bit").kind == "exact"


def test_bit_does_not_take_what_was_computed_beside_others(lab):
    lab.request(LONG, alone=False)
    with lab.lookup(LONG, exactness="bit") as lease:
        assert (lease.kind, lease.captured) == ("cold", 0)
    assert lab.probe([*LONG, 1]) == 30


def test_a_chunk_of_another_size_is_not_bit_exact(lab):
    lab.request(LONG, exactness="bit")
    assert lab.probe(LONG, exactness="bit", chunk=12) == 0


def test_logits_of_another_chunk_are_not_bit_exact(lab):
    lab.request(LONG, exactness="bit")
    lab.request(LONG, exactness="bit", chunk=2 * CHUNK, logits=False)
    with lab.lookup(LONG, exactness="bit", chunk=2 * CHUNK) as lease:
        assert (lease.kind, lease.keep) == ("partial", 16)


def test_token_says_bit_where_the_hit_is(lab):
    lab.request(LONG)
    labels = {}
    for length in (7, 8, 12, 16):
        with lab.lookup([*LONG[:length], 1]) as lease:
            labels[length] = lease.label
    assert labels == {7: "token", 8: "bit", 12: "token", 16: "bit"}


def test_an_exact_bit_row_survives_a_longer_canonical_prompt(lab):
    """Its last slice stays beside the whole chunks that the longer prompt computes."""
    lab.request(LONG[:21], exactness="bit")
    lab.request(LONG, exactness="bit")
    with lab.lookup(LONG[:21], exactness="bit") as lease:
        assert lease.kind == "exact"
        payloads = lab.cache._shared.index.payloads
        kinds = "".join(payloads[piece.node_id].grade.kind for piece in lease.pieces)
        assert kinds == "PPPPTT"
    assert lab.probe([*LONG[:24], 1], exactness="bit") == 24


def test_the_last_slice_goes_with_its_row(lab):
    lab.request(LONG[:21], exactness="bit")
    lab.request(LONG, exactness="bit")
    assert lab.cache.snapshot()["blocks"]["T"] == 2 + 2
    lab.space.pin(lab.key(LONG))
    lab.cache.gc()
    assert lab.cache.snapshot()["blocks"]["T"] == 2
    with lab.lookup(LONG, exactness="bit") as lease:
        assert lease.kind == "exact"
    with lab.lookup(LONG[:21], exactness="bit") as lease:
        assert (lease.kind, lease.keep) == ("partial", 16)
    with lab.lookup(LONG[:21]) as lease:
        assert (lease.kind, lease.keep) == ("exact", 20)
