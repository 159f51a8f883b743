"""Embeddings through the whole core: beside streams, in order, and freed when idle."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import gguf
import pytest

from erllama_py import api
from erllama_py._backends.base import BackendConfig
from erllama_py._backends.stub import StubBackend, embed
from erllama_py._cache.key import encode_tokens
from erllama_py._engine.embeddings import Embeddings
from erllama_py._engine.frames import Answer, Call, Frame, Refused
from erllama_py._engine.life import Pending
from erllama_py._engine.registry import core
from erllama_py.errors import BadCall, ErllamaError, ModelGone
from erllama_py.testing import record, stub_model
from tests.models import bert_path, smollm2_path
from tests.waiting import wait_for

THREADS = {"n_threads": 1, "n_threads_batch": 2}


@pytest.fixture(scope="module")
def smollm2() -> Iterator[api.Model]:
    config = {"model_path": smollm2_path(), "context_opts": {"n_ctx": 1024, **THREADS}}
    with api.load_model(config) as loaded:
        yield loaded


# -- the stub ---------------------------------------------------------------------------


def test_the_stub_s_vectors_are_the_original_s() -> None:
    with stub_model() as model:
        bits = 40286221  # phash2({embed, [47480723, 82372638]})
        values = api.embed(model, [47480723, 82372638])
        assert values == [((bits >> 4 * i) & 0xFFFF) / 65535.0 for i in range(16)]
        assert model.embed(iter([1, 2, 3])) == embed([1, 2, 3])
        assert api.embed(api.model_info(model)["pid"], []) == embed([])


def test_what_is_no_list_of_tokens_is_refused() -> None:
    with stub_model() as model:
        for bad in ([-1], [1 << 27], [1 << 40], [1.5], ["a"]):
            with pytest.raises(ErllamaError) as caught:
                api.embed(model, bad)  # type: ignore[arg-type]
            assert caught.value.reason == "invalid_token"
        with pytest.raises(BadCall):
            api.embed(model, "text")  # type: ignore[arg-type]
    with pytest.raises(ModelGone):
        api.embed(model, [1])


# -- the thread -------------------------------------------------------------------------


class Held(StubBackend):
    """A stub whose embeddings are computed in pieces until they are let go."""

    def __init__(self) -> None:
        super().__init__(BackendConfig("stub"))
        self.go = threading.Event()
        self.begun: list[list[int]] = []
        self.dropped = 0

    def embed(self, tokens: Sequence[int], crowded: Callable[[], bool]) -> list[float]:
        self.begun.append(list(tokens))
        while not self.go.wait(0.002):
            crowded()
        return super().embed(tokens, crowded)

    def drop_embedder(self) -> None:
        self.dropped += 1


class Frames(list[Frame]):
    """What was sent."""

    put = list.append

    def defer(self, build: Callable[[], Frame], fd: int | None = None) -> None:
        raise NotImplementedError

    def together(self) -> AbstractContextManager[None]:
        raise NotImplementedError


@pytest.fixture
def held() -> Iterator[tuple[Embeddings, Held, Frames]]:
    backend, sent = Held(), Frames()
    embeddings = Embeddings(backend, sent, lambda: False, idle_s=0.02)
    thread = threading.Thread(target=embeddings.run, name="held")
    thread.start()
    yield embeddings, backend, sent
    backend.go.set()
    embeddings.close()
    thread.join(30)
    assert not thread.is_alive()


def test_questions_are_answered_in_order(held: tuple[Embeddings, Held, Frames]) -> None:
    embeddings, backend, sent = held
    for number, tokens in enumerate([[1], [1 << 31], [2]]):
        embeddings.ask(Call(number, "embed", encode_tokens(tokens)))
    backend.go.set()
    wait_for(lambda: len(sent) == 3)
    assert sent[0] == Answer(0, embed([1]))
    assert isinstance(sent[1], Refused)
    assert (sent[1].id, sent[1].reason) == (1, "invalid_token")
    assert sent[2] == Answer(2, embed([2]))


def test_one_that_nobody_waits_for_is_stopped_or_not_begun(
    held: tuple[Embeddings, Held, Frames],
) -> None:
    embeddings, backend, sent = held
    for number in (1, 2, 3):
        embeddings.ask(Call(number, "embed", encode_tokens([number])))
    wait_for(lambda: backend.begun)
    for number in (2, 1, 99):
        embeddings.cancel(number)
    wait_for(lambda: len(backend.begun) == 2)
    backend.go.set()
    wait_for(lambda: len(sent) == 3)
    assert backend.begun == [[1], [3]]
    assert [(one.id, one.reason) for one in sent[:2] if isinstance(one, Refused)] == [
        (1, "cancelled"),
        (2, "cancelled"),
    ]
    assert sent[2] == Answer(3, embed([3]))
    embeddings.cancel(3)  # it is answered
    embeddings.ask(Call(3, "embed", encode_tokens([4])))
    wait_for(lambda: len(sent) == 4)
    assert sent[3] == Answer(3, embed([4]))


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Stubs' embeddings go on until they are stopped; set while one does."""
    busy = threading.Event()

    def go_on(_self: StubBackend, _tokens: Sequence[int], crowded: Callable[[], bool]) -> None:
        busy.set()
        try:
            while True:
                crowded()
                threading.Event().wait(0.002)
        finally:
            busy.clear()

    monkeypatch.setattr(StubBackend, "embed", go_on)
    return busy


