"""The cache modules that are small: counters, keys, formats, the policy, the benchmark."""

from __future__ import annotations

from pathlib import Path

from erllama_py._cache.counters import NAMES
from erllama_py.otp import (
    cache,
    cache_bench,
    cache_counters,
    cache_key,
    cache_kvc,
    cache_meta_srv,
    cache_policy,
)
from erllama_py.types import Atom
from tests.cachelab import IDENTITY, Lab
from tests.handrows import META, META_KEY, reason, rows_in


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
    for bad in (-1, 1 << 63, 1.5):
        assert reason(cache_counters.add, 1, bad) == "badarg"


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
