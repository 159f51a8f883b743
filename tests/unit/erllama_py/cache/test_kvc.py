"""The file format of whole rows, byte for byte."""

from __future__ import annotations

import struct
import tracemalloc

import msgspec
import pytest

from erllama_py._cache import kvc
from erllama_py._cache.checksum import crc
from erllama_py._cache.key import encode_tokens, make
from erllama_py.errors import BadCall

META = kvc.Meta(
    save_reason="cold",
    quant_bits=16,
    fingerprint=b"\xaa" * 32,
    fingerprint_mode="safe",
    quant_type="f16",
    ctx_params_hash=b"\xbb" * 32,
    tokens=encode_tokens([1, 2, 3]),
    context_size=4096,
    creation_time=1000,
    last_used_time=1000,
    prompt_text=b"hi",
    hostname=b"h",
    erllama_version=b"0.3.0",
)
EXAMPLE = bytes.fromhex(
    "4b564301 10 01 0000 03000000 00000000 00100000 00000000"
    "e803000000000000 e803000000000000 0700000000000000"
    "d200000000000000 0700000000000000 7069e3f4 00000000"
    "02000000 6869"
    "80000000"
    "01 20000000" + "aa" * 32 + "02 01000000 00 03 01000000 01"
    "04 20000000" + "bb" * 32 + "08 04000000 03000000"
    "09 0c000000 01000000 02000000 03000000"
    "05 01000000 68 06 05000000 302e332e30"
    "7061796c6f6164"
)
KEY = make(META.fingerprint, "f16", META.ctx_params_hash, META.tokens)
OWN = msgspec.structs.replace(META, engine=b"\x81\xa5build", grade="P")


def changed(at: int, value: bytes, data: bytes = EXAMPLE) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def resized(records: bytes) -> bytes:
    """The example with other records: what the original would have written."""
    prompt = EXAMPLE[72:78]
    offset = 78 + 4 + len(records)
    head = changed(48, struct.pack("<Q", offset))[:72]
    return head + prompt + struct.pack("<I", len(records)) + records + b"payload"


def without(tag: int, data: bytes = EXAMPLE) -> bytes:
    at, kept = 82, b""
    end = 82 + struct.unpack_from("<I", data, 78)[0]
    while at < end:
        size = 5 + struct.unpack_from("<I", data, at + 1)[0]
        kept += data[at : at + size] if data[at] != tag else b""
        at += size
    return resized(kept)


def reason_of(data: bytes, key: bytes = KEY) -> object:
    with pytest.raises(kvc.BadKvc) as caught:
        kvc.parse(data, key)
    return caught.value.reason


def test_the_original_would_write_the_same_bytes():
    assert len(EXAMPLE) == 217
    assert kvc.build(META, b"payload") == EXAMPLE
    assert kvc.prefix(META, b"payload") == EXAMPLE[:210]
    assert kvc.header(META, 7) == EXAMPLE[:48]


def test_what_is_built_is_read_back():
    parsed = kvc.parse(EXAMPLE, KEY)
    assert parsed.facts == kvc.Facts(META, 3, 210, 7, 0xF4E36970)
    assert parsed.payload == b"payload"
    assert parsed.facts.size == 217


@pytest.mark.parametrize("reason", kvc.REASONS)
@pytest.mark.parametrize("mode", kvc.MODES)
def test_every_reason_and_mode_is_read_back(reason: str, mode: str):
    meta = msgspec.structs.replace(META, save_reason=reason, fingerprint_mode=mode)
    assert kvc.parse(kvc.build(meta, b""), KEY).facts.meta == meta


BAD = {
    "no header": (b"", "bad_header"),
    "another magic": (changed(0, b"KVD"), "bad_header"),
    "half a header": (EXAMPLE[:47], "bad_header"),
    "version": (changed(3, b"\x02"), ("unsupported_version", 2)),
    "reason": (changed(5, b"\x06"), ("unknown_save_reason", 6)),
    "half a trailer": (EXAMPLE[:71], "bad_trailer"),
    "no prompt": (EXAMPLE[:72], "bad_length_prefixed_section"),
    "long prompt": (changed(72, b"\xff" * 4), "bad_length_prefixed_section"),
    "long records": (changed(78, b"\xff" * 4), "bad_length_prefixed_section"),
    "half a record": (resized(EXAMPLE[82:206]), "bad_tlv"),
    "half a record head": (resized(EXAMPLE[82:210] + b"\x05"), "bad_tlv"),
    "mode": (changed(82 + 37 + 5, b"\x03"), ("unknown_fingerprint_mode", 3)),
    "quant": (changed(82 + 37 + 6 + 5, b"\x1e"), ("unknown_quant_byte", 30)),
    "nameless quant": (changed(82 + 37 + 6 + 5, b"\xff"), ("unknown_quant_byte", 255)),
    "two lengths": (changed(40, b"\x08"), "payload_length_mismatch"),
    "truncated": (EXAMPLE[:-1], "truncated"),
    "trailing": (EXAMPLE + b"x", "trailing_bytes"),
    "no fingerprint": (without(1), ("missing_tlv", "fingerprint")),
    "no mode": (without(2), ("missing_tlv", "fingerprint_mode")),
    "no quant": (without(3), ("missing_tlv", "quant_type")),
    "no context": (without(4), ("missing_tlv", "ctx_params_hash")),
    "no tokens": (without(9), ("missing_tlv", "tokens")),
    "payload": (changed(210, b"P"), ("crc_mismatch", 0xF4E36970, crc(b"Payload"))),
}


