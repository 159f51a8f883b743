"""Batches on a real model: limits, positions, and running out of cells."""

from __future__ import annotations

from array import array

import pytest

from erllama_py._backends.base import Backend, NoSlot, Row, StepFailed
from tests.backends import logits, prompt

pytestmark = pytest.mark.model


def test_cells_run_out_without_harm(gemma3: Backend) -> None:
    """All sequences share the cells; nothing changes in a step that finds none."""
    n_ctx = gemma3.info.n_ctx
    tokens = prompt(gemma3, n_ctx + 1)
    gemma3.step([Row(0, 0, tokens[:200], False)])
    gemma3.step([Row(1, 0, tokens[: n_ctx - 210], True)])
    before = gemma3.length(1)
    with pytest.raises(NoSlot) as refused:
        gemma3.step([Row(2, 0, tokens[:5], True), Row(0, 200, tokens[:6], True)])
    assert refused.value.reason == "no_slot"
    assert [gemma3.length(seq) for seq in range(3)] == [200, before, 0]
    gemma3.step([Row(2, 0, tokens[:4], True), Row(0, 200, tokens[:6], True)])
    gemma3.clear(1)
    gemma3.step([Row(1, 0, tokens[:150], True), Row(2, 4, tokens[:5], False)])
    assert [gemma3.length(seq) for seq in range(3)] == [206, 150, 9]


def test_one_sequence_may_fill_the_context(gemma3: Backend) -> None:
    n_ctx = gemma3.info.n_ctx
    gemma3.step([Row(0, 0, prompt(gemma3, n_ctx - 1), False)])
    gemma3.step([Row(0, n_ctx - 1, [7], True)])
    assert gemma3.length(0) == n_ctx
    with pytest.raises(NoSlot):
        gemma3.step([Row(0, n_ctx, [7], True)])


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "empty_batch"),
        ([Row(0, 0, [], True)], "empty_batch"),
        ([Row(0, 0, [5] * 513, True)], "batch_overflow"),
        ([Row(0, 0, [5] * 300, True), Row(1, 0, [5] * 213, True)], "batch_overflow"),
        ([Row(4, 0, [5], True)], "bad_sequence"),
        ([Row(-1, 0, [5], True)], "bad_sequence"),
        ([Row(0, 0, [5], True), Row(0, 1, [5], True)], "bad_sequence"),
        ([Row(0, 1, [5], True)], "bad_position"),
        ([Row(0, -1, [5], True)], "bad_position"),
        ([Row(0, 0, [49152], True)], "invalid_token"),
        ([Row(0, 0, [-1], True)], "invalid_token"),
        ([Row(0, 0, [1, -5, 3], True)], "invalid_token"),
        ([Row(0, 0, [2**40], True)], "invalid_token"),
        ([Row(0, 0, [1, 2**40], True)], "invalid_token"),
    ],
)
def test_what_the_engine_would_die_of_is_refused(
    smollm2: Backend, rows: list[Row], reason: str
) -> None:
    with pytest.raises(StepFailed) as refused:
        smollm2.step(rows)
    assert refused.value.reason == reason
    assert smollm2.length(0) == 0
    smollm2.step([Row(0, 0, [5], True)])


def test_a_refused_batch_leaves_no_logits_behind(smollm2: Backend) -> None:
    smollm2.step([Row(0, 0, [5], True)])
    logits(smollm2)
    with pytest.raises(StepFailed):
        smollm2.step([Row(0, 5, [5], True)])
    with pytest.raises(Exception, match="no row 0"):
        logits(smollm2)


def test_tokens_may_be_any_sequence(smollm2: Backend) -> None:
    tokens = prompt(smollm2, 20)
    results = []
    for given in (tokens, tuple(tokens), array("i", tokens)):
        smollm2.clear(0)
        smollm2.step([Row(0, 0, given, True)])
        results.append(logits(smollm2))
    assert results[0] == results[1] == results[2]


def test_the_same_prompt_gives_the_same_logits_whatever_the_sequence(smollm2: Backend) -> None:
    tokens = prompt(smollm2, 40)
    results = set()
    for seq in (0, 3):
        smollm2.step([Row(seq, 0, tokens, True)])
        results.add(logits(smollm2))
        smollm2.clear(seq)
    assert len(results) == 1
