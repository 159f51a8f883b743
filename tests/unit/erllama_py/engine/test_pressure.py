"""The pressure scheduler over a cache that notes what it is asked for, and a real one."""

from __future__ import annotations

import itertools
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from erllama_py import api
from erllama_py._engine.pressure import (
    PressureScheduler,
    environment_config,
    validate_config,
)
from erllama_py._engine.registry import Core, core
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.otp import pressure, scheduler
from erllama_py.testing import stub_model
from tests.waiting import wait_for

GIB = 1 << 30
POLLING = {"interval_ms": 1, "min_evict_bytes": 0}
FULL = (95 * GIB, 100 * GIB)

START = {
    "enabled": False,
    "pressure_source": "noop",
    "interval_ms": 5000,
    "high_watermark": 0.85,
    "low_watermark": 0.75,
    "min_evict_bytes": 1048576,
    "evict_tiers": ["ram", "ram_file"],
    "last_used": 0,
    "last_total": 1,
    "last_ratio": 0.0,
    "last_evicted_bytes": 0,
    "sampled_at": None,
    "last_evicted_at": None,
}


class Evictions:
    """Stands for the cache: gives what it is told to, and notes what it was asked."""

    def __init__(self, *answers: tuple[int, int]) -> None:
        self.asked: list[tuple[int, tuple[str, ...]]] = []
        self.came = threading.Event()
        self._answers = itertools.chain(answers, itertools.repeat((0, 0)))

    def __call__(self, target: int, tiers: tuple[str, ...]) -> tuple[int, int]:
        self.asked.append((target, tiers))
        self.came.set()
        return next(self._answers)


@pytest.fixture
def evictions() -> Evictions:
    return Evictions((3, 4096))


@pytest.fixture
def made(evictions: Evictions) -> Iterator:
    """Return a function that makes a scheduler; its clock counts."""
    all_of_them: list[PressureScheduler] = []

    def make(**config) -> PressureScheduler:
        ticks = itertools.count(1)
        all_of_them.append(PressureScheduler(evictions, config, clock=lambda: next(ticks)))
        return all_of_them[-1]

    yield make
    for one in all_of_them:
        one.enable(False)


