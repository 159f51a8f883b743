"""Why a lookup found no more: other namespaces, evicted rows, the fields of the identity."""

from __future__ import annotations

import pytest

from erllama_py._cache.divergence import NearRow, differing_fields
from erllama_py._cache.identity import Identity
from erllama_py._cache.key import encode_tokens
from tests.cachelab import CHUNK, IDENTITY, THREADS, Lab

LONG = list(range(100, 130))


@pytest.fixture
def lab():
    lab = Lab()
    yield lab
    lab.cache.close()


def preview(space, ids, **options):
    return space.preview(encode_tokens(ids), **{"chunk": CHUNK, "threads": THREADS, **options})


def test_a_lookup_knows_where_the_prompt_left_what_was_there_before_it_stored_its_own(lab):
    first = lab.request(LONG)
    other = [*LONG[:21], 7, 8, 9]
    with lab.lookup(other) as lease:
        lease.restored()
    lab.request(other)
    apart = lease.seen.apart
    assert (apart.shared, apart.cached_token, apart.whole) == (21, 121, False)
    assert apart.row == NearRow(first.key, 30, 21)


def test_where_the_cached_context_ends_no_token_is_named(lab):
    lab.request(LONG[:10])
    apart = preview(lab.space, LONG).apart
    assert (apart.shared, apart.cached_token, apart.row.length) == (10, None, 10)


def test_a_row_that_ends_at_the_fork_is_nearer_than_one_that_goes_on(lab):
    key = lab.request(LONG[:8]).key
    lab.request(LONG)
    apart = preview(lab.space, [*LONG[:8], 1]).apart
    assert (apart.row.key, apart.cached_token) == (key, None)


def test_an_exact_hit_has_nothing_to_explain(lab):
    lab.request(LONG)
    seen = preview(lab.space, LONG)
    assert (seen.kind, seen.apart, seen.tiers) == ("exact", None, {"ram": 30})


def test_the_grades_are_those_of_what_was_not_used(lab):
    lab.request(LONG, threads=5, alone=False)
    apart = preview(lab.space, [*LONG, 1]).apart
    assert apart.shared == 30
    assert [(grade.kind, grade.number) for grade in apart.grades] == [("S", 5)]


def test_tokens_cut_by_the_gate_are_told_apart_from_missing_ones(lab):
    lab.request(LONG)
    seen = preview(lab.space, [*LONG, 1], worth=lambda payloads: 2)
    assert (seen.prefix_len, seen.gated, seen.apart.shared) == (8, 22, 30)


def test_parent_keys_are_known_by_their_rows(lab):
    key = lab.request(LONG[:10]).key
    assert preview(lab.space, LONG, parent_key=key).resumes
    assert not preview(lab.space, LONG, parent_key=bytes(32)).resumes
    assert not preview(lab.space, [1, *LONG], parent_key=key).resumes


# -- evicted rows ---------------------------------------------------------------------------


def test_an_evicted_row_is_found_by_any_prompt_that_begins_with_it(lab):
    lab.request(LONG[:8])
    key = lab.request(LONG[:20]).key
    lab.cache.gc()
    seen = preview(lab.space, LONG)
    assert seen.apart.shared == 0
    tokens = encode_tokens(LONG)
    assert lab.space.evicted(tokens, 0, seen.mark) == (key, 20)
    assert lab.space.evicted(tokens, 20, seen.mark) is None
    assert lab.space.evicted(encode_tokens(LONG[:19]), 8, seen.mark) is None
    assert lab.space.evicted(encode_tokens([1, *LONG]), 0, seen.mark) is None


def test_a_row_that_went_after_the_lookup_is_not_why_it_missed(lab):
    seen = preview(lab.space, LONG)
    lab.request(LONG)
    lab.cache.gc()
    assert lab.space.evicted(encode_tokens(LONG), 0, seen.mark) is None


# -- other namespaces -----------------------------------------------------------------------


def test_other_namespaces_tell_what_differs_the_longest_first(lab):
    engine = (("build", "2"), ("flash_attn", "on"))
    lab.request(LONG)
    short = Lab.__new__(Lab)
    short.now, short.cache = 0, lab.cache
    short.space = lab.cache.namespace(Identity(IDENTITY.fingerprint, "q8_0", bytes(32), engine))
    short.request(LONG[:12])
    mine = lab.cache.namespace(Identity(IDENTITY.fingerprint, "f16", bytes(32), engine))
    seen = preview(mine, LONG)
    tokens = encode_tokens(LONG)
    assert lab.cache.elsewhere(mine, tokens, 0, seen.mark) == [
        (30, {"build": ("2", "1"), "flash_attn": ("on", "")}),
        (12, {"quant_type": ("f16", "q8_0")}),
    ]
    assert [length for length, _ in lab.cache.elsewhere(mine, tokens, 12, seen.mark)] == [30]


def test_what_another_namespace_stored_after_the_lookup_does_not_count(lab):
    other = lab.cache.namespace(Identity(bytes(32), "f16", bytes(32)))
    lab.request(LONG[:12])
    seen = preview(other, LONG)
    lab.request(LONG)
    found = lab.cache.elsewhere(other, encode_tokens(LONG), 0, seen.mark)
    assert [length for length, _ in found] == [12]
    assert not lab.cache.alone(other)


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (
            Identity(bytes(32), "f16", bytes(32), IDENTITY.engine),
            {"fingerprint": ("01" * 32, "00" * 32)},
        ),
        (
            Identity(IDENTITY.fingerprint, "q4", bytes(32), IDENTITY.engine),
            {"quant_type": ("f16", "q4")},
        ),
        (
            Identity(IDENTITY.fingerprint, "f16", b"\2" * 32, IDENTITY.engine),
            {"ctx_params_hash": ("00" * 32, "02" * 32)},
        ),
        (
            Identity(IDENTITY.fingerprint, "f16", bytes(32), (("type_k", "q8"),)),
            {"build": ("1", ""), "type_k": ("", "q8")},
        ),
        (IDENTITY, {}),
    ],
)
def test_each_field_of_an_identity_is_named(other, differs):
    assert differing_fields(IDENTITY, other) == differs
