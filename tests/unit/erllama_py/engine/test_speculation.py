"""Drafting and verifying: what is accepted, that it repeats, and who has to wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from erllama_py import api
from erllama_py._engine import drafting
from erllama_py._engine.registry import core
from erllama_py.api._asking import token_array
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.errors import BadCall, ErllamaError, ModelGone
from erllama_py.testing import record, stub_model
from tests.models import gemma3_path, hybrid_path, mamba_path, smollm2_path
from tests.waiting import wait_for

STORY = "The lighthouse keeper wrote one line in the log every evening. " * 20
CONTEXT = {"n_ctx": 1024, "n_threads": 1, "n_threads_batch": 2}
WRONG = 77
"""A token that none of the drafts has."""


def loaded(path: str) -> api.Model:
    return api.load_model({"model_path": path, "policy": EVERYDAY_POLICY, "context_opts": CONTEXT})


@pytest.fixture(scope="module")
def smollm2() -> Iterator[api.Model]:
    with loaded(smollm2_path()) as model:
        yield model


def refused(call: Callable[[], Any]) -> Any:
    with pytest.raises(ErllamaError) as caught:
        call()
    return caught.value.reason


# -- drafting ---------------------------------------------------------------------------


def test_a_draft_has_as_many_tokens_as_asked_for() -> None:
    with stub_model() as model:
        for options, count in [
            ({"max": 3}, 3),
            ({"max": 3, "temperature": "hot", "stop_sequences": 5}, 3),
            *(({"max": bad}, 64) for bad in (0, -1, 2.0, True, "5", None)),
            ({}, 64),
            (None, 64),
        ]:
            assert len(api.draft_tokens(model, [1, 2], options)) == count


def test_an_empty_prefix_is_refused_before_anything_is_looked_at() -> None:
    for model_id, options in [("nobody", {}), (5, {}), (None, "no map")]:
        assert refused(lambda m=model_id, o=options: api.draft_tokens(m, [], o)) == "empty_prefix"
    with pytest.raises(ModelGone):
        api.draft_tokens("nobody", [1], {})
    with stub_model() as model:
        for bad in (
            lambda: api.draft_tokens(api.model_info(model)["pid"], [1], {}),
            lambda: api.draft_tokens(model, [1], [5]),  # type: ignore[arg-type]
            lambda: api.draft_tokens(model, "text", {}),  # type: ignore[arg-type]
        ):
            with pytest.raises(BadCall):
                bad()
        assert refused(lambda: api.draft_tokens(model, [1] * 4096, {})) == "context_overflow"
        assert refused(lambda: api.draft_tokens(model, [-1], {})) == "invalid_token"


def test_a_silent_model_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "SILENCE_S", 0.05)
    with stub_model(stub_opts={"step_delay_ms": 400}) as model:
        assert refused(lambda: api.draft_tokens(model, [1], {"max": 5})) == "timeout"
        wait_for(lambda: api.queue_depth(model) == 0)


def test_a_started_draft_that_is_cancelled_has_what_there_is() -> None:
    outcomes: list[Any] = []
    with stub_model(stub_opts={"step_delay_ms": 2}) as model:
        ref = api.start("draft_tokens", [model, [1], {"max": 4000}], outcomes.append)
        (request,) = core().host(model).requests
        wait_for(lambda: request.drawn)
        api.cancel(ref)
        wait_for(lambda: outcomes)
        assert outcomes == [request.drawn.tolist()]
        assert request.stats
        assert request.stats["cancelled"]
    assert len(outcomes) == 1


def test_the_queue_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "SILENCE_S", 0.4)
    with stub_model(stub_opts={"step_delay_ms": 30}) as model:
        before = api.infer(model, [1], {"response_tokens": 40})
        assert len(api.draft_tokens(model, [1], {"max": 2})) == 2
        assert record(before)[-1].kind == "done"


# -- verifying --------------------------------------------------------------------------


def test_the_stub_does_not_verify() -> None:
    with stub_model() as model:
        for prefix in ([], [1]):
            assert refused(lambda p=prefix: api.verify(model, p, [2], 1)) == "not_supported"
    with pytest.raises(ModelGone):
        api.verify("nobody", [1], [2], 1)


@pytest.mark.model
@pytest.mark.timeout(180)
@pytest.mark.parametrize("path", [smollm2_path, gemma3_path, mamba_path, hybrid_path])
def test_what_the_model_would_say_is_accepted(path: Callable[[], str]) -> None:
    """Full attention, a sliding window, states, and both; more candidates than one pass."""
    with loaded(path()) as model:
        prefix = model.tokenize(STORY)[:200]
        said = api.draft_tokens(model, prefix, {"max": 22})
        draft, after = said[:20], said[20]
        assert WRONG not in draft
        for _ in range(2):
            assert api.verify(model, prefix, draft, 50) == (20, after)
            assert api.verify(model, prefix, draft, 5) == (5, draft[5])
            assert api.verify(model, prefix, [], 5) == (0, draft[0])
        for wrong in (0, 3, 15, 16, 19):
            drafted = [*draft[:wrong], WRONG, *draft[wrong + 1 :]]
            assert api.verify(model, prefix, drafted, 20) == (wrong, draft[wrong])


@pytest.mark.model
@pytest.mark.timeout(120)
def test_the_loop_says_what_the_model_says_alone(smollm2: api.Model) -> None:
    prefix = smollm2.tokenize("Once upon a time")
    said = api.draft_tokens(smollm2, prefix, {"max": 24})
    tokens = list(prefix)
    for number in range(6):
        # Three right, then a wrong one, as of a smaller model.
        done = len(tokens) - len(prefix)
        drafted = [*said[done : done + 3], WRONG]
        accepted, following = api.verify(smollm2, tokens, drafted, 4)
        assert accepted == 3, number
        tokens += [*drafted[:accepted], following]
    assert tokens == prefix + said


@pytest.mark.model
@pytest.mark.timeout(120)
def test_the_end_of_generation_is_a_word_and_never_accepted(smollm2: api.Model) -> None:
    request = {"messages": [{"role": "user", "content": "What is 2+2?"}]}
    prefix = api.apply_chat_template(smollm2, request)
    *said, end = api.draft_tokens(smollm2, prefix, {"max": 60})
    assert len(said) < 59, "it came to an end"
    assert api.verify(smollm2, prefix, [*said, end], 60) == (len(said), "eos")
    assert api.verify(smollm2, prefix + said, [end, 5], 2) == (0, "eos")


@pytest.mark.model
@pytest.mark.timeout(120)
def test_nothing_else_changes(smollm2: api.Model) -> None:
    prompt = STORY + "And then"
    options = {"response_tokens": 12, "exactness": "bit"}
    before = smollm2.complete(prompt, **options)["generated"]
    wait_for(lambda: not core().host(smollm2)._requests)
    hit = api.last_cache_hit(smollm2)
    counted = api.counters()
    tokens = smollm2.tokenize(prompt)
    # The row of exactly this prompt is there: its last cut is computed all the same.
    cold = api.verify(smollm2, tokens, [*before[:4], WRONG], 5)
    assert cold == (4, before[4])
    core().cache.gc()
    assert api.verify(smollm2, tokens, [*before[:4], WRONG], 5) == cold
    assert api.last_cache_hit(smollm2) == hit
    saves = [name for name in counted if name.startswith("saves_")]
    wait_for(lambda: not core().host(smollm2)._requests)
    assert [api.counters()[name] for name in saves] == [counted[name] for name in saves]
    assert smollm2.complete(prompt, **options)["generated"] == before


@pytest.mark.model
@pytest.mark.timeout(120)
def test_its_prefix_is_found_the_second_time(smollm2: api.Model) -> None:
    prefix = smollm2.tokenize(STORY)
    first = api.verify(smollm2, prefix, [WRONG], 1)
    assert api.counters()["misses"] == 1
    wait_for(lambda: api.list_cached_prefixes(smollm2, prefix) >= len(prefix) // 64 * 64)
    assert api.verify(smollm2, prefix, [WRONG], 1) == first
    assert api.counters()["hits_longest_prefix"] == 1


@pytest.mark.model
def test_what_cannot_be_verified_is_refused(smollm2: api.Model) -> None:
    for prefix, candidates, reason in [
        ([], [1], "empty_prefix"),
        ([49152], [1], "invalid_token"),
        ([1], [49152], "invalid_token"),
        ([-1], [1], "invalid_token"),
        ([1] * 1020, [1] * 4, "context_overflow"),
        ([1] * 1024, [], "context_overflow"),
    ]:
        args = prefix, candidates
        assert refused(lambda args=args: api.verify(smollm2, *args, 9)) == reason
    for k in (0, -1, 1.0, True, "1"):
        with pytest.raises(BadCall):
            api.verify(smollm2, [1], [1], k)  # type: ignore[arg-type]
    with pytest.raises(BadCall):
        api.verify(api.model_info(smollm2)["pid"], [1], [1], 1)
    # Only the first k candidates count.
    assert api.verify(smollm2, [1], [WRONG, 49152], 1)[0] == 0


@pytest.mark.model
@pytest.mark.timeout(120)
def test_it_has_the_model_to_itself_or_is_refused(smollm2: api.Model) -> None:
    prefix = smollm2.tokenize(STORY)
    stream = api.infer(smollm2, prefix, {"response_tokens": 200})
    assert refused(lambda: api.verify(smollm2, prefix, [1], 1)) == "busy"
    stream.cancel()
    assert record(stream)[-1].kind == "done"

    expected = smollm2.complete("One, two,", response_tokens=4)["generated"]
    core().cache.gc()
    verdicts: list[tuple[int, Any]] = []
    long = smollm2.tokenize(STORY * 3)
    asker = threading.Thread(target=lambda: verdicts.append(api.verify(smollm2, long, [WRONG], 1)))
    asker.start()
    host = core().host(smollm2)
    wait_for(lambda: any(r.mode == "verify" for r in list(host._requests.values())))
    assert refused(lambda: api.infer(smollm2, prefix)) == "busy"
    assert refused(lambda: api.draft_tokens(smollm2, prefix, {})) == "busy"
    assert refused(lambda: api.verify(smollm2, prefix, [1], 1)) == "busy"
    # What waits for its result anyway waits for the verdict, too.
    assert smollm2.complete("One, two,", response_tokens=4)["generated"] == expected
    assert verdicts
    asker.join(30)
    assert verdicts[0][0] == 0
    assert record(api.infer(smollm2, prefix, {"response_tokens": 1}))[-1].kind == "done"


@pytest.mark.model
@pytest.mark.timeout(120)
def test_one_that_nobody_waits_for_is_stopped(smollm2: api.Model) -> None:
    host = core().host(smollm2)
    tokens = token_array(smollm2.tokenize(STORY * 3))
    request = drafting.verify_request(host.info, tokens, tokens[:3])
    host.submit(request)
    host.cancel(request)
    assert request.wait()
    outcomes: list[Any] = []
    api.cancel(api.start("verify", [smollm2, tokens, tokens[:3], 3], outcomes.append))
    wait_for(lambda: outcomes)
    assert outcomes[0].reason == "cancelled"
    wait_for(lambda: not host.requests)
    api.start("verify", [smollm2, [5, 6], [WRONG], 1], outcomes.append)
    wait_for(lambda: len(outcomes) == 2, 30)
    assert outcomes[1][0] == 0
    assert api.verify(smollm2, [5, 6], [WRONG], 1)[0] == 0
