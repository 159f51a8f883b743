"""Sessions on real models: the tokens are those of a model without sessions or a cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from erllama_py import api
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.errors import ErllamaError
from erllama_py.testing import record
from tests.models import gemma3_path, hybrid_path, mamba_path, smollm2_path

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

ONE_THREAD = {"n_threads": 1, "n_threads_batch": 1}
TEXT = "The lighthouse keeper wrote one line in the log every evening. " * 20


def loaded(path: str, slots: int, *, cached: bool, n_ctx: int = 1024) -> api.Model:
    return api.load_model(
        {
            "model_path": path,
            "context_opts": {"n_ctx": n_ctx, "n_seq_max": slots, **ONE_THREAD},
            "policy": EVERYDAY_POLICY,
            "cache": cached,
        }
    )


@pytest.fixture(
    scope="module",
    params=[smollm2_path, mamba_path, hybrid_path, gemma3_path],
    ids=["smollm2", "mamba", "hybrid", "gemma3"],
)
def models(request: pytest.FixtureRequest) -> Iterator[tuple[api.Model, api.Model]]:
    """A model with three slots, and the same one that keeps nothing."""
    make: Callable[[], str] = request.param
    with (
        loaded(make(), 3, cached=True) as warm,
        loaded(make(), 1, cached=False) as cold,
    ):
        yield warm, cold


def say(model: api.Model, tokens: list[int], count: int, **options: Any) -> tuple[list[int], Any]:
    events = record(api.infer(model, tokens, {"response_tokens": count, **options}))
    assert events[-1].kind == "done", events[-1]
    return [e.token_id for e in events if e.token_id is not None], events[-1].stats


def prompt_of(model: api.Model, length: int) -> list[int]:
    return model.tokenize(TEXT)[:length]


def test_the_same_greedy_tokens_in_a_session_as_cold(models: tuple[api.Model, api.Model]) -> None:
    warm, cold = models
    prompt, before = prompt_of(warm, 90), 0
    for turn in range(4):
        said, stats = say(warm, prompt, 10, session_id="talk")
        assert said == say(cold, prompt, 10)[0]
        assert stats["cache_hit_kind"] == ("sticky" if turn else "cold")
        assert stats["cache_delta"]["read"] == before
        before = stats["committed_tokens"]
        prompt = [*prompt, *said, *warm.tokenize(f" Then, on day {turn},")]
    assert [one["session_id"] for one in warm.sessions] == ["talk"]
    warm.end_session("talk")


def test_the_whole_context_again_says_the_same(models: tuple[api.Model, api.Model]) -> None:
    warm, cold = models
    prompt = prompt_of(warm, 77)
    warm.prefill(prompt, session_id="again")
    # Meanwhile another sequence has made the latest logits.
    say(warm, prompt_of(warm, 20)[::-1], 3)
    said, stats = say(warm, prompt, 8, session_id="again")
    assert said == say(cold, prompt, 8)[0]
    assert stats["prefix_len"] == 77
    # A state that cannot be cut back by a token is left, and its row is found instead.
    assert stats["cache_hit_kind"] in ("sticky", "exact")
    warm.end_session("again")


def test_many_talks_on_few_slots_say_what_they_say_alone(
    models: tuple[api.Model, api.Model],
) -> None:
    warm, cold = models
    texts = [f" {word} and then" for word in ("rain", "wind", "snow", "fog")]
    starts = [prompt_of(warm, 40 + 9 * n)[n:] + warm.tokenize(text) for n, text in enumerate(texts)]

    def talk(number: int) -> list[tuple[list[int], list[int]]]:
        chance = random.Random(number)
        prompt, turns = list(starts[number]), []
        for turn in range(3):
            said, _ = say(warm, prompt, 3, session_id=number)
            turns.append((prompt, said))
            otherwise = chance.random() < 0.3
            prompt = [*(prompt[:-5] if otherwise else prompt + said), *warm.tokenize(f" {turn}")]
        return turns

    with ThreadPoolExecutor(4) as pool:
        talks = list(pool.map(talk, range(4)))
    alike = total = 0
    for prompt, said in [turn for turns in talks for turn in turns]:
        alike += said[:1] == say(cold, prompt, 1)[0]
        total += 1
    # Beside others the last bits differ, and with them a near tie here and there.
    assert alike >= total - 2
    for number in range(4):
        assert warm.end_session(number) == "ok"
    assert warm.sessions == []
    # No slot was lost: three at once, and each has its own.
    with ThreadPoolExecutor(3) as pool:
        for said, _ in pool.map(lambda n: say(warm, starts[n], 6), range(3)):
            assert len(said) == 6


def test_a_session_moves_over_to_whoever_has_the_slot_by_its_rows(
    models: tuple[api.Model, api.Model],
) -> None:
    warm, cold = models
    prompt = prompt_of(warm, 100)
    said, _ = say(warm, prompt, 6, session_id="lost")
    for number in range(3):  # one for every slot
        say(warm, [*prompt_of(warm, 30)[::-1], 5 + number], 2, session_id=number)
    again = [*prompt, *said, 33]
    after, stats = say(warm, again, 6, session_id="lost")
    assert stats["cache_hit_kind"] == "partial"
    assert stats["prefix_len"] == len(prompt) + 6
    assert after == say(cold, again, 6)[0]
    for name in ("lost", 0, 1, 2):
        warm.end_session(name)


def test_a_busy_session_is_refused_beside_its_stream() -> None:
    with loaded(smollm2_path(), 2, cached=True) as model:
        stream = api.infer(model, prompt_of(model, 30), {"session_id": "a", "response_tokens": 90})
        with pytest.raises(ErllamaError) as refused:
            model.complete("x", session_id="a")
        assert refused.value.reason == "sticky_busy"
        assert len(list(stream)) > 0


def test_verify_takes_the_room_of_sessions_and_embed_does_not() -> None:
    with loaded(smollm2_path(), 2, cached=True) as model:
        prompt = prompt_of(model, 40)
        said, _ = say(model, prompt, 5, session_id="a")
        vector = model.embed(prompt)
        assert [one["tokens"] for one in model.sessions] == [45]
        asked = (str(model), prompt, said[:3], 3)
        first = api.verify(*asked)
        assert first == (3, said[3])
        assert model.sessions == []
        again, stats = say(model, [*prompt, *said], 5, session_id="a")
        assert stats["cache_hit_kind"] in ("exact", "partial")
        assert len(again) == 5
        assert api.verify(*asked) == first
        assert model.embed(prompt) == vector
