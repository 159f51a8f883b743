"""The end of a model on request: who hears of it, how long it may take, and its id after."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from erllama_py import api
from erllama_py._cache.store import Cache
from erllama_py._engine import host as hosts
from erllama_py._engine.registry import core
from erllama_py.errors import ErllamaError, ModelGone
from erllama_py.testing import record, stub_model
from tests.waiting import wait_for

LONG = {"response_tokens": 3000}


def later(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run a call beside us; its result or error is put into the list."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call())
        except ErllamaError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


@pytest.mark.parametrize("in_process", [True, False])
def test_all_that_waits_hears_of_the_end_and_the_id_is_free(in_process: bool) -> None:
    seen: list[tuple[Any, ...]] = []
    forget = api.watch(lambda *event: seen.append(event))
    options = {"in_process": in_process, "stub_opts": {"step_delay_ms": 5}}
    try:
        with stub_model("ends", **options) as model:
            pid = api.model_info(model)["pid"]
            streams = [api.infer(model, [number], LONG) for number in (1, 2)]
            assert next(streams[0]).kind == "token"
            waiting = [
                later(lambda: api.complete(model, "queued", LONG)),
                later(lambda: api.prefill_only(pid, range(300))),
                later(lambda: api.draft_tokens(model, [3], {"max": 9})),
            ]
            wait_for(lambda: api.pending_len(model) == 4)
            unloads = [later(lambda: api.unload(model)) for _ in range(2)]
            for thread, _ in [*unloads, *waiting]:
                thread.join(20)
                assert not thread.is_alive()
            ended = [outcome for _, (outcome,) in unloads]
            # One of them ended it; the other came before or after its id was free.
            assert "ok" in ended
            assert all(one == "ok" or one.reason == "not_found" for one in ended)
            for stream in streams:
                assert [event.kind for event in record(stream) if event.terminal] == ["error"]
            (complete,), (prefill,), (draft,) = (outcome for _, outcome in waiting)
            assert isinstance(complete, ModelGone)
            assert isinstance(prefill, ModelGone)
            assert complete.reason[0] == prefill.reason[0] == "shutdown"
            assert draft.reason == ("unloaded", "shutdown")
            assert [event for event in seen if event[0] == "down"] == [
                ("down", "ends", pid, "shutdown")
            ]
            assert api.queue_depth() == 0
            with stub_model("ends") as again:
                assert api.complete(again, "a", {"response_tokens": 1})["generated"]
                assert api.model_info(again)["pid"] != pid
    finally:
        forget()


def test_an_engine_that_hangs_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core(), "_save_timeout_s", 0.05)
    monkeypatch.setattr(hosts, "END_TIMEOUT_S", 0.05)
    with stub_model(in_process=False, stub_opts={"step_delay_ms": 600_000}) as model:
        process = core().host(model).os_pid
        stream = api.infer(model, [1], LONG)
        wait_for(lambda: api.queue_depth(model) == 1)
        assert api.unload(model) == "ok"
        assert [event.kind for event in record(stream)] == ["error"]
        assert process is not None
        assert not psutil.pid_exists(process)


@pytest.fixture
def stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that takes nothing until the event is set, under the core's cache."""
    cache = Cache(1 << 22)
    cache.home = cache.add_tier("disk", "disk", tmp_path, 1 << 22)
    go_on = threading.Event()
    really = cache.home.directory.write

    def write(*args: Any) -> None:
        assert go_on.wait(30)
        really(*args)

    monkeypatch.setattr(cache.home.directory, "write", write)
    monkeypatch.setattr(core(), "_cache", cache)
    monkeypatch.setattr(core(), "_save_timeout_s", 0.05)
    yield go_on
    go_on.set()
    monkeypatch.undo()
    cache.close()


def test_no_disk_holds_up_evict_shutdown_or_unload(stuck: threading.Event) -> None:
    with (
        stub_model(stub_opts={"step_delay_ms": 5}) as model,
        api.infer(model, range(100), LONG) as stream,
    ):
        next(stream)
        assert api.shutdown(model) == api.evict(model) == "ok"
        assert api.unload(model) == "ok"
        assert record(stream)[-1].reason == ("unloaded", "shutdown")
    assert not stuck.is_set()