class TestChecks:
    def test_it_starts_disabled(self, made, evictions: Evictions) -> None:
        one = made()
        assert one.status() == START
        assert one.force_check() == ("skipped", "disabled")
        assert one.status() == START

    def test_a_sample_is_taken_while_disabled(self, made, evictions: Evictions) -> None:
        one = made(pressure_source=lambda: (1, 2))
        assert one.sample() == (1, 2)
        seen = one.status()
        assert (seen["last_used"], seen["last_total"], seen["last_ratio"]) == (1, 2, 0.5)
        assert (seen["sampled_at"], seen["last_evicted_at"]) == (1, None)
        assert evictions.asked == []

    @pytest.mark.parametrize("used", [85 * GIB, 95 * GIB, 200 * GIB])
    def test_at_the_mark_and_above_the_target_is_the_same(
        self, made, evictions: Evictions, used: int
    ) -> None:
        one = made(enabled=True, pressure_source=lambda: (used, 100 * GIB))
        assert one.force_check() == ("evicted", 3, 4096)
        ((target, tiers),) = evictions.asked
        assert abs(target - 10 * GIB) <= 1
        assert tiers == ("ram", "ram_file")
        seen = one.status()
        assert (seen["last_evicted_bytes"], seen["last_evicted_at"]) == (4096, 1)

    def test_nothing_to_evict_leaves_the_latest_eviction(self, made, evictions: Evictions) -> None:
        one = made(enabled=True, pressure_source=lambda: FULL)
        one.force_check()
        assert one.force_check() == ("skipped", "nothing_to_evict")
        seen = one.status()
        assert (seen["sampled_at"], seen["last_evicted_at"]) == (2, 1)
        assert seen["last_evicted_bytes"] == 4096

    @pytest.mark.parametrize("reading", [(0, 1), (84, 100), (0, 0), (5, 0)])
    def test_below_the_mark_and_without_a_total(
        self, made, evictions: Evictions, reading: tuple[int, int]
    ) -> None:
        one = made(enabled=True, pressure_source=lambda: reading)
        assert one.force_check() == ("skipped", "below_watermark")
        assert evictions.asked == []
        assert one.status()["last_ratio"] == reading[0] / max(1, reading[1])

    def test_the_least_target(self, made, evictions: Evictions) -> None:
        one = made(enabled=True, pressure_source=lambda: (9, 10), min_evict_bytes=777)
        one.force_check()
        assert evictions.asked[0][0] == 777

    @pytest.mark.parametrize(
        ("given", "asked", "shown"),
        [
            ("all", ("ram", "ram_file", "disk"), "all"),
            (["disk"], ("disk",), ["disk"]),
            ([], (), []),
        ],
    )
    def test_tiers(self, made, evictions: Evictions, given, asked, shown) -> None:
        one = made(enabled=True, pressure_source=lambda: FULL, evict_tiers=given)
        one.force_check()
        assert evictions.asked[0][1] == asked
        assert one.status()["evict_tiers"] == shown

    def test_thresholds_move_the_mark(self, made, evictions: Evictions) -> None:
        one = made(enabled=True, pressure_source=lambda: (30, 100), min_evict_bytes=0)
        assert one.force_check() == ("skipped", "below_watermark")
        assert one.set_thresholds(0.3, 0) == "ok"
        assert one.force_check()[0] == "evicted"
        assert evictions.asked[0][0] == 30
        assert (one.status()["high_watermark"], one.status()["low_watermark"]) == (0.3, 0)

    @pytest.mark.parametrize(
        ("high", "low"),
        [(0.5, 0.5), (0.4, 0.5), (1.1, 0.5), (0.5, -0.1), (True, 0.5), ("1", 0), (None, None)],
    )
    def test_bad_thresholds(self, made, high, low) -> None:
        one = made()
        with pytest.raises(ErllamaError) as caught:
            one.set_thresholds(high, low)
        assert caught.value.reason == "bad_thresholds"
        assert one.status() == START


