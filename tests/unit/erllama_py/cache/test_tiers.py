"""Memory in front, files behind it: what is where, and that it is right from anywhere."""

from __future__ import annotations

import random
import shutil

import pytest

from erllama_py._cache.identity import Identity
from erllama_py._cache.key import encode_tokens
from erllama_py._cache.store import Cache
from tests.cachelab import BLOCK, CHUNK, IDENTITY, THREADS, Lab, check_pieces, content

PROMPT = list(range(1, 23))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "kv"


def reopened(lab: Lab, path, **options) -> Lab:
    lab.cache.close()
    return Lab(path=path, **options)


def counters(lab: Lab) -> dict[str, int]:
    return lab.cache.counters.snapshot()


def forget_memory(lab: Lab) -> None:
    assert lab.cache.flush()
    lab.cache.evict_bytes(1 << 40, ["ram"])


def test_after_a_restart_an_exact_hit_has_its_logits(path):
    lab = Lab(path=path)
    assert lab.request(PROMPT, [90, 91]).kind == "cold"
    lab = reopened(lab, path)
    hit = lab.request([*PROMPT, 90, 91])
    assert (hit.kind, hit.prefix_len, hit.logits) == ("exact", len(PROMPT) + 2, True)
    assert counters(lab)["hits_exact"] == 1


def test_after_a_restart_a_row_is_exact_whose_tail_was_replaced_before_it_was_written(path):
    lab = Lab(path=path)
    lab.request(PROMPT)
    lab.request(PROMPT, [90])
    lab = reopened(lab, path)
    hit = lab.request(PROMPT)
    assert (hit.kind, hit.logits) == ("exact", True)


def test_after_a_restart_the_canonical_row_is_exact_at_bit(path):
    lab = Lab(path=path)
    lab.request(PROMPT, exactness="bit")
    lab = reopened(lab, path)
    hit = lab.request(PROMPT, exactness="bit")
    assert (hit.kind, hit.label, hit.logits) == ("exact", "bit", True)


def test_after_a_restart_any_shared_prefix_is_found_to_the_token(path):
    lab = Lab(path=path)
    lab.request(PROMPT, [90, 91, 92])
    lab = reopened(lab, path)
    assert lab.probe([*PROMPT, 90, 77]) == len(PROMPT) + 1
    assert lab.probe([*PROMPT[:14], 77, 78]) == 14


def test_a_parent_key_from_before_the_restart_resumes(path):
    lab = Lab(path=path)
    key = lab.request(PROMPT).key
    lab = reopened(lab, path)
    assert lab.request([*PROMPT, 5], parent_key=key).via == "resume"


def test_another_identity_sees_nothing_of_it(path):
    lab = Lab(path=path)
    lab.request(PROMPT)
    other = Identity(IDENTITY.fingerprint, "f16", bytes(32), (("build", "2"),))
    lab = reopened(lab, path, identity=other)
    assert lab.probe(PROMPT) == 0
    assert lab.cache.snapshot()["row_count"] == 0


def test_restoring_from_a_file_brings_it_into_memory(path):
    lab = Lab(path=path)
    lab.request(PROMPT)
    lab = reopened(lab, path)
    with lab.lookup(PROMPT) as lease:
        check_pieces(lab.cache, lease, PROMPT)
        assert lease.tiers == {"disk": len(PROMPT)}
        lease.restored()
    assert lab.cache.flush()
    with lab.lookup(PROMPT) as lease:
        check_pieces(lab.cache, lease, PROMPT)
        assert lease.tiers == {"ram": len(PROMPT)}


def test_without_promotion_it_stays_in_its_file(path):
    lab = Lab(path=path)
    lab.request(PROMPT)
    lab = reopened(lab, path, moves={"promote": False})
    for _ in range(2):
        with lab.lookup(PROMPT) as lease:
            assert lease.tiers == {"disk": len(PROMPT)}
            lease.restored()
        assert lab.cache.flush()


def test_what_memory_gives_up_is_found_in_its_file(path):
    lab = Lab(path=path)
    lab.request(PROMPT)
    forget_memory(lab)
    assert counters(lab)["bytes_ram"] == 0
    assert counters(lab)["evictions"] == 0
    hit = lab.request(PROMPT)
    assert (hit.kind, hit.logits) == ("exact", True)


