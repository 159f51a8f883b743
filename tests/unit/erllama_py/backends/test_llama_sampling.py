"""Samplers: what they choose, from a step and from stored logits."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from erllama_py._backends.base import Backend, BackendError, Row, SamplerOptions
from erllama_py._backends.stub import StubSampler
from tests.backends import logits

pytestmark = pytest.mark.model

YES_OR_NO = b'root ::= "yes" | "no"'
CHAINS = {
    "greedy": SamplerOptions(),
    "penalised greedy": SamplerOptions(repetition_penalty=1.3),
    "temperature": SamplerOptions(temperature=0.9, seed=3),
    "top_k, top_p": SamplerOptions(top_k=40, top_p=0.9, temperature=0.8, seed=2**40 + 5),
    "all": SamplerOptions(
        repetition_penalty=1.1, top_k=50, top_p=0.95, min_p=0.02, temperature=1.2, seed=11
    ),
    "grammar": SamplerOptions(grammar=b"root ::= [a-z ]+", temperature=1.0, seed=9),
    "grammar, greedy": SamplerOptions(grammar=b"root ::= [A-Z]+"),
}


def generate(backend: Backend, options: SamplerOptions, n: int, *, stored: bool) -> list[int]:
    """Generate up to ``n`` tokens on an empty sequence 0."""
    backend.clear(0)
    tokens = backend.tokenize(b"The answer is", special=True, parse_special=False)
    sampler = backend.new_sampler(options)
    out: list[int] = []
    pos = 0
    while len(out) < n:
        backend.step([Row(0, pos, tokens, True)])
        pos += len(tokens)
        if stored:
            token = backend.sample_stored(sampler, memoryview(logits(backend)))
        else:
            token = backend.sample(sampler, 0)
        out.append(token)
        if backend.is_eog(token):
            break
        tokens = [token]
    sampler.close()
    return out


@pytest.mark.parametrize("options", CHAINS.values(), ids=CHAINS.keys())
def test_stored_logits_give_the_token_the_step_gives(
    llama: Backend, options: SamplerOptions
) -> None:
    from_steps = generate(llama, options, 12, stored=False)
    assert generate(llama, options, 12, stored=True) == from_steps


def test_in_syntax_the_likeliest_is_taken_and_the_chain_left_as_it_is(llama: Backend) -> None:
    options = SamplerOptions(temperature=5.0, repetition_penalty=1.5, seed=4)
    llama.clear(0)
    llama.step([Row(0, 0, llama.tokenize(b"a", special=True, parse_special=False), True)])
    plain, mixed = llama.new_sampler(options), llama.new_sampler(options)
    drawn = [llama.sample(plain, 0) for _ in range(4)]
    again = []
    for _ in range(4):
        mixed.syntax = True
        assert llama.sample(mixed, 0) == llama.likeliest(0)
        mixed.syntax = False
        again.append(llama.sample(mixed, 0))
    assert again == drawn
    assert set(drawn) != {llama.likeliest(0)}
    plain.close()
    mixed.close()


def test_in_syntax_the_grammar_still_decides(llama: Backend) -> None:
    options = SamplerOptions(grammar=YES_OR_NO, temperature=5.0, seed=4)
    llama.clear(0)
    llama.step([Row(0, 0, llama.tokenize(b"a", special=True, parse_special=False), True)])
    likeliest = llama.new_sampler(SamplerOptions(grammar=YES_OR_NO))
    sampler = llama.new_sampler(options)
    sampler.syntax = True
    token = llama.sample(sampler, 0)
    assert token == llama.sample(likeliest, 0)
    assert b"yes".startswith(llama.piece(token)) or b"no".startswith(llama.piece(token))
    assert token != llama.likeliest(0), "the grammar allows something else"
    said = llama.piece(token)
    while not llama.is_eog(token):  # it was told of that token, and goes on from it
        token = llama.sample(sampler, 0)
        said += llama.piece(token)
    assert said in (b"yes", b"no")
    likeliest.close()
    sampler.close()


def test_greedy_takes_the_highest_logit_and_the_lowest_id_of_equals(smollm2: Backend) -> None:
    sampler = smollm2.new_sampler(SamplerOptions())
    values = np.zeros(smollm2.info.n_vocab, np.float32)
    values[[700, 300, 9000]] = 5.0
    assert smollm2.sample_stored(sampler, memoryview(values.tobytes())) == 300


def test_the_same_seed_repeats_and_seeds_differ(smollm2: Backend) -> None:
    runs = [
        generate(smollm2, SamplerOptions(temperature=1.5, seed=seed), 10, stored=True)
        for seed in (0, 0, 1, 2**32, 2**64 - 2)
    ]
    assert runs[0] == runs[1] == runs[3], "seeds are cut to 32 bits"
    assert runs[2] not in (runs[0], runs[4])


def test_stages_of_neutral_value_are_left_out(smollm2: Backend) -> None:
    plain = generate(smollm2, SamplerOptions(), 8, stored=False)
    neutral = SamplerOptions(
        repetition_penalty=1.0, top_k=0, top_p=1.0, min_p=0.0, temperature=0.0, seed=5
    )
    assert generate(smollm2, neutral, 8, stored=False) == plain


def test_the_penalty_sees_generated_tokens_within_its_window(smollm2: Backend) -> None:
    sampler = smollm2.new_sampler(SamplerOptions(repetition_penalty=2.0))
    values = np.full(smollm2.info.n_vocab, -20.0, np.float32)
    values[:66] = np.linspace(10.0, 9.0, 66, dtype=np.float32)
    data = memoryview(values.tobytes())
    # Each chosen token falls to half until 64 others have been chosen after it.
    first = [smollm2.sample_stored(sampler, data) for _ in range(66)]
    assert first == [*range(65), 0]


def test_a_grammar_ends_with_the_end_of_generation(llama: Backend) -> None:
    for stored in (False, True):
        out = generate(llama, SamplerOptions(grammar=YES_OR_NO), 10, stored=stored)
        assert llama.is_eog(out[-1])
        assert llama.detokenize(out) in (b"yes", b"no")


def test_a_grammar_holds_at_high_temperature(smollm2: Backend) -> None:
    for seed in range(4):
        options = SamplerOptions(grammar=b"root ::= [0-9] [0-9] [0-9]", temperature=3.0, seed=seed)
        text = smollm2.detokenize(generate(smollm2, options, 10, stored=True))
        assert len(text) == 3
        assert text.isdigit()


@pytest.mark.parametrize(
    ("grammar", "reason", "why"),
    [
        (b"", "badarg", "empty"),
        (b'root ::= "a\0"', "badarg", "NUL"),
        (b'root ::= "\xff"', "badarg", "UTF-8"),
        (b"root ::= missing", "grammar_failed", "Undefined rule identifier 'missing'"),
        (b'other ::= "a"', "grammar_failed", "root"),
        (b'root ::= root "a"', "grammar_failed", "left recursion"),
        (b"root ::= (", "grammar_failed", "expecting"),
    ],
)
def test_a_bad_grammar_is_refused_with_its_reason(
    smollm2: Backend, grammar: bytes, reason: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackendError, match=why) as refused:
        smollm2.new_sampler(SamplerOptions(grammar=grammar))
    assert refused.value.reason == reason
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_penalty_is_refused(smollm2: Backend, penalty: float) -> None:
    with pytest.raises(BackendError, match="above 0") as refused:
        smollm2.new_sampler(SamplerOptions(repetition_penalty=penalty))
    assert refused.value.reason == "badarg"


def test_concurrent_rows_are_sampled_from_their_own_logits(smollm2: Backend) -> None:
    prompts = [b"Once upon a time", b"def main():", b"The capital of France"]
    alone = []
    rows = []
    for seq, text in enumerate(prompts):
        tokens = smollm2.tokenize(text, special=True, parse_special=False)
        smollm2.clear(0)
        smollm2.step([Row(0, 0, tokens, True)])
        alone.append(smollm2.sample(smollm2.new_sampler(SamplerOptions()), 0))
        rows.append(Row(seq, 0, tokens, seq != 1))
    smollm2.clear(0)
    smollm2.step(rows)
    sampler = smollm2.new_sampler(SamplerOptions())
    assert [smollm2.sample(sampler, row) for row in (0, 2)] == [alone[0], alone[2]]
    with pytest.raises(BackendError, match="row 1 were not asked for"):
        smollm2.sample(sampler, 1)
    with pytest.raises(BackendError, match="no row 3"):
        smollm2.copy_logits(3, memoryview(bytearray(smollm2.info.logits_bytes)))


def test_misused_samplers_are_refused(smollm2: Backend) -> None:
    stored = memoryview(bytes(smollm2.info.logits_bytes))
    for options in (SamplerOptions(), SamplerOptions(temperature=1.0)):
        sampler = smollm2.new_sampler(options)
        sampler.close()
        sampler.close()
        with pytest.raises(BackendError, match="released"):
            smollm2.sample_stored(sampler, stored)
    sampler = smollm2.new_sampler(SamplerOptions())
    with pytest.raises(BackendError, match="badarg"):
        smollm2.sample_stored(sampler, stored[:-4])
    with pytest.raises(BackendError, match="another backend"):
        smollm2.sample_stored(StubSampler(1), stored)
    smollm2.step([Row(0, 0, [1], True)])
    with pytest.raises(BackendError, match="badarg"):
        smollm2.copy_logits(0, memoryview(bytearray(8)))


def test_dropped_samplers_are_freed(smollm2: Backend) -> None:
    for _ in range(50):
        smollm2.new_sampler(SamplerOptions(grammar=YES_OR_NO, temperature=1.0))
    gc.collect()
    assert (
        smollm2.sample_stored(
            smollm2.new_sampler(SamplerOptions()), memoryview(bytes(smollm2.info.logits_bytes))
        )
        == 0
    )
