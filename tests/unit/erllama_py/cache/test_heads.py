"""Heads: runs of tokens that are kept for whoever comes next."""

from __future__ import annotations

from pathlib import Path

import pytest

from erllama_py._cache.heads import KEPT, SHARE
from erllama_py._cache.key import encode_tokens
from erllama_py._cache.tier import RAM
from tests.cachelab import BLOCK, TOKEN_BYTES, Lab

BLOCK_BYTES = BLOCK * TOKEN_BYTES
QUOTA = 40 * BLOCK_BYTES
HEAD = list(range(100, 100 + 3 * BLOCK + 2))
"""Three blocks and a half."""


@pytest.fixture
def lab() -> Lab:
    return Lab(QUOTA, segment_bytes=4096)


def keep(lab: Lab, ids: list[int], owner: object = "owner") -> None:
    lab.space.keep_head(encode_tokens(ids), owner)


def flood(lab: Lab, first: int = 1000, count: int = 40) -> None:
    """Serve prompts that have nothing in common with anything."""
    for number in range(count):
        start = first + number * 20
        lab.request(list(range(start, start + 10)), logits=False)


def pinned(lab: Lab) -> list[int]:
    return [head["pinned"] for head in lab.cache.snapshot()["heads"]]


@pytest.mark.parametrize("before", [True, False], ids=["there already", "computed later"])
def test_a_head_outlives_what_would_evict_it(lab: Lab, before: bool) -> None:
    if before:
        lab.request([*HEAD, 1, 2, 3])
        keep(lab, HEAD)
    else:
        keep(lab, HEAD)
        assert pinned(lab) == [0]
        lab.request([*HEAD, 1, 2, 3])
    assert pinned(lab) == [3 * BLOCK]
    flood(lab)
    assert lab.probe([*HEAD, 7, 7, 7]) == 3 * BLOCK
    assert lab.probe([*HEAD, 1, 2, 3]) == 3 * BLOCK, "what is beyond the head was evicted"


def test_without_a_head_nothing_is_left(lab: Lab) -> None:
    lab.request([*HEAD, 1, 2, 3])
    flood(lab)
    assert lab.probe([*HEAD, 7, 7, 7]) == 0


def test_the_part_beyond_whole_blocks_is_found_while_a_conversation_has_it(lab: Lab) -> None:
    keep(lab, HEAD)
    lab.request([*HEAD, 1, 2, 3])
    assert lab.probe([*HEAD, 7, 7, 7]) == len(HEAD)


def test_heads_are_let_go_the_longest_unused_first(lab: Lab) -> None:
    heads = [[number, *HEAD] for number in range(KEPT + 1)]
    for head in heads[:-1]:
        keep(lab, head)
    keep(lab, heads[0])
    keep(lab, heads[-1])
    for head in (heads[0], heads[1]):
        lab.request(head)
    flood(lab)
    assert (lab.probe([*heads[0], 7]), lab.probe([*heads[1], 7])) == (3 * BLOCK, 0)
    assert len(pinned(lab)) == KEPT


def test_together_they_pin_a_share_of_the_quota_at_most(lab: Lab) -> None:
    heads = [list(range(number, number + 4 * BLOCK)) for number in (100, 200, 300, 400)]
    for head in heads:
        keep(lab, head)
        lab.request([*head, 1])
        assert lab.cache._shared.index.heads.pinned(RAM) <= QUOTA // SHARE
    assert pinned(lab) == [4 * BLOCK, 4 * BLOCK], "ten blocks are the share: two heads of four"


def test_a_head_beyond_the_share_is_kept_in_front(lab: Lab) -> None:
    long = list(range(100, 100 + 16 * BLOCK))
    keep(lab, long)
    lab.request([*long, 1])
    assert pinned(lab) == [10 * BLOCK]
    flood(lab)
    assert lab.probe([*long, 7]) == 10 * BLOCK


def test_one_owner_of_two_does_not_let_a_head_go(lab: Lab) -> None:
    keep(lab, HEAD, "one")
    keep(lab, HEAD, "another")
    lab.request(HEAD)
    lab.cache.disown_heads("one")
    assert pinned(lab) == [3 * BLOCK]
    lab.cache.disown_heads("another")
    assert pinned(lab) == []
    flood(lab)
    assert lab.probe([*HEAD, 7]) == 0


def test_gc_takes_heads_and_evict_bytes_takes_them_last(lab: Lab) -> None:
    keep(lab, HEAD)
    lab.request([*HEAD, 1])
    lab.request(list(range(500, 510)))
    lab.cache.evict_bytes(1)
    assert pinned(lab) == [3 * BLOCK]
    assert lab.probe([*HEAD, 7]) >= 3 * BLOCK
    lab.cache.evict_bytes(QUOTA)
    assert pinned(lab) == []
    assert lab.probe([*HEAD, 7]) == 0

    keep(lab, HEAD)
    lab.request([*HEAD, 1])
    lab.cache.gc()
    assert lab.cache.snapshot()["blocks"]["nodes"] == 0
    assert pinned(lab) == []


def test_a_damaged_block_shortens_a_head_until_it_is_there_again(lab: Lab) -> None:
    keep(lab, HEAD)
    lab.request([*HEAD, 1])
    with lab.lookup([*HEAD, 7]) as lease:
        lab.space.quarantine([lease.pieces[1].node_id])
        lease.restart()
    assert pinned(lab) == [BLOCK]
    lab.request([*HEAD, 1])
    assert pinned(lab) == [3 * BLOCK]
    flood(lab)
    assert lab.probe([*HEAD, 7]) == 3 * BLOCK


def test_a_head_stays_in_one_tier_or_another(tmp_path: Path) -> None:
    """Both tiers are flooded; what is in a file may leave memory, but not both."""
    lab = Lab(QUOTA, segment_bytes=4096, path=tmp_path, disk=64 * BLOCK_BYTES)
    keep(lab, HEAD)
    lab.request([*HEAD, 1, 2, 3])
    lab.cache.flush()
    for number in range(8):
        flood(lab, 1000 + 1000 * number, 20)
        lab.cache.flush()
    assert pinned(lab) == [3 * BLOCK]
    assert lab.probe([*HEAD, 7]) == 3 * BLOCK
    lab.request([*HEAD, 7])
    lab.cache.close()