def test_memory_that_is_needed_sends_the_unsaved_to_its_file_first(path):
    lab = Lab(8192, segment_bytes=4096, path=path, moves={"save": False})
    prompts = [[n] * 16 for n in range(1, 17)]
    for prompt in prompts:
        lab.request(prompt, logits=False)
    assert [lab.probe([*prompt, 99]) for prompt in prompts] == [16] * 16
    assert counters(lab)["evictions"] == 0
    for prompt in prompts:
        assert lab.request([*prompt, 99], logits=False).prefix_len == 16


def test_with_neither_saving_nor_demotion_memory_is_all_there_is(path):
    lab = Lab(8192, segment_bytes=4096, path=path, moves={"save": False, "demote": False})
    for n in range(1, 17):
        lab.request([n] * 16, logits=False)
    lab.cache.flush()
    assert counters(lab)["bytes_disk"] == 0
    assert lab.probe([1] * 16) == 0


def test_the_quota_of_the_files_is_never_exceeded(path):
    quota = 1 << 19
    lab = Lab(path=path, disk=quota)
    for n in range(1, 60):
        lab.request([n] * 40, logits=False)
        lab.cache.flush()
        assert sum(file.stat().st_size for file in path.glob("*.blk")) <= quota
    assert lab.probe([59] * 40) == 40
    lab = reopened(lab, path, disk=quota)
    assert lab.probe([59] * 41) == 40
    assert lab.probe([1] * 40) == 0


def test_gc_empties_every_tier_but_what_is_pinned(path):
    lab = Lab(path=path)
    key = lab.request(PROMPT, logits=False).key
    lab.request([7] * 12, logits=False)
    lab.cache.flush()
    assert lab.space.pin(key)
    assert lab.cache.gc() == 1
    assert lab.probe([*PROMPT, 99]) == len(PROMPT)
    assert lab.probe([7] * 12) == 0
    lab.space.unpin(key)
    assert lab.cache.gc() == 1
    assert list(path.glob("*.blk")) == []
    assert counters(lab)["bytes_disk"] == 0
    lab = reopened(lab, path)
    assert lab.cache.snapshot()["row_count"] == 0
    assert lab.probe(PROMPT) == 0


def test_a_directory_that_was_deleted_takes_nothing_but_its_content(path):
    lab = Lab(path=path)
    lab.request(PROMPT)
    lab.cache.flush()
    shutil.rmtree(path)
    assert lab.cache.snapshot()["tiers"][1]["backed"] == 0
    assert lab.request(PROMPT).kind == "exact"
    lab.request([7] * 12)
    lab.cache.gc()
    lab.request(PROMPT)
    lab = reopened(lab, path)
    assert lab.request(PROMPT).kind == "exact"
    lab.cache.close()


def test_damage_in_a_file_is_a_miss_that_is_counted(path):
    lab = Lab(path=path)
    lab.request(PROMPT, logits=False)
    lab.cache.close()
    (file,) = path.glob("*.blk")
    data = bytearray(file.read_bytes())
    at = data.find(content(PROMPT[4:8]))
    data[at] ^= 1
    file.write_bytes(data)
    lab = Lab(path=path)
    with lab.lookup([*PROMPT, 99]) as lease:
        with pytest.raises(AssertionError):
            check_pieces(lab.cache, lease, PROMPT)
        lab.space.quarantine([lease.pieces[1].node_id])
        lease.restart()
    assert counters(lab)["corrupt_files"] == 1
    assert counters(lab)["misses"] == 1
    assert lab.probe([*PROMPT, 99]) == 4
    lab = reopened(lab, path)
    assert lab.probe([*PROMPT, 99]) == 4


def test_two_caches_on_one_directory_read_each_other(path):
    one, two = Lab(path=path), Lab(path=path)
    one.request(PROMPT)
    one.cache.flush()
    two.cache.refresh(two.space)
    hit = two.request(PROMPT)
    assert (hit.kind, hit.logits) == ("exact", True)
    two.request([*PROMPT, 50, 51, 52, 53])
    two.cache.flush()
    one.cache.close()
    two.cache.close()
    three = Lab(path=path)
    assert three.request([*PROMPT, 50, 51, 52, 53]).kind == "exact"
    three.cache.close()


