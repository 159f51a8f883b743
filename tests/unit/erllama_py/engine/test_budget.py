"""A budget for the memory of models: who makes room, who stays, and what is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from erllama_py import api
from erllama_py._engine import budget
from erllama_py._engine.registry import core
from erllama_py.errors import ErllamaError, ModelGone
from erllama_py.testing import record, stub_model
from tests.models import smollm2_path
from tests.waiting import wait_for

MIB = 1 << 20
SLOW = {"step_delay_ms": 20}


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERLLAMA_MODEL_MEMORY_BYTES", "100M")


@pytest.fixture
def models() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def seen() -> Iterator[list[tuple[Any, ...]]]:
    events: list[tuple[Any, ...]] = []
    forget = api.watch(lambda *event: events.append(event))
    yield events
    forget()


def loaded(models: ExitStack, name: str, size_mib: int, **config: Any) -> api.Model:
    opts = {"weights_bytes": size_mib * MIB, **config.pop("stub_opts", {})}
    return models.enter_context(stub_model(name, stub_opts=opts, **config))


def ids() -> set[str]:
    return {info["id"] for info in api.list_models()}


@pytest.mark.usefixtures("limited")
class TestMakingRoom:
    def test_the_one_not_used_for_longest_goes(self, models, seen) -> None:
        a, b = loaded(models, "a", 40), loaded(models, "b", 40)
        api.complete(a, "x", {"response_tokens": 1})
        gone = api.model_info(b)["pid"]
        loaded(models, "c", 60)
        assert ids() == {"a", "c"}
        assert ("down", "b", gone, ("shutdown", "evicted")) in seen
        with pytest.raises(ModelGone) as caught:
            api.complete(b, "x")
        assert caught.value.reason == ("noproc", ("erllama_model", "not_found", "b"))
        assert "evicted to make room for 'c'" in str(caught.value)
        with pytest.raises(ErllamaError) as again:
            api.unload("b")
        assert again.value.reason == "not_found"
        assert api.phase("b") == "idle"

    def test_what_was_evicted_can_be_loaded_again(self, models) -> None:
        loaded(models, "a", 60)
        loaded(models, "b", 60)
        a = loaded(models, "a", 60)
        assert ids() == {"a"}
        assert api.complete(a, "x", {"response_tokens": 1})["generated"]

    def test_as_many_go_as_are_needed_and_no_more(self, models) -> None:
        for name in "abc":
            loaded(models, name, 30)
        loaded(models, "d", 50)
        assert ids() == {"c", "d"}

    def test_a_model_in_use_and_one_to_keep_stay(self, models) -> None:
        busy = loaded(models, "busy", 40, stub_opts=SLOW)
        loaded(models, "kept", 20, keep=True)
        loaded(models, "idle", 30)
        stream = api.infer(busy, [1], {"response_tokens": 1000})
        queued = api.infer(busy, [2], {"response_tokens": 2})
        assert next(stream).kind == "token"
        with pytest.raises(ErllamaError) as caught:
            loaded(models, "big", 50)
        assert caught.value.reason == (
            "no_memory",
            {"needed": 50 * MIB, "limit": 100 * MIB, "used": 90 * MIB, "idle": 30 * MIB},
        )
        text = str(caught.value)
        assert "'big' takes about 50.0 MiB" in text
        assert "'busy' 40.0 MiB" in text
        assert "'kept' 20.0 MiB (keep)" in text
        assert "ERLLAMA_MODEL_MEMORY_BYTES" in text
        # Refused, so nothing was evicted for it; and its id is free.
        assert ids() == {"busy", "kept", "idle"}
        loaded(models, "big", 40)
        assert ids() == {"busy", "kept", "big"}
        api.cancel(stream.ref)
        assert record(queued)[-1].kind == "done"

    def test_what_can_never_fit_evicts_nobody(self, models) -> None:
        loaded(models, "a", 10)
        with pytest.raises(ErllamaError) as caught:
            loaded(models, "huge", 101)
        assert caught.value.reason[0] == "no_memory"
        assert ids() == {"a"}

    def test_the_room_of_a_model_that_ends_is_free_at_once(self, models) -> None:
        for _ in range(5):
            one = loaded(models, "one", 90, keep=True, in_process=False)
            api.unload(one)
        with pytest.raises(ErllamaError):
            loaded(models, "bad", 90, backend="llama", model_path="/no/such.gguf")
        assert api.model_memory() == {"limit": 100 * MIB, "used": 0, "models": {}}

    def test_what_was_computed_is_warm_when_it_is_loaded_again(self, models) -> None:
        same = {"fingerprint": b"f" * 32, "in_process": False}
        a = loaded(models, "a", 60, **same)
        tokens = list(range(100, 200))
        said = record(api.infer(a, tokens, {"response_tokens": 4}))
        ids_said = [event.token_id for event in said if event.kind == "token_id"]
        loaded(models, "b", 60)  # at once: the last token may still have to be stored
        assert ids() == {"b"}
        a = loaded(models, "a", 60, **same)
        last = record(api.infer(a, [*tokens, *ids_said], {"response_tokens": 1}))[-1]
        assert last.stats is not None
        assert last.stats["cache_hit_kind"] == "exact"


@pytest.mark.usefixtures("limited")
class TestRaces:
    def test_loads_that_come_together_never_take_more_than_there_is(
        self, models, monkeypatch
    ) -> None:
        """Each of eight takes a third: whoever comes evicts who is idle."""
        most = 0
        put = core().budget.admit

        def watched(host: Any) -> None:
            nonlocal most
            put(host)
            most = max(most, sum(c.total for c in core().budget.charges.values()))

        monkeypatch.setattr(core().budget, "admit", watched)
        outcomes: list[Any] = []

        def load(name: str) -> None:
            try:
                outcomes.append(loaded(models, name, 33))
            except ErllamaError as error:
                outcomes.append(error.reason[0])

        threads = [threading.Thread(target=load, args=(f"m{n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most <= 100 * MIB
        assert len(outcomes) == 8
        assert 1 <= len(ids()) <= 3
        # Three that load at one time leave the fourth nobody to evict.
        assert {one for one in outcomes if type(one) is not api.Model} <= {"no_memory"}

    def test_a_request_keeps_a_victim_or_finds_it_unloaded(self, models) -> None:
        """Two models in turns for one place, and requests for whichever is there."""
        ends = threading.Event()
        answered: list[str] = []
        wrong: list[ErllamaError] = []

        def ask() -> None:
            while not ends.is_set():
                for name in ("a", "b"):
                    try:
                        done = api.complete(name, "x y z", {"response_tokens": 2})
                        assert len(done["generated"]) == 2
                        answered.append(name)
                    except ErllamaError as error:
                        if not (isinstance(error, ModelGone) and error.reason[0] == "noproc"):
                            wrong.append(error)
                time.sleep(0.001)  # or else there is never a moment without a request

        refusals: set[str] = set()
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            loads = 0
            for turn in range(400):
                if loads == 12 and {"a", "b"} <= set(answered):
                    break
                try:
                    loaded(models, "ab"[turn % 2], 60)
                    loads += 1
                except ErllamaError as error:
                    refusals.add(error.reason if isinstance(error.reason, str) else "no_memory")
        finally:
            ends.set()
            asking.join()
        assert not wrong
        assert refusals <= {"already_loaded", "no_memory"}
        assert {"a", "b"} <= set(answered)
        assert len(ids()) == 1

    def test_a_victim_that_gets_a_request_in_between_is_left_alone(
        self, models, monkeypatch
    ) -> None:
        busy = loaded(models, "late", 60, stub_opts=SLOW)
        streams = []
        retire = budget.retire

        def first_a_request(hosts: Any) -> bool:
            if not streams:
                streams.append(api.infer(busy, [1], {"response_tokens": 1000}))
            return retire(hosts)

        monkeypatch.setattr(budget, "retire", first_a_request)
        with pytest.raises(ErllamaError) as caught:
            loaded(models, "new", 60)
        assert caught.value.reason[0] == "no_memory"
        assert next(streams[0]).kind == "token"
        api.cancel(streams[0].ref)
        assert record(streams[0])[-1].kind == "done"

    def test_an_interrupted_eviction_leaves_nothing_half_gone(self, models, monkeypatch) -> None:
        """Ctrl-C in a notebook, while a load makes room."""
        for name in "ab":
            loaded(models, name, 40, in_process=False)
        pids = [core().host(name).os_pid for name in "ab"]

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(core().budget, "_evict", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loaded(models, "c", 100)
        monkeypatch.undo()
        wait_for(lambda: ids() == set())
        assert api.model_memory()["models"] == {}
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        for name in "abc":
            loaded(models, name, 40)


class TestAfterTheLoad:
    def test_what_the_engine_made_is_charged(self, models, monkeypatch, caplog) -> None:
        """A stub that turns out larger than its estimate."""
        monkeypatch.setenv("ERLLAMA_MODEL_MEMORY_BYTES", "100M")
        guess = budget.foreseen
        monkeypatch.setattr(
            budget, "foreseen", lambda config: guess(config)._replace(weights=10 * MIB)
        )
        loaded(models, "a", 60)
        loaded(models, "b", 60)  # 10 were foreseen; with its 60, a has to go
        assert ids() == {"b"}
        assert api.model_memory()["used"] == 60 * MIB
        loaded(models, "kept", 70, keep=True)
        assert ids() == {"kept"}
        loaded(models, "c", 60)  # nobody to evict: it stays, and the log says so
        assert ids() == {"kept", "c"}
        assert "model_memory_bytes is 100.0 MiB" in caplog.text

    def test_no_limit_by_default(self, models) -> None:
        for name in "ab":
            loaded(models, name, 1 << 30)
        assert ids() == {"a", "b"}
        memory = api.model_memory()
        assert memory["limit"] is None
        assert memory["used"] == 2 << 50
        assert memory["models"]["a"] == {"weights": 1 << 50, "context": 0, "compute": 0}

    def test_a_limit_that_cannot_be_is_refused(self, models, monkeypatch) -> None:
        monkeypatch.setenv("ERLLAMA_MODEL_MEMORY_BYTES", "plenty")
        with pytest.raises(ErllamaError) as caught:
            loaded(models, "a", 1)
        assert caught.value.reason == ("invalid", "ERLLAMA_MODEL_MEMORY_BYTES", "plenty")

    def test_keep_is_checked(self, models) -> None:
        with pytest.raises(ErllamaError) as caught:
            loaded(models, "a", 1, keep="perhaps")
        assert caught.value.reason == ("invalid", "keep", "perhaps")


@pytest.mark.model
def test_a_real_model_makes_room_for_itself_with_a_smaller_context(models, monkeypatch) -> None:
    monkeypatch.setenv("ERLLAMA_MODEL_MEMORY_BYTES", "150MB")
    threads = {"n_threads": 1, "n_threads_batch": 2}
    config = {"model_path": smollm2_path()}
    with pytest.raises(ErllamaError) as caught:
        api.load_model("real", {**config, "context_opts": threads})
    assert caught.value.reason[0] == "no_memory"
    assert "weights 9" in str(caught.value)
    loaded(models, "stub", 100)
    small = {**threads, "n_ctx": 512, "n_batch": 128}
    with api.load_model("real", {**config, "context_opts": small}) as model:
        wait_for(lambda: ids() == {"real"})
        taken = api.model_memory()["models"]["real"]
        assert 90 * MIB < taken["weights"] < 100 * MIB
        assert 11 * MIB < taken["context"] < 13 * MIB
        assert model.complete("The", response_tokens=2)["generated"]