class TestFailingSamplers:
    @pytest.mark.parametrize("source", [lambda: 1 // 0, lambda: None, "bogus", ("module", "x")])
    def test_they_read_nothing_and_are_logged_once(self, made, caplog, source) -> None:
        one = made(enabled=True, pressure_source=source)
        with caplog.at_level(logging.WARNING, "erllama_py"):
            assert one.sample() == (0, 1)
            assert one.force_check() == ("skipped", "below_watermark")
            assert len(caplog.records) == 1
            one.set_pressure_source(source)
            one.sample()
            assert len(caplog.records) == 2
        assert (one.status()["last_used"], one.status()["last_total"]) == (0, 1)

    def test_the_thread_goes_on(self, made, evictions: Evictions, caplog) -> None:
        readings = itertools.chain([None, None], itertools.repeat(FULL))
        made(enabled=True, pressure_source=lambda: next(readings), **POLLING)
        assert evictions.came.wait(10)

    def test_an_eviction_that_fails_does_not_end_it(self, made, caplog) -> None:
        again = threading.Event()

        def fail(target: int, tiers: tuple[str, ...]) -> tuple[int, int]:
            if calls.append(target) is None and len(calls) > 1:
                again.set()
            raise OSError("no such tier")

        calls: list[int] = []
        one = PressureScheduler(fail, {"enabled": True, "pressure_source": lambda: FULL, **POLLING})
        try:
            assert again.wait(10)
        finally:
            one.enable(False)
        assert "no such tier" in caplog.text


def threads() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if one.name == "erllama-pressure"}


class TestPolling:
    def test_a_thread_runs_only_while_enabled(self, made, evictions: Evictions) -> None:
        before = threads()
        one = made(pressure_source=lambda: FULL, **POLLING)
        assert threads() == before
        assert one.enable(True) == "ok"
        assert len(threads() - before) == 1
        assert evictions.came.wait(10)
        assert one.enable(False) == "ok"
        wait_for(lambda: threads() <= before)
        assert not one.status()["enabled"]

    def test_enabling_again_restarts_the_timer_and_does_not_double_it(self, made) -> None:
        before = threads()
        one = made(interval_ms=10**9)
        for _ in range(5):
            one.enable(True)
        wait_for(lambda: len(threads() - before) == 1)
        assert one.status()["sampled_at"] is None

    def test_nothing_is_evicted_once_it_is_disabled(self, made, evictions: Evictions) -> None:
        """A check that waits for its sampler is over first."""
        before = threads()
        sampling, go_on = threading.Event(), threading.Event()

        def slow() -> tuple[int, int]:
            sampling.set()
            assert go_on.wait(10)
            return FULL

        one = made(enabled=True, pressure_source=slow, **POLLING)
        assert sampling.wait(10)
        assert one.status()["enabled"], "the status waits for no sampler"
        threading.Timer(0.05, go_on.set).start()
        one.enable(False)
        before_it = len(evictions.asked)
        assert before_it >= 1, "the check that was waiting is over, and others may be"
        wait_for(lambda: threads() <= before)
        assert len(evictions.asked) == before_it

    def test_a_sampler_may_disable(self, made, evictions: Evictions) -> None:
        def last() -> tuple[int, int]:
            one.enable(False)
            return FULL

        one = made(pressure_source=last)
        one.enable(True)
        assert one.force_check() == ("skipped", "disabled")
        assert evictions.asked == []

    @pytest.mark.parametrize("value", ["true", 1, None])
    def test_it_is_true_or_false(self, made, value) -> None:
        with pytest.raises(BadCall) as caught:
            made().enable(value)
        assert caught.value.reason == "function_clause"


WATERMARKS = ("watermarks", list(b"require 0.0 <= low < high <= 1.0"))
INTERVAL = ("interval_ms", list(b"must be a positive integer"))


class TestConfig:
    @pytest.mark.parametrize(
        "config",
        [{}, {"high_watermark": 1, "low_watermark": 0}, {"interval_ms": 1}, {"enabled": "perhaps"}],
    )
    def test_ok(self, config) -> None:
        assert validate_config(config) == "ok"

    @pytest.mark.parametrize(
        ("config", "why"),
        [
            ({"high_watermark": 0.75}, WATERMARKS),
            ({"low_watermark": 0.9}, WATERMARKS),
            ({"high_watermark": 1.01}, WATERMARKS),
            ({"low_watermark": "low", "interval_ms": 0}, WATERMARKS),
            ({"interval_ms": 0}, INTERVAL),
            ({"interval_ms": 5.0}, INTERVAL),
            ({"interval_ms": True}, INTERVAL),
        ],
    )
    def test_refused(self, config, why) -> None:
        with pytest.raises(ErllamaError) as caught:
            validate_config(config)
        assert caught.value.reason == ("invalid_config", why)
        with pytest.raises(ErllamaError, match=why[0]):
            PressureScheduler(Evictions(), config)

    def test_not_a_map(self) -> None:
        with pytest.raises(BadCall) as caught:
            validate_config([])
        assert caught.value.reason == ("badmap", [])

    @pytest.mark.parametrize(
        "config",
        [
            {"enabled": 1},
            {"min_evict_bytes": -1},
            {"min_evict_bytes": "1M"},
            {"evict_tiers": "ram"},
            {"evict_tiers": ["tape"]},
            {"evict_tiers": 5},
        ],
    )
    def test_a_scheduler_takes_nothing_it_could_not_work_with(self, config) -> None:
        with pytest.raises(ErllamaError, match=next(iter(config))):
            PressureScheduler(Evictions(), config)

    def test_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert environment_config() == {}
        config = {"enabled": True, "interval_ms": 10**9, "pressure_source": ["module", "meter"]}
        monkeypatch.setenv("ERLLAMA_SCHEDULER", json.dumps(config))
        fresh = Core()
        seen = fresh.pressure.status()
        fresh.pressure.enable(False)
        assert seen["enabled"]
        assert seen["pressure_source"] == ("module", "meter")
        assert seen["interval_ms"] == 10**9

    @pytest.mark.parametrize("text", ["system", "[]", "{"])
    def test_an_environment_that_is_no_map(self, monkeypatch, text: str) -> None:
        monkeypatch.setenv("ERLLAMA_SCHEDULER", text)
        with pytest.raises(ErllamaError, match="ERLLAMA_SCHEDULER"):
            _ = Core().pressure

    def test_from_the_file_unless_the_variable_is_set(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        file = tmp_path / "erllama" / "config.toml"
        file.parent.mkdir()
        file.write_text('[scheduler]\ninterval_ms = 7\nevict_tiers = "all"\n')
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        assert environment_config() == {"interval_ms": 7, "evict_tiers": "all"}
        monkeypatch.setenv("ERLLAMA_SCHEDULER", '{"enabled": false}')
        assert environment_config() == {"enabled": False}

        monkeypatch.delenv("ERLLAMA_SCHEDULER")
        file.write_text("[scheduler]\nhigh_watermark = 7\n")
        with pytest.raises(ErllamaError) as caught:
            environment_config()
        assert caught.value.reason[1][0] == "watermarks"
        assert all(part in caught.value.message for part in (str(file), "(7, 0.75)"))

    def test_what_the_environment_asks_for_is_checked_at_the_first_load(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ERLLAMA_SCHEDULER", '{"interval_ms": 0}')
        with pytest.raises(ErllamaError) as caught:
            Core().load("m", {"backend": "erllama_model_stub", "in_process": True})
        assert caught.value.reason == ("invalid_config", INTERVAL)


class TestTheCoresOwn:
    @pytest.fixture(autouse=True)
    def as_it_was(self) -> Iterator[None]:
        """There is one per process: leave it as a new one is."""
        yield
        scheduler.enable(False)
        scheduler.set_pressure_source("noop")
        scheduler.set_thresholds(0.85, 0.75)

    def test_it_is_always_the_same(self) -> None:
        assert core().pressure is core().pressure

    def test_rows_go_under_pressure_and_the_model_lives_on(self) -> None:
        prompt = list(range(100, 300))
        with stub_model("pressed") as model:
            api.prefill_only(model, prompt)
            wait_for(lambda: api.list_cached_prefixes(model, prompt) == 200)
            scheduler.set_pressure_source(lambda: (99, 100))
            scheduler.enable(True)

            def gone() -> bool:
                # What a request still holds when its reply is out stays until it is freed.
                answers.append(scheduler.force_check())
                return api.list_cached_prefixes(model, prompt) == 0

            answers: list[tuple[object, ...]] = []
            wait_for(gone)
            assert "evicted" in {answer[0] for answer in answers}
            assert scheduler.force_check() == ("skipped", "nothing_to_evict")
            assert scheduler.status()["last_evicted_bytes"] > 0
            assert api.prefill_only(model, prompt)["cache_hit_kind"] == "cold"

    def test_the_originals_names(self) -> None:
        assert pressure.available_sources() == ["noop", "system", "nvidia_smi"]
        used, total = pressure.sample("system")
        assert 0 < used < total
        assert scheduler.validate_config({}) == "ok"
        assert scheduler.set_pressure_source("system") == "ok"
        assert scheduler.sample()[1] == total
        assert scheduler.status()["pressure_source"] == "system"
