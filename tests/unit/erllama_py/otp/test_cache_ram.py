"""Payloads that are put into memory by hand."""

from __future__ import annotations

from erllama_py.otp import (
    cache_meta_srv,
    cache_ram,
)
from tests.cachelab import Lab
from tests.handrows import HEADER, KEY, QUOTA, counted, reason


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
