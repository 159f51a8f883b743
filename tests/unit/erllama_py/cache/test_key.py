"""Keys, against values taken from the original."""

from __future__ import annotations

import hashlib

import pytest

from erllama_py._cache import key
from erllama_py.errors import BadCall

F, C = b"\xaa" * 32, b"\xbb" * 32
BASE = b"\x42" * 32
S1, S2 = hashlib.sha256(b"adapter-1").digest(), hashlib.sha256(b"adapter-2").digest()


@pytest.mark.parametrize(
    ("fingerprint", "quant", "context", "tokens", "expected"),
    [
        (
            *(F, "f16", C, [1, 2, 3]),
            "8cc177adeda2e7c42843eb357ed501d2f979b9a8b4eacf7734740b128e9902c6",
        ),
        (
            *(F, "q4_k_m", C, [1, 2, 3, 4]),
            "4a3c35b07c06ae6ae53415d2dfdef7b6fcb77b0e9251e614451cd5e235f36f06",
        ),
        (
            *(F, "no_such_quant", C, []),
            "4113bf7253447ad217e59cddb01e075e273e77880cddbfd244777ea6952b1d29",
        ),
        (
            *(bytes(32), "f16", bytes(32), []),
            "b5c71d14f7aa84f8e945201ff0c77baab843db769ac1cafcca75d3cea0761ab5",
        ),
    ],
)
def test_keys_are_the_originals(fingerprint, quant, context, tokens, expected):
    assert key.make(fingerprint, quant, context, key.encode_tokens(tokens)).hex() == expected


@pytest.mark.parametrize(
    ("adapters", "expected"),
    [
        ([], "42" * 32),
        ([(S1, 1.0)], "1e78c3898cf85036f2d754dd5a3402d14d761e77985caf4c07cba6536551ce25"),
        ([(S1, 0.5)], "6020ca40190c767d72d20dfec1d9f19f843c2f5544e537989defff07832d9ee6"),
        (
            [(S1, 1.0), (S2, -0.75)],
            "dc3f5c4ab5bb1fe80177548119c78bdaa1ba247817ffb70e98f2b68ea921a57e",
        ),
    ],
)
def test_fingerprints_with_adapters_are_the_originals(adapters, expected):
    assert key.effective_fingerprint(BASE, adapters).hex() == expected
    assert key.effective_fingerprint(BASE, adapters[::-1]).hex() == expected


def test_an_adapter_attached_twice_counts_twice():
    assert key.effective_fingerprint(BASE, [(S1, 1.0)] * 2) != key.effective_fingerprint(
        BASE, [(S1, 1.0)]
    )


def test_an_adapter_without_a_proper_hash_is_left_out():
    assert key.effective_fingerprint(BASE, [(b"short", 1.0)]) == BASE


@pytest.mark.parametrize(
    ("scale", "fixed"),
    [
        (1.0, 1 << 32),
        (2**-33, 1),
        (-(2**-33), (1 << 64) - 1),
        (2**-33 * (1 - 2**-53), 0),
        (1, 1 << 32),
    ],
)
def test_scales_round_half_away_from_zero(scale, fixed):
    expected = hashlib.sha256(BASE + S1 + fixed.to_bytes(8, "little")).digest()
    assert key.effective_fingerprint(BASE, [(S1, scale)]) == expected


def test_tokens_are_taken_modulo_two_to_the_32():
    assert key.encode_tokens([-1, 2**32 + 5]) == b"\xff\xff\xff\xff\x05\x00\x00\x00"
    assert key.decode_tokens(key.encode_tokens([-1, 7])) == [2**32 - 1, 7]


def test_a_hasher_gives_the_key_of_every_prefix():
    ids = list(range(10))
    hasher = key.KeyHasher(F, "f16", C)
    for at in range(0, 10, 2):
        branch = hasher.copy()
        branch.update(key.encode_tokens([99]))
        assert branch.digest() == key.make(F, "f16", C, key.encode_tokens([*ids[:at], 99]))
        assert hasher.digest() == key.make(F, "f16", C, key.encode_tokens(ids[:at]))
        hasher.update(key.encode_tokens(ids[at : at + 2]))


@pytest.mark.parametrize(
    "call",
    [
        lambda: key.make(b"short", "f16", C, b""),
        lambda: key.make(F, "f16", b"", b""),
        lambda: key.make(F, "f16", C, b"123"),
        lambda: key.decode_tokens(b"12345"),
        lambda: key.effective_fingerprint(b"", []),
    ],
)
def test_parts_of_the_wrong_size_are_bad_calls(call):
    with pytest.raises(BadCall) as caught:
        call()
    assert caught.value.reason == "function_clause"


def test_quantisation_codes():
    assert [key.quant_byte(q) for q in ("f32", "f16", "q4_k_m", "q2_k", "bf16")] == [
        0,
        1,
        7,
        13,
        29,
    ]
    assert key.quant_byte("q9_x") == 255
    assert all(key.quant_byte(key.quant_atom(code)) == code for code in range(30))
    assert key.quant_atom(30) is None
    assert key.quant_atom(-1) is None
    assert key.quant_atom(255) is None
    assert key.quant_tag("q4_k_m", 4) == b"q4_k_m"