@pytest.mark.parametrize("case", BAD)
def test_each_damage_has_its_reason(case: str):
    data, reason = BAD[case]
    assert reason_of(data) == reason


def test_a_payload_before_the_records_end_is_out_of_bounds():
    data = changed(48, struct.pack("<QQ", 200, 17), changed(40, struct.pack("<Q", 17)))
    assert reason_of(data) == "payload_out_of_bounds"


def test_another_row_is_a_key_mismatch():
    assert reason_of(EXAMPLE, bytes(32)) == ("key_mismatch", bytes(32), KEY)
    other = make(META.fingerprint, "f16", META.ctx_params_hash, encode_tokens([2, 2, 3]))
    assert reason_of(changed(182, b"\x02")) == ("key_mismatch", KEY, other)


def test_records_of_a_wrong_size_count_as_missing():
    short = EXAMPLE[82:119].replace(b"\x20", b"\x1f", 1)[:-1] + EXAMPLE[119:210]
    assert reason_of(resized(short)) == ("missing_tlv", "fingerprint")
    odd = resized(EXAMPLE[82:177] + b"\x09\x03\x00\x00\x00abc")
    assert reason_of(odd) == ("missing_tlv", "tokens")


def test_unknown_records_are_skipped_and_the_token_count_is_not_compared():
    data = resized(b"\xee\x02\x00\x00\x00hi" + EXAMPLE[82:210])
    assert kvc.parse(data, KEY).facts.meta == META
    assert kvc.parse(without(8), KEY).facts.meta == META


def test_our_own_records_follow_the_originals():
    data = kvc.build(OWN, b"payload")
    at = data.index(EXAMPLE[82:210])
    assert data[at + 128 :][:5] == b"\x40\x07\x00\x00\x00"
    assert kvc.parse(data, KEY).facts.meta == OWN
    for tag in (0x40, 0x41, 0x42):
        data = without(tag, data)
    assert kvc.parse(data, KEY).facts.meta == META


def test_our_own_records_are_summed_but_for_the_hits():
    data = kvc.build(OWN, b"payload")
    hit = changed(kvc.HITS_OFFSET, b"\x05", data)
    assert kvc.parse(hit, KEY).facts.meta == msgspec.structs.replace(OWN, hit_count=5)
    assert reason_of(changed(data.index(b"build"), b"B", data)) == "malformed"
    assert reason_of(changed(16, b"\x01", data)) == "malformed"
    assert reason_of(without(0x42, data)) == "malformed"


def test_a_quantisation_without_a_code_can_be_read_back():
    meta = msgspec.structs.replace(META, quant_type="tq1_0")
    key = kvc.key_of(meta)
    assert kvc.parse(kvc.build(meta, b"p"), key).facts.meta == meta
    assert reason_of(without(0x43, kvc.build(meta, b"payload")), key) == (
        "unknown_quant_byte",
        255,
    )


def test_metadata_is_read_from_the_beginning_of_a_file():
    data = kvc.build(OWN, bytes(100_000))
    need = kvc.prefix_length(data[:72], len(data))
    assert need == len(data) - 100_000
    assert kvc.parse_meta(data[:need], len(data)) == kvc.parse_meta(data)
    with pytest.raises(kvc.BadKvc) as caught:
        kvc.parse_meta(data[:need], len(data) - 1)
    assert caught.value.reason == "truncated"
    assert kvc.prefix_length(data[:71], 71) == 71
    assert kvc.prefix_length(changed(48, b"\xff" * 8), 217) == 217


def peak_of(call) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_payload_is_copied_once_to_build_and_else_not_at_all():
    payload = bytes(8 << 20)
    data = kvc.build(META, payload)
    assert peak_of(lambda: kvc.prefix(META, payload)) < 1 << 20
    assert peak_of(lambda: kvc.build(META, payload)) < 9 << 20
    assert peak_of(lambda: kvc.parse(data, KEY)) < 1 << 20


def test_what_could_not_be_read_back_is_not_built():
    for change in ({"save_reason": "warm"}, {"fingerprint_mode": "x"}, {"fingerprint": b""}):
        with pytest.raises(BadCall):
            kvc.prefix(msgspec.structs.replace(META, **change), b"")


def test_hits_are_read_from_a_header():
    assert kvc.hits_of(kvc.header(msgspec.structs.replace(META, hit_count=70000), 7)) == 70000
    assert kvc.hits_of(EXAMPLE[:15]) == 0
