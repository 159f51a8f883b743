"""Guesses: the likeliest token after each of several, in one pass."""

from __future__ import annotations

import numpy as np
import pytest

from erllama_py._backends.base import GUESSED_TOKENS, Backend, Row, StepFailed
from tests.backends import logits, prompt

pytestmark = pytest.mark.model


def test_guesses_are_what_single_steps_find_likeliest(llama: Backend) -> None:
    text = b"The lighthouse keeper wrote one line in the log every evening. " * 8
    tokens = llama.tokenize(text, special=True, parse_special=False)[: 80 + GUESSED_TOKENS]
    llama.step([Row(0, 0, tokens[:80], True)])
    assert llama.likeliest(0) == np.frombuffer(logits(llama), np.float32).argmax()
    guesses = llama.guess(Row(0, 80, tokens[80:], logits=True))
    assert llama.length(0) == len(tokens)
    llama.clear(0)
    llama.step([Row(0, 0, tokens[:80], False)])
    clear = 0
    for guess, at in zip(guesses, range(80, len(tokens)), strict=True):
        llama.step([Row(0, at, [tokens[at]], True)])
        second, first = np.sort(np.frombuffer(logits(llama), np.float32))[-2:]
        if first - second > 2:  # tokens that are as likely may change places in other cuts
            assert guess == llama.likeliest(0)
            clear += 1
    assert clear > 4


def test_a_guess_leaves_nothing_of_itself_in_later_steps(smollm2: Backend) -> None:
    tokens = prompt(smollm2, 30)
    smollm2.step([Row(0, 0, tokens, True)])
    expected = logits(smollm2)
    smollm2.clear(0)
    smollm2.guess(Row(0, 0, tokens[:GUESSED_TOKENS], logits=True))
    with pytest.raises(Exception, match="no row 0"):
        logits(smollm2)
    smollm2.clear(0)
    smollm2.step([Row(0, 0, tokens, True)])
    assert logits(smollm2) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (Row(0, 0, [5] * (GUESSED_TOKENS + 1), True), "batch_overflow"),
        (Row(0, 0, [], True), "empty_batch"),
        (Row(0, 1, [5], True), "bad_position"),
        (Row(0, 0, [49152], True), "invalid_token"),
    ],
)
def test_what_the_engine_would_die_of_is_refused(smollm2: Backend, row: Row, reason: str) -> None:
    with pytest.raises(StepFailed) as refused:
        smollm2.guess(row)
    assert refused.value.reason == reason
    assert smollm2.length(0) == 0
