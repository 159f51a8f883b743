"""Prometheus metrics of this process: its models, their cache, and its node.

An extra: ``pip install 'erllama-py[metrics]'``.  ``erllama node --metrics 9464`` serves
them; in a script, beside a node or without one::

    from erllama_py import metrics

    with metrics.serve(port=9464):
        ...

Nothing is counted for them alone: at each scrape the collector reads what the core knows,
without asking a model process.  Series of a model end with it, and start from zero when
it is loaded again, as those of a program that is restarted do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from types import TracebackType
from typing import Final, Protocol, Self

from erllama_py import api
from erllama_py.errors import ErllamaError, ModelGone

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        InfoMetricFamily,
        Metric,
    )
    from prometheus_client.process_collector import ProcessCollector
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "metrics need prometheus-client: pip install 'erllama-py[metrics]'", name=error.name
    ) from error

__all__ = ("DEFAULT_PORT", "ErllamaCollector", "Node", "Server", "serve")

DEFAULT_PORT: Final = 9464

_PHASES: Final = ("idle", "prefilling", "generating")
_CACHE_COUNTS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "hits_exact": ("hits", {"kind": "exact"}),
    "hits_resume": ("hits", {"kind": "resume"}),
    "hits_longest_prefix": ("hits", {"kind": "longest_prefix"}),
    "misses": ("misses", {}),
    "saves_cold": ("saves", {"reason": "cold"}),
    "saves_continued": ("saves", {"reason": "continued"}),
    "saves_finish": ("saves", {"reason": "finish"}),
    "saves_evict": ("saves", {"reason": "evict"}),
    "saves_shutdown": ("saves", {"reason": "shutdown"}),
    "saves_dropped": ("saves_dropped", {}),
    "duplicate_dropped": ("duplicates_dropped", {}),
    "evictions": ("evictions", {}),
    "corrupt_files": ("corrupt_files", {}),
    "longest_prefix_probes": ("longest_prefix_probes", {}),
    "longest_prefix_ns": ("longest_prefix_seconds", {}),
    "pack_total_ns": ("pack_seconds", {}),
    "load_total_ns": ("load_seconds", {}),
}
"""Counters of ``erllama:counters/0``, as metrics; the other three are gauges, by tier."""

_CACHE_HELP: Final = {
    "hits": "Lookups that found something.",
    "misses": "Lookups that found nothing.",
    "saves": "Rows that were saved.",
    "saves_dropped": "Rows that were not saved for want of room or of a writer.",
    "duplicates_dropped": "Rows that were there already.",
    "evictions": "Rows that were evicted.",
    "corrupt_files": "Files that failed their checks.",
    "longest_prefix_probes": "Searches for a longest prefix.",
    "longest_prefix_seconds": "Time of these searches.",
    "pack_seconds": "Time of packing what is stored.",
    "load_seconds": "Time of loading what was stored.",
}
_TIER_GAUGES: Final = {"bytes_ram": "ram", "bytes_ramfile": "ram_file", "bytes_disk": "disk"}


class Node(Protocol):
    """What is asked of a node: :class:`erl_bridge.service.ErllamaNode` has it."""

    @property
    def name(self) -> str:
        """The full name."""

    def stats(self) -> dict[str, int]:
        """Return ``peers``, ``connections`` and ``streams``."""


class ErllamaCollector(Collector):
    """Reads the core at each scrape; for a registry of your own."""

    def __init__(self, node: Node | None = None) -> None:
        self._node = node

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what there is depends on what is loaded."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield everything as it is now."""
        yield InfoMetricFamily("erllama", "The version.", {"version": version("erllama-py")})
        yield from _models()
        yield from _memory()
        yield from _cache()
        if self._node is not None:
            yield from _node(self._node)


def _models() -> Iterator[Metric]:
    info = InfoMetricFamily("erllama_model", "What a model is.", labels=["model"])
    up = _gauge("model_up", "1 while the model's process serves, 0 while it is restarted.")
    phase = _gauge("model_phase", "1 for what the model is doing.", ["phase"])
    queue = _gauge("queue_length", "Requests queued behind the running ones.")
    streams = _gauge("streams", "Admitted streaming requests.")
    starts = _count("model_starts", "How often the model's process has come up.")
    requests = _count("requests", "Requests that are over.", ["end"])
    hits = _count("admissions", "Requests admitted, by what the cache had for them.", ["hit"])
    sums = {
        "prompt_tokens": _count("prompt_tokens", "Tokens of admitted prompts."),
        "restored_tokens": _count("restored_tokens", "Tokens of prompts found in the cache."),
        "prefilled_tokens": _count("prefilled_tokens", "Tokens of prompts that were computed."),
        "generated_tokens": _count("generated_tokens", "Tokens generated."),
        "restores": _count("restores", "Requests that had something restored."),
        "restore_s": _count("restore_seconds", "Time of restoring."),
        "prefill_s": _count("prefill_seconds", "Time of computing prompts."),
        "generation_s": _count("generation_seconds", "Time of generating."),
    }
    for model_id in _ids():
        try:
            told, totals = api.model_info(model_id), api.model_totals(model_id)
        except ModelGone:
            continue  # it is being loaded, or has just ended
        told_phase = told["phase"]
        words = {name: str(told[name]) for name in ("backend", "quant_type", "tier")}
        info.add_metric([model_id], {**words, "fingerprint": told["fingerprint"].hex()})
        up.add_metric([model_id], float(told["pid"] is not None))
        for name in _PHASES:
            phase.add_metric([model_id, name], float(told_phase == name))
        queue.add_metric([model_id], told["pending_len"])
        streams.add_metric([model_id], api.queue_depth(model_id))
        starts.add_metric([model_id], totals["starts"])
        for end, number in totals["requests"].items():
            requests.add_metric([model_id, end], number)
        for kind, number in totals["hits"].items():
            hits.add_metric([model_id, kind], number)
        computed = totals["prompt_tokens"] - totals["restored_tokens"]
        for name, family in sums.items():
            family.add_metric([model_id], {**totals, "prefilled_tokens": computed}[name])
    yield from (info, up, phase, queue, streams, starts, requests, hits, *sums.values())


