"""When rows are saved."""

from __future__ import annotations

import pytest

from erllama_py._cache import policy
from erllama_py._cache.policy import INFINITE, Policy
from erllama_py.errors import ErllamaError


@pytest.mark.parametrize(
    ("length", "trim", "align", "saved"),
    [
        (4500, 32, 2048, 4096),
        (2080, 32, 2048, 2048),
        (2079, 32, 2048, None),
        (600, 32, 2048, None),
        (30001, 32, 2048, None),
        (30000, 32, 2048, 28672),
        (511, 0, 1, None),
        (512, 0, 1, 512),
    ],
)
def test_cold_split_at_the_default_lengths(length, trim, align, saved):
    rules = Policy(boundary_trim_tokens=trim, boundary_align_tokens=align)
    assert policy.cold_save_split(length, rules) == saved


@pytest.mark.parametrize(
    ("length", "trim", "align", "saved"), [(66, 8, 16, 48), (12, 0, 1, 12), (5, 8, 1, None)]
)
def test_cold_split_of_short_prompts(length, trim, align, saved):
    rules = Policy(
        min_tokens=4, cold_min_tokens=4, boundary_trim_tokens=trim, boundary_align_tokens=align
    )
    assert policy.cold_save_split(length, rules) == saved


def test_a_continued_save_counts_from_the_last_one():
    rules = Policy()
    assert not policy.should_continued_save(4501, 4096, rules)
    assert policy.should_continued_save(6144, 4096, rules)
    assert not policy.should_continued_save(511, 0, Policy(continued_interval=1))
    assert policy.should_continued_save(512, 0, Policy(continued_interval=1))


def test_a_finish_save_needs_min_tokens_and_at_least_one():
    assert policy.should_finish_save(512, Policy())
    assert not policy.should_finish_save(511, Policy())
    assert not policy.should_finish_save(0, Policy(min_tokens=0))


@pytest.mark.parametrize(
    ("size", "n_batch", "n_ubatch", "chunk"),
    [
        (None, 512, 512, 128),
        (None, 2048, 512, 512),
        (None, 32, 32, 64),
        (100, 512, 512, 64),
        (INFINITE, 4096, 512, 512),
        (300, 4096, 200, 192),
    ],
)
def test_the_chunk_is_whole_blocks_within_one_computation(size, n_batch, n_ubatch, chunk):
    rules = Policy(prefill_chunk_size=size)
    assert policy.prefill_chunk(rules, n_batch, n_ubatch, 64) == chunk


def test_a_map_is_read_over_the_applications_defaults():
    rules = Policy.from_map(
        {"min_tokens": 16, "unknown": 1}, {"min_tokens": 8, "continued_interval": 100}
    )
    assert (rules.min_tokens, rules.continued_interval, rules.cold_min_tokens) == (16, 100, 512)
    assert Policy.from_map(rules.to_map()) == rules


def test_infinity_turns_saving_off():
    rules = Policy.from_map({"min_tokens": "infinity"})
    assert not policy.should_finish_save(10**9, rules)
    assert rules.to_map()["min_tokens"] == "infinity"
    assert Policy.from_map({"cold_max_tokens": "infinity"}).cold_max_tokens == INFINITE


def test_defaults_give_way_to_what_the_caller_says():
    assert Policy.from_map({"min_tokens": 1000}).cold_min_tokens == 1000
    assert Policy.from_map({"cold_min_tokens": 40000}).cold_max_tokens == 40000


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"min_tokens": -1}, ("invalid", "min_tokens", -1)),
        ({"min_tokens": True}, ("invalid", "min_tokens", True)),
        ({"continued_interval": 0}, ("invalid", "continued_interval", 0)),
        ({"continued_interval": "infinity"}, ("invalid", "continued_interval", "infinity")),
        ({"boundary_trim_tokens": 1.5}, ("invalid", "boundary_trim_tokens", 1.5)),
        ({"boundary_align_tokens": 0}, ("invalid", "boundary_align_tokens", 0)),
        ({"session_resume_wait_ms": None}, ("invalid", "session_resume_wait_ms", None)),
        ({"prefill_chunk_size": 0}, ("invalid", "prefill_chunk_size", 0)),
        ({"prefill_chunk_size": "big"}, ("invalid", "prefill_chunk_size", "big")),
        (
            {"min_tokens": 600, "cold_min_tokens": 599},
            ("ordering", "cold_min_tokens_lt_min_tokens"),
        ),
        ({"cold_max_tokens": 511}, ("ordering", "cold_max_tokens_lt_cold_min_tokens")),
    ],
)
def test_a_wrong_value_is_named(options, reason):
    with pytest.raises(ErllamaError) as caught:
        Policy.from_map(options)
    assert caught.value.reason == reason
    assert list(options)[-1] in str(caught.value)
