"""The cost gate: what is quicker to compute than to restore is computed."""

from __future__ import annotations

import random

import pytest

from erllama_py._cache.grade import streamed
from erllama_py._cache.tier import RAM, Tier
from erllama_py._cache.trie import Blob, Node, Payload
from erllama_py._engine.gate import Gate

DISK = Tier("disk", "disk")
BLOCK = 4
BYTES = 1000


def chain(*tiers: Tier) -> list[Payload]:
    """Blocks of four tokens and a thousand bytes, each in one tier."""
    node, payloads = Node(None, b""), []
    for serial, tier in enumerate(tiers):
        node = Node(node, bytes([serial]) * 4 * BLOCK)
        payloads.append(Payload(serial, node, streamed(1), Blob({tier: None}, BYTES, 0)))
    return payloads


def measured(prefill_ns: float, ram_ns: float | None, disk_ns: float | None) -> Gate:
    """A gate that knows what a token's prefill and a block's restore take."""
    gate = Gate()
    gate.prefilled(100, int(100 * prefill_ns))
    for kind, ns in (("ram", ram_ns), ("disk", disk_ns)):
        if ns is not None:
            gate.restored([kind], BYTES, int(ns))
    return gate


@pytest.mark.parametrize(
    "gate",
    [Gate(), measured(10, None, None), measured(10, 1, None)],
    ids=["nothing", "no restore", "another tier"],
)
def test_what_was_not_measured_is_restored(gate):
    assert gate.worth(chain(DISK, DISK)) == 2
    assert gate.refused == 0


def test_a_slow_disk_is_left_alone():
    gate = measured(10, None, 100)
    assert gate.worth(chain(DISK, DISK, DISK)) == 0
    assert gate.refused == 1


def test_a_quick_one_is_used():
    assert measured(10, None, 30).worth(chain(DISK, DISK, DISK)) == 3


def test_the_part_in_memory_is_used_where_the_rest_is_too_slow():
    # Two blocks in memory save 80 ns for 2; a third on disk would save 40 more for 1000.
    assert measured(10, 1, 1000).worth(chain(RAM, RAM, DISK)) == 2


def test_a_slow_block_in_front_is_worth_it_for_the_quick_ones_behind():
    assert measured(10, 1, 100).worth(chain(DISK, RAM, RAM, RAM)) == 4


def test_now_and_then_a_slow_disk_is_tried_again():
    gate = measured(10, None, 100)
    answers = [gate.worth(chain(DISK)) for _ in range(64)]
    assert answers.count(1) == 2
    for _ in range(40):
        gate.restored(["disk"], BYTES, 1)
    assert gate.worth(chain(DISK)) == 1


def test_short_prefills_and_mixed_restores_say_nothing():
    gate = Gate()
    gate.prefilled(8, 1)
    gate.restored(["ram", "disk"], BYTES, 1)
    gate.restored(["ram"], 0, 1)
    assert gate.prefill_ns is None
    assert gate.restore_ns == {}


def test_no_other_choice_is_quicker():
    chance = random.Random(3)
    for _ in range(200):
        prefill, ram, disk = (chance.uniform(1, 100) for _ in range(3))
        gate = measured(prefill, ram * BLOCK, disk * BLOCK)
        payloads = chain(*(chance.choice((RAM, DISK)) for _ in range(chance.randrange(1, 9))))
        count = gate.worth(payloads)

        def cost(restored: int, payloads=payloads, gate=gate) -> float:
            nbytes = sum(p.nbytes * gate.restore_ns[p.tier.kind] for p in payloads[:restored])
            return nbytes + (payloads[-1].node.end - restored * BLOCK) * gate.prefill_ns

        assert cost(count) <= min(map(cost, range(len(payloads) + 1))) + 1e-6