def _gauge(name: str, text: str, labels: Sequence[str] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"erllama_{name}", text, labels=["model", *labels])


def _count(name: str, text: str, labels: Sequence[str] = ()) -> CounterMetricFamily:
    return CounterMetricFamily(f"erllama_{name}", text, labels=["model", *labels])


def _ids() -> list[str]:
    """Return the ids of all models, those being restarted, too."""
    try:
        return list(api.model_memory()["models"])
    except ErllamaError:  # a limit that cannot be, which the next load says
        return [info["id"] for info in api.list_models()]


def _memory() -> Iterator[Metric]:
    try:
        memory = api.model_memory()
    except ErllamaError:
        return
    taken = GaugeMetricFamily(
        "erllama_model_memory_bytes", "What a model takes of memory.", labels=["model", "part"]
    )
    for model_id, parts in memory["models"].items():
        for part, size in parts.items():
            taken.add_metric([model_id, part], size)
    yield taken
    if memory["limit"] is not None:
        yield GaugeMetricFamily(
            "erllama_model_memory_limit_bytes", "model_memory_bytes.", memory["limit"]
        )


def _cache() -> Iterator[Metric]:
    counters = api.counters()
    families: dict[str, CounterMetricFamily] = {}
    for counter, (name, labels) in _CACHE_COUNTS.items():
        family = families.get(name)
        if family is None:
            family = families[name] = CounterMetricFamily(
                f"erllama_cache_{name}", _CACHE_HELP[name], labels=list(labels)
            )
        value = counters[counter]
        family.add_metric(
            list(labels.values()), value / 1e9 if name.endswith("_seconds") else value
        )
    yield from families.values()
    held = GaugeMetricFamily("erllama_cache_bytes", "What is stored.", labels=["tier"])
    for counter, tier in _TIER_GAUGES.items():
        held.add_metric([tier], counters[counter])
    yield held
    snapshot = api.cache_snapshot(limit=0)
    by = ("tier", "server")
    used = GaugeMetricFamily("erllama_cache_tier_bytes", "What a tier holds.", labels=by)
    quota = GaugeMetricFamily("erllama_cache_tier_quota_bytes", "What it may.", labels=by)
    for tier in snapshot["tiers"]:
        names = [str(tier["name"]), str(tier.get("server", ""))]
        used.add_metric(names, tier["bytes"])
        quota.add_metric(names, tier["quota"])
    yield used
    yield quota
    yield GaugeMetricFamily("erllama_cache_rows", "Rows.", snapshot["row_count"])
    yield GaugeMetricFamily(
        "erllama_cache_saving_queue", "What waits to be written to files.",
        snapshot["saving"]["queued"],
    )  # fmt: skip


def _node(node: Node) -> Iterator[Metric]:
    stats = node.stats()
    yield InfoMetricFamily("erllama_node", "The node.", {"node": node.name})
    yield GaugeMetricFamily("erllama_node_peers", "Connected nodes.", stats["peers"])
    yield CounterMetricFamily(
        "erllama_node_connections", "Connections that came up.", stats["connections"]
    )
    yield GaugeMetricFamily("erllama_node_streams", "Streams of peers.", stats["streams"])


class Server:
    """An HTTP server of metrics; use it as a context manager, or :meth:`close` it.

    :param port: 0 for a free one.
    :raises OSError: the address cannot be listened on.
    """

    def __init__(self, host: str, port: int, node: Node | None) -> None:
        registry = CollectorRegistry()
        registry.register(ErllamaCollector(node))
        ProcessCollector(registry=registry)
        self._server, self._thread = start_http_server(port, host, registry)
        self.host = host
        self.port = int(self._server.server_port)

    @property
    def url(self) -> str:
        """Where to scrape."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop serving.  Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def serve(host: str = "127.0.0.1", port: int = DEFAULT_PORT, node: Node | None = None) -> Server:
    """Serve metrics over HTTP, on threads of their own.

    Whoever can reach the port reads them, and learns ids of models and how busy they are:
    it listens on loopback unless told otherwise.

    :param node: a node whose peers to count.
    :raises OSError: the address cannot be listened on.
    """
    return Server(host, port, node)