def test_a_wait_that_is_interrupted_stops_it(
    pieces: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C and a notebook's stop button do."""

    def interrupted(_pending: Pending) -> None:
        assert pieces.wait(30)
        raise KeyboardInterrupt

    with stub_model() as model:
        monkeypatch.setattr(Pending, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            api.embed(model, [1])
        wait_for(lambda: not pieces.is_set())


def test_a_started_one_can_be_cancelled(pieces: threading.Event) -> None:
    outcomes: list[object] = []
    with stub_model() as model:
        ref = api.start("embed", [model, [1]], outcomes.append)
        assert pieces.wait(30)
        api.cancel(ref)
        wait_for(lambda: outcomes)
        assert not pieces.is_set()
        api.cancel(ref)
    (error,) = outcomes
    assert isinstance(error, ErllamaError)
    assert error.reason == "cancelled"


def test_an_idle_context_is_freed_once(held: tuple[Embeddings, Held, Frames]) -> None:
    embeddings, backend, sent = held
    backend.go.set()
    for number in (1, 2):
        embeddings.ask(Call(number, "embed", encode_tokens([1])))
        wait_for(lambda number=number: backend.dropped == number)
    assert len(sent) == backend.dropped == 2


def test_closing_leaves_what_is_queued(held: tuple[Embeddings, Held, Frames]) -> None:
    embeddings, backend, sent = held
    for number in range(3):
        embeddings.ask(Call(number, "embed", encode_tokens([1])))
    embeddings.close()
    backend.go.set()
    wait_for(lambda: not any(t.name == "held" for t in threading.enumerate()))
    assert len(sent) <= 1


# -- real weights -----------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.timeout(120)
def test_a_stream_says_the_same_beside_embeddings(smollm2: api.Model) -> None:
    tokens = smollm2.tokenize("The lighthouse keeper wrote one line in the log every evening.")
    alone = smollm2.embed(tokens)
    params = {"response_tokens": 48}
    expected = [e.token_id for e in record(api.infer(smollm2, tokens, params))]
    stream = api.infer(smollm2, tokens, params)
    events = [next(stream)]
    for _ in range(3):
        assert smollm2.embed(tokens) == alone
    events += record(stream)
    assert [e.token_id for e in events] == expected
    assert events[-1].kind == "done"


@pytest.mark.model
@pytest.mark.timeout(120)
def test_nobody_waits_for_a_long_embedding(smollm2: api.Model) -> None:
    vectors: list[list[float]] = []
    long = [5] * 1000
    asker = threading.Thread(target=lambda: vectors.append(smollm2.embed(long)))
    asker.start()
    assert smollm2.detokenize(smollm2.tokenize("word")) == "word"
    assert len(smollm2.complete("Once", response_tokens=2)["generated"]) == 2
    assert asker.is_alive(), "all that was answered while it computed"
    asker.join(60)
    assert len(vectors[0]) == 576


@pytest.mark.model
def test_refusals_name_their_reason(smollm2: api.Model) -> None:
    for tokens, reason in [
        ([], "invalid_token"),
        ([49152], "invalid_token"),
        ([1] * 1024, "context_overflow"),
        ([1] * 1_048_577, "too_large"),
    ]:
        with pytest.raises(ErllamaError) as caught:
            api.embed(smollm2, tokens)
        assert caught.value.reason == reason


@pytest.mark.model
@pytest.mark.timeout(120)
def test_who_waits_for_a_vector_of_a_process_that_dies_hears_of_it(smollm2: api.Model) -> None:
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            smollm2.embed([5] * 1000)
        except ModelGone as error:
            failed.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    host = core().host(smollm2)
    life = host._life
    assert life is not None
    wait_for(lambda: life.calls)
    assert host.os_pid is not None
    os.kill(host.os_pid, signal.SIGKILL)
    asker.join(30)
    assert len(failed) == 1
    assert len(smollm2.embed([5, 6])) == 576  # the next life


@pytest.mark.model
def test_a_model_that_only_embeds_is_loaded_and_refuses_the_rest() -> None:
    with api.load_model({"model_path": bert_path(gguf.PoolingType.MEAN)}) as model:
        tokens = model.tokenize("ab cd")
        assert len(model.embed(tokens)) == 64
        for call in (
            lambda: model.complete("ab cd"),
            lambda: model.prefill(tokens),
            lambda: api.infer(model, tokens),
        ):
            with pytest.raises(ErllamaError) as caught:
                call()
            assert caught.value.reason == "not_supported"
        assert model.embed(tokens) == model.embed(tokens)
