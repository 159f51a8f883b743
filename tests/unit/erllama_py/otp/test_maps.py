"""The original's maps of a saved row: what is built from one, and what a file gives."""

from __future__ import annotations

import msgspec
import pytest

from erllama_py._cache.key import encode_tokens
from erllama_py._cache.kvc import Facts, Meta
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.otp._maps import info_of, meta_of

BUILT = {
    "save_reason": "cold",
    "quant_bits": 16,
    "fingerprint": b"\xaa" * 32,
    "fingerprint_mode": "safe",
    "quant_type": "f16",
    "ctx_params_hash": b"\xbb" * 32,
    "tokens": [1, 2, 3],
    "context_size": 4096,
}
FILLED = {
    "creation_time": 1000,
    "last_used_time": 1000,
    "prompt_text": b"hi",
    "hostname": b"h",
    "erllama_version": b"0.3.0",
}
META = Meta(**{**BUILT, **FILLED, "tokens": encode_tokens([1, 2, 3])})


def test_a_build_map_becomes_a_meta() -> None:
    assert meta_of({**BUILT, **FILLED, "unknown": object()}) == META


def test_what_is_left_out_is_ours() -> None:
    meta = meta_of(BUILT)
    assert meta.hostname
    assert meta.erllama_version
    assert meta.creation_time == meta.last_used_time > 0
    assert (meta.prompt_text, meta.engine, meta.grade) == (b"", b"", "")


@pytest.mark.parametrize("name", BUILT)
def test_a_build_map_without_a_key_is_refused(name: str) -> None:
    with pytest.raises(ErllamaError) as caught:
        meta_of({key: value for key, value in BUILT.items() if key != name})
    assert caught.value.reason == ("missing_key", name)


@pytest.mark.parametrize(
    ("name", "value"),
    [("fingerprint", b"short"), ("tokens", [1.0]), ("quant_bits", "16"), ("save_reason", "warm")],
)
def test_a_build_map_with_a_wrong_value_is_a_bad_call(name: str, value: object) -> None:
    with pytest.raises(BadCall, match=name):
        meta_of({**BUILT, name: value})


def test_info_has_the_originals_keys() -> None:
    assert info_of(Facts(META, 3, 210, 7, 0xF4E36970)) == {
        "magic": b"KVC",
        "version": 1,
        **BUILT,
        **FILLED,
        "cached_token_count": 3,
        "hit_count": 0,
        "payload_byte_count": 7,
        "payload_offset": 210,
        "payload_length": 7,
        "payload_crc32c": 0xF4E36970,
    }


def test_what_a_file_says_can_be_built_from_again() -> None:
    meta = msgspec.structs.replace(META, engine=b"one", grade="P", save_reason_detail=b"by hand")
    assert meta_of(info_of(Facts(meta, 3, 210, 7, 0))) == meta
