"""The 20 counters."""

from __future__ import annotations

import threading

import pytest

from erllama_py._cache.checksum import crc
from erllama_py._cache.counters import NAMES, Counters


def test_twenty_names_in_slot_order():
    slots = {1: "hits_exact", 4: "saves_cold", 9: "evictions", 13: "bytes_ram", 20: "saves_dropped"}
    assert len(set(NAMES)) == 20
    assert all(NAMES[slot - 1] == name for slot, name in slots.items())
    assert list(Counters().snapshot()) == list(NAMES)


def test_reset_leaves_gauges():
    counters = Counters()
    counters.incr("misses")
    counters.gauge("bytes_ram", 7)
    counters.reset()
    assert counters.snapshot()["misses"] == 0
    assert counters.snapshot()["bytes_ram"] == 7


def test_a_typo_makes_no_counter():
    counters = Counters()
    with pytest.raises(KeyError):
        counters.incr("hit_exact")
    with pytest.raises(KeyError):
        counters.gauge("misses", 1)


def test_nothing_is_lost_between_threads():
    counters = Counters()
    threads = [
        threading.Thread(target=lambda: [counters.incr("misses") for _ in range(2000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.snapshot()["misses"] == 8000


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"123456789", 0xE3069283),
        (b"", 0),
        (b"\x00", 0x527D5351),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
    ],
)
def test_the_checksum_is_crc32c(data, expected):
    assert crc(data) == expected
    assert crc(memoryview(bytearray(data))) == expected


def test_bytes_besides_the_gauge_are_added_to_it():
    counters = Counters()
    counters.besides("bytes_disk", 5)
    counters.gauge("bytes_disk", 100)
    counters.besides("bytes_disk", -2)
    counters.reset()
    assert counters.snapshot()["bytes_disk"] == 103
    with pytest.raises(KeyError):
        counters.besides("misses", 1)