def test_a_miss_has_what_others_added_read_in_for_the_next_lookup(path):
    one, two = Lab(path=path), Lab(path=path)
    one.request(PROMPT)
    one.cache.flush()
    assert two.lookup(PROMPT).kind == "cold"
    assert two.cache.flush()
    assert two.probe([*PROMPT, 99]) == len(PROMPT)
    one.cache.close()
    two.cache.close()


def test_uses_are_known_after_a_restart(path):
    """What was used often outlives what was stored after it, in another life too."""
    quota = 1 << 18
    lab = Lab(path=path, disk=quota)
    often = [1] * 40
    lab.request(often, logits=False)
    lab.cache.flush()
    for _ in range(6):
        lab.request([*often, 5], logits=False)
    lab.request([2] * 40, logits=False)
    lab = reopened(lab, path, disk=quota)
    assert lab.probe([*often, 5, 9]) == 41
    number = 10
    while lab.probe([2] * 41):
        lab.request([number] * 40, logits=False)
        assert lab.cache.flush()
        lab.cache.evict_bytes(1 << 40, ["ram"])
        number += 1
    assert lab.probe([*often, 9]) == 40
    lab.cache.close()


def test_gc_gives_the_files_themselves_back(path):
    lab = Lab(path=path)
    lab.request(PROMPT)
    lab.cache.flush()
    assert list(path.glob("*.blk"))
    lab.cache.gc()
    assert not list(path.glob("*.blk"))


def test_whole_sequences_hit_at_their_exact_length_only(path):
    lab = Lab(path=path)
    assert not lab.lookup(PROMPT).pieces
    whole = put_whole(lab, PROMPT[:10])
    assert whole
    with lab.lookup(PROMPT) as lease:
        assert (lease.kind, lease.keep) == ("partial", 10)
        check_pieces(lab.cache, lease, PROMPT)
    assert lab.probe(PROMPT[:10]) == 0
    assert lab.probe(PROMPT[:9]) == 0
    put_whole(lab, PROMPT[:14])
    put_whole(lab, [*PROMPT[:12], 99, 99, 99])
    assert lab.probe(PROMPT) == 14
    assert lab.probe(PROMPT[:14]) == 10
    lab = reopened(lab, path)
    assert lab.probe(PROMPT) == 14
    with lab.lookup(PROMPT) as lease:
        check_pieces(lab.cache, lease, PROMPT)
        lease.restored()
    lab.cache.flush()
    with lab.lookup(PROMPT) as lease:
        assert lease.tiers == {"ram": 14}
        check_pieces(lab.cache, lease, PROMPT)
    lab.cache.gc()
    assert counters(lab)["bytes_ram"] == 0


def put_whole(lab: Lab, ids: list[int]) -> bool:
    from erllama_py._cache.checksum import crc
    from erllama_py._cache.grade import streamed

    data = content(ids)
    extent = lab.put(data)
    tokens = encode_tokens(ids)
    return lab.space.add_whole(tokens, streamed(THREADS), extent, len(data), crc(data))


@pytest.mark.parametrize("seed", range(4))
def test_random_use_is_right_from_every_tier(path, seed):
    """Prompts that share heads, little memory, little disk, a restart now and then."""
    rng = random.Random(seed)
    lab = Lab(1 << 14, segment_bytes=4096, path=path, disk=1 << 19)
    heads = [[rng.randrange(4) for _ in range(40)] for _ in range(3)]
    for turn in range(120):
        head = rng.choice(heads)
        prompt = [
            *head[: rng.randrange(1, 40)],
            *[rng.randrange(3) for _ in range(rng.randrange(9))],
        ]
        lab.request(
            prompt,
            [rng.randrange(3) for _ in range(rng.randrange(6))],
            exactness=rng.choice(["token", "bit"]),
            alone=rng.random() < 0.8,
        )
        assert lab.cache._shared.ram.backed <= 1 << 14
        if turn % 30 == 29:
            lab = reopened(lab, path, quota=1 << 14, segment_bytes=4096, disk=1 << 19)
    lab.cache.gc()
    shared = lab.cache._shared
    assert (shared.index.nodes, shared.ram.used) == (0, 0)
    lab.cache.close()


def test_a_payload_is_read_from_memory_while_it_is_there():
    cache = Cache(1 << 20, BLOCK)
    assert cache.flush()
    assert cache.tier("disk") is None
    assert CHUNK % BLOCK == 0
    cache.close()
