"""A draft model's side: what is answered, and that nothing of it is ever an error."""

from __future__ import annotations

import queue
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from erllama_py import api
from erllama_py._engine.draftmodel import DraftModel, draft_model
from erllama_py._engine.frames import Drafted, WantDraft
from erllama_py._engine.registry import core
from erllama_py.config import Speculate
from erllama_py.errors import ErllamaError
from erllama_py.testing import stub_model
from tests.models import gemma3_path, smollm2_path
from tests.waiting import wait_for


def ask(drafts: DraftModel, tokens: list[int], count: int = 4) -> Callable[[], Drafted]:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    drafts.ask(WantDraft(7, len(tokens), count), array("I", tokens), answers.put)
    return lambda: answers.get(timeout=10)


def test_a_draft_is_as_many_tokens_as_were_asked_for() -> None:
    with stub_model() as model:
        drafts = DraftModel(lambda: core().find(model))
        answer = ask(drafts, [1, 2, 3])()
        assert (answer.id, answer.length, len(answer.tokens)) == (7, 3, 16)
        assert len(ask(drafts, [1, 2, 3, 4], 2)().tokens) == 8


def test_what_cannot_draft_answers_nothing() -> None:
    assert ask(DraftModel(lambda: None), [1])().tokens == b""
    with stub_model(context_opts={"n_ctx": 128}) as model:
        host = core().host(model)
        drafts = DraftModel(lambda: host)
        assert ask(drafts, [1] * 200)().tokens == b"", "longer than its context"
        assert ask(drafts, [1] * 20)().tokens
    assert ask(drafts, [1])().tokens == b"", "unloaded"


def test_one_that_is_unloaded_or_dies_meanwhile_answers_nothing() -> None:
    with stub_model(stub_opts={"step_delay_ms": 50}) as model:
        answer = ask(DraftModel(lambda: core().find(model)), [1, 2], 1000)
        wait_for(lambda: any(r.admitted for r in core().host(model).requests))
    assert answer().tokens == b""
    crashing = {"stub_opts": {"crash_at_step": 3}}
    with stub_model(in_process=False, **crashing) as model:
        assert ask(DraftModel(lambda: core().find(model)), [1, 2], 1000)().tokens == b""


def test_a_draft_that_nobody_needs_any_more_is_stopped() -> None:
    with stub_model(stub_opts={"step_delay_ms": 10}) as model:
        drafts = DraftModel(lambda: core().find(model))
        ask(drafts, [1, 2], 4000)
        host = core().host(model)
        wait_for(lambda: any(r.admitted for r in host.requests))
        drafts.stop()
        wait_for(lambda: not host.requests)
        ask(drafts, [1, 2], 4000)
        assert not host.requests, "nothing is begun after the end"


def refused(call: Callable[[], Any]) -> ErllamaError:
    with pytest.raises(ErllamaError) as caught:
        call()
    return caught.value


def test_a_model_that_cannot_draft_for_another_is_refused_by_name() -> None:
    with stub_model("target") as model, stub_model("other"):
        for name, words in [("nobody", "no model 'nobody'"), ("target", "for itself")]:
            error = refused(lambda n=name: model.complete("a b", speculate={"draft": n}))
            assert error.reason == ("invalid", "speculate", {"draft": name.encode(), "max": 8})
            assert words in str(error)
        reply = model.complete("a b", response_tokens=3, speculate={"draft": "other"})
        assert reply["stats"]["speculation"] == {
            "drafted": 0,
            "accepted": 0,
            "acceptance_rate": 0.0,
            "plain": "not_supported",
        }


def test_a_default_may_name_a_model_that_is_not_there() -> None:
    with stub_model(speculate={"draft": "later"}) as model:
        host = core().host(model)
        drafts = draft_model(host, host.config.speculate, core().find)
        assert drafts is not None
        assert ask(drafts, [1])().tokens == b""
        assert "speculation" in model.complete("a b", response_tokens=2)["stats"]
        with stub_model("later"):
            assert ask(drafts, [1])().tokens
        off = model.complete("a b", response_tokens=2, speculate=False)
        assert "speculation" not in off["stats"]
        named = Speculate(8, draft="later")
        assert refused(lambda: draft_model(host, named, core().find)).reason[1] == "speculate"


@pytest.mark.model
@pytest.mark.timeout(120)
def test_another_vocabulary_is_refused() -> None:
    context = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 2}
    small = {"model_path": smollm2_path(), "context_opts": context}
    gemma = {"model_path": gemma3_path(), "context_opts": context}
    with api.load_model("smol", small) as model, api.load_model("gem", gemma):
        error = refused(lambda: model.complete("Hi", speculate={"draft": "gem"}))
        assert error.reason == ("invalid", "speculate", {"draft": b"gem", "max": 8})
        assert "the model 'gem' has another vocabulary than 'smol'" in str(error)
        with api.load_model("twin", small):
            reply = model.complete("Hi", response_tokens=2, speculate={"draft": "twin"})
        assert reply["stats"]["speculation"]["drafted"] == 0
