"""Metrics, scraped over HTTP and read with the library's own parser."""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from erllama_py import api, metrics
from erllama_py._cache.counters import NAMES
from erllama_py._engine.registry import core
from erllama_py.cli import main
from erllama_py.testing import record, stub_model
from tests.models import smollm2_path
from tests.waiting import wait_for

MIB = 1 << 20
SLOW = {"step_delay_ms": 5}
TYPES = {"gauge", "counter"}


class Scrape:
    """What one scrape said."""

    def __init__(self, url: str) -> None:
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            text = answer.read().decode()
        self.families = {one.name: one for one in text_string_to_metric_families(text)}
        self.samples = [sample for one in self.families.values() for sample in one.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The one sample of this name that has at least these labels."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert len(found) == 1, (name, labels, found)
        return found[0]

    def has(self, name: str, **labels: str) -> bool:
        return any(
            sample.name == name and labels.items() <= sample.labels.items()
            for sample in self.samples
        )


@pytest.fixture(scope="module")
def server() -> Iterator[metrics.Server]:
    with metrics.serve(port=0) as serving:
        yield serving


@pytest.fixture
def scrape(server: metrics.Server):
    return lambda: Scrape(server.url)


def test_what_a_model_does(scrape) -> None:
    with stub_model("m", stub_opts=SLOW, fingerprint=b"m" * 32) as model:
        before = scrape()
        assert before("erllama_model_up", model="m") == 1
        assert before("erllama_model_info", model="m", backend="erllama_model_stub") == 1
        assert before("erllama_model_phase", model="m", phase="idle") == 1
        assert before("erllama_generated_tokens_total", model="m") == 0

        stream = api.infer(model, range(100, 200), {"response_tokens": 1000})
        queued = api.infer(model, [2], {"response_tokens": 1})
        assert next(stream).kind == "token"
        # The reader tells of a token, and of the phase, in two frames.
        wait_for(lambda: api.phase(model) == "generating" and api.pending_len(model) == 1)
        wait_for(lambda: api.model_totals(model)["generated_tokens"] > 0)
        during = scrape()
        assert during("erllama_model_phase", model="m", phase="generating") == 1
        assert during("erllama_model_phase", model="m", phase="idle") == 0
        assert during("erllama_queue_length", model="m") == 1
        assert during("erllama_streams", model="m") == 1
        assert during("erllama_generated_tokens_total", model="m") >= 1
        assert during("erllama_prompt_tokens_total", model="m") == 100
        assert not during.has("erllama_requests_total", model="m")

        api.cancel(stream.ref)
        generated = sum(event.kind == "token_id" for event in record(stream))
        generated += sum(event.kind == "token_id" for event in record(queued))
        wait_for(lambda: not core().host("m").requests)
        after = scrape()
        assert after("erllama_requests_total", model="m", end="cancelled") == 1
        assert after("erllama_requests_total", model="m", end="length") == 1
        assert after("erllama_admissions_total", model="m", hit="cold") == 2
        assert after("erllama_generated_tokens_total", model="m") == generated
        assert after("erllama_prefilled_tokens_total", model="m") == 101
        assert after("erllama_streams", model="m") == 0
    assert not scrape().has("erllama_model_up", model="m")


def test_what_was_found_is_not_computed(scrape) -> None:
    with stub_model("m", fingerprint=b"r" * 32) as model:
        tokens = list(range(100, 300))
        api.prefill_only(model, tokens)
        wait_for(lambda: api.list_cached_prefixes(model, tokens) == 200)
        before = scrape()
        api.prefill_only(model, [*tokens, 7, 8])
        wait_for(lambda: not core().host("m").requests)
        after = scrape()
        grown = lambda name, **labels: (  # noqa: E731
            after(name, **labels) - (before(name, **labels) if before.has(name, **labels) else 0)
        )
        assert grown("erllama_prompt_tokens_total", model="m") == 202
        assert grown("erllama_restored_tokens_total", model="m") == 200
        assert grown("erllama_prefilled_tokens_total", model="m") == 2
        assert grown("erllama_admissions_total", model="m", hit="partial") == 1
        assert grown("erllama_restores_total", model="m") == 1
        assert after("erllama_restore_seconds_total", model="m") > 0


def test_all_twenty_counters_are_there(scrape) -> None:
    covered = set(metrics._CACHE_COUNTS) | set(metrics._TIER_GAUGES)
    assert covered == set(NAMES)
    with stub_model(fingerprint=b"c" * 32) as model:
        api.prefill_only(model, range(100, 300))
        wait_for(lambda: not core().host(model).requests)
        counters, seen = api.counters(), scrape()
        for counter, (name, labels) in metrics._CACHE_COUNTS.items():
            value = counters[counter] / (1e9 if counter.endswith("_ns") else 1)
            assert seen(f"erllama_cache_{name}_total", **labels) == pytest.approx(value)
        # What is granted to the model to capture into is topped up beside us.
        wait_for(
            lambda: 0 < scrape()("erllama_cache_bytes", tier="ram") == api.counters()["bytes_ram"]
        )
        tier = api.cache_snapshot(0)["tiers"][0]
        assert seen("erllama_cache_tier_quota_bytes", tier="ram") == tier["quota"]
        assert seen("erllama_cache_rows") == api.cache_snapshot(0)["row_count"]


def test_memory_and_its_limit(scrape, monkeypatch: pytest.MonkeyPatch) -> None:
    with stub_model("m", stub_opts={"weights_bytes": 7 * MIB}):
        seen = scrape()
        assert seen("erllama_model_memory_bytes", model="m", part="weights") == 7 * MIB
        assert not seen.has("erllama_model_memory_limit_bytes")
        monkeypatch.setenv("ERLLAMA_MODEL_MEMORY_BYTES", "8M")
        assert scrape()("erllama_model_memory_limit_bytes") == 8 * MIB
        monkeypatch.setenv("ERLLAMA_MODEL_MEMORY_BYTES", "some")
        assert scrape()("erllama_model_up", model="m") == 1


def test_a_crash_is_a_start_more(scrape) -> None:
    opts = {"crash_at_step": 2, "step_delay_ms": 1}
    with stub_model("m", in_process=False, stub_opts=opts) as model:
        stream = api.infer(model, [1], {"response_tokens": 100})
        assert record(stream)[-1].kind == "error"
        wait_for(lambda: api.model_totals(model)["starts"] == 2)
        seen = scrape()
        assert seen("erllama_model_starts_total", model="m") == 2
        assert seen("erllama_requests_total", model="m", end="error") == 1


def test_names_follow_the_conventions(scrape) -> None:
    with stub_model("m") as model:
        api.complete(model, "x", {"response_tokens": 1})
        ours = {n: f for n, f in scrape().families.items() if not n.startswith("process_")}
    assert len(ours) > 30
    for name, family in ours.items():
        assert name.startswith("erllama")
        assert family.documentation.endswith(".")
        assert family.type in TYPES
        for unit in ("_ms", "_ns", "_us", "_kb", "_mb"):
            assert not name.endswith(unit)


def test_sums_never_fall_while_requests_end() -> None:
    """Read again and again beside requests that come and go."""
    with stub_model("m") as model:
        fell: list[str] = []
        ends = threading.Event()

        def read() -> None:
            last: dict[str, float] = {}
            while not ends.is_set():
                now = api.model_totals(model)
                sums = {name: value for name, value in now.items() if not isinstance(value, dict)}
                fell.extend(name for name, value in sums.items() if value < last.get(name, 0))
                last = sums

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(100):
            api.complete(model, f"a b {number}", {"response_tokens": 3})
        ends.set()
        reader.join()
        assert fell == []
        wait_for(lambda: not core().host("m").requests)
        totals = api.model_totals(model)
        assert totals["requests"] == {"length": 100}
        assert totals["generated_tokens"] == 300
        assert totals["prompt_tokens"] == 300


@pytest.mark.model
def test_live_with_a_real_model(scrape) -> None:
    context = {"n_threads": 1, "n_threads_batch": 2, "n_ctx": 512}
    with ExitStack() as stack:
        config = {"model_path": smollm2_path(), "context_opts": context}
        model = stack.enter_context(api.load_model("real", config))
        stream = stack.enter_context(
            api.infer(model, model.tokenize("One two three"), {"response_tokens": 200})
        )
        assert next(stream).kind == "token"
        first = scrape()("erllama_generated_tokens_total", model="real")
        assert first >= 1
        wait_for(lambda: scrape()("erllama_generated_tokens_total", model="real") > first)
        weights = scrape()("erllama_model_memory_bytes", model="real", part="weights")
        assert 90 * MIB < weights < 100 * MIB


class TestServing:
    def test_a_port_that_is_taken(self, server: metrics.Server) -> None:
        with pytest.raises(OSError, match="in use"):
            metrics.serve(port=server.port)

    def test_it_ends(self) -> None:
        before = {thread.name for thread in threading.enumerate()}
        serving = metrics.serve(port=0)
        url = serving.url
        serving.close()
        assert {thread.name for thread in threading.enumerate()} <= before
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(url, timeout=10)

    def test_without_the_library_the_mend_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "prometheus_client.py").write_text(
            "raise ModuleNotFoundError('No module named prometheus_client',"
            " name='prometheus_client')"
        )
        code = (
            f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from erllama_py.cli import main;"
            "main(['node', '--name', 'x_metrics_none', '--cookie', 'c', '--metrics', '0'])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 1
        assert "pip install 'erllama-py[metrics]'" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("where", ["nine", "127.0.0.1", "host:", "1:99999"])
    def test_an_address_that_cannot_be(self, where: str) -> None:
        done = CliRunner().invoke(main, ["node", "--name", "x", "--metrics", where])
        assert done.exit_code == 2
        assert "give PORT or HOST:PORT" in done.output
