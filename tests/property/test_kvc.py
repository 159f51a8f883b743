"""Damaged files: a documented reason, or nothing that matters has changed."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erllama_py._cache import kvc
from erllama_py._cache.key import encode_tokens

EXAMPLES = 2000

REASONS = frozenset({
    *("bad_header", "bad_trailer", "bad_length_prefixed_section", "bad_tlv", "malformed"),
    *("payload_length_mismatch", "truncated", "trailing_bytes", "payload_out_of_bounds"),
})  # fmt: skip
REASONS_WITH = {
    "unsupported_version": 2,
    "unknown_save_reason": 2,
    "unknown_fingerprint_mode": 2,
    "unknown_quant_byte": 2,
    "missing_tlv": 2,
    "crc_mismatch": 3,
    "key_mismatch": 3,
}


def meta_of(**more: object) -> kvc.Meta:
    return kvc.Meta(
        save_reason="finish",
        quant_bits=4,
        fingerprint=bytes(range(32)),
        fingerprint_mode="gguf_chunked",
        quant_type="q4_k_m",
        ctx_params_hash=bytes(range(32, 64)),
        tokens=encode_tokens([5, 70000, 2]),
        context_size=2048,
        creation_time=1_700_000_000,
        prompt_text=b"prompt",
        **more,
    )


PAYLOAD = bytes(range(40))
THEIRS = meta_of(hostname=b"host", save_reason_detail=b"why")
OURS = meta_of(engine=b"\x82\xa5build\xa1b", grade="P")
KEY = kvc.key_of(THEIRS)


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    """Flip, overwrite, cut, repeat or insert, once to three times."""
    damaged = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(damaged) - 1)))
        match draw(st.sampled_from(["flip", "set", "cut", "drop", "insert", "number"])):
            case "flip" if damaged:
                damaged[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if damaged:
                damaged[at] = draw(st.integers(0, 255))
            case "cut":
                del damaged[at:]
            case "drop":
                del damaged[at : at + draw(st.integers(1, 8))]
            case "number":
                value = draw(st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63]))
                damaged[at : at + 8] = value.to_bytes(8, "little")[: len(damaged) - at]
            case _:
                damaged[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(damaged)


def identity(meta: kvc.Meta) -> tuple[object, ...]:
    """Return what decides whether and how a payload is used."""
    return (
        *(meta.fingerprint, meta.quant_type, meta.ctx_params_hash, meta.tokens),
        *(meta.engine, meta.grade),
    )


def check(original: kvc.Meta, data: bytes) -> None:
    try:
        parsed = kvc.parse(data, KEY)
    except kvc.BadKvc as error:
        reason = error.reason
        if isinstance(reason, tuple):
            assert REASONS_WITH[reason[0]] == len(reason)
        else:
            assert reason in REASONS
    else:
        assert parsed.payload == PAYLOAD
        if original is OURS and parsed.facts.meta.engine:
            kept = parsed.facts.meta
            assert kvc.header(kept, 0)[:12] == kvc.header(original, 0)[:12]
            assert kept.prompt_text == original.prompt_text
            assert identity(kept) == identity(original)
        else:
            assert identity(parsed.facts.meta)[:4] == identity(original)[:4]


@settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations(kvc.build(THEIRS, PAYLOAD)))
def test_a_damaged_file_of_the_originals_is_refused_or_the_same(data: bytes) -> None:
    check(THEIRS, data)


@settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations(kvc.build(OURS, PAYLOAD)))
def test_a_damaged_file_of_ours_is_refused_or_the_same(data: bytes) -> None:
    check(OURS, data)
