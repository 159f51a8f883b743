"""``erllama bench``: how quick a model is here, cold and from each tier.

The cache's disk tier is a folder made for the run, beside the real one: nothing of the
user's is found, and nothing of ours is left.
"""

from __future__ import annotations

import atexit
import os
import shutil
import time
from pathlib import Path
from typing import Any

import click

from erllama_py.cli.loading import load_config, model_option
from erllama_py.cli.output import columns, emit, json_option
from erllama_py.cli.progress import Progress

__all__ = ("bench",)

_BUDGET_S = 40.0
"""After which no further round is begun."""

_SETTLE_S = 2.0

_TEXT = "On the {}th day the wind came from the north, and {} ships went by before midnight. "


@click.command()
@model_option
@click.option("--prompt", "prompt_tokens", default=512, show_default=True, help="Tokens of prompt.")
@click.option("--reply", "reply_tokens", default=64, show_default=True, help="Tokens of reply.")
@click.option("--rounds", default=3, show_default=True, help="Repetitions; medians are shown.")
@json_option
def bench(model: str, prompt_tokens: int, reply_tokens: int, rounds: int, as_json: bool) -> None:
    """Measure prefill, decode and exact hits by tier.

    It takes less than a minute, and leaves nothing in your cache.
    """
    if min(prompt_tokens, reply_tokens, rounds) < 1:
        raise click.UsageError("--prompt, --reply and --rounds are at least 1")
    _own_disk_tier()
    found = _measure(model, prompt_tokens, reply_tokens, rounds)
    if as_json:
        emit(found)
        return
    click.echo(f"{model}: {prompt_tokens} tokens of prompt, {reply_tokens} of reply")
    rows = [
        ("load", f"{found['load_s']:.2f} s"),
        ("cold prefill", f"{found['prefill_tokens_per_s']:.0f} tokens/s"),
        ("cold first token", f"{found['cold_first_token_ms']:.1f} ms"),
        ("decode", f"{found['decode_tokens_per_s']:.0f} tokens/s"),
    ]
    for kind, hit in found["exact"].items():
        restore = "" if hit["restore_ms"] is None else f", restore {hit['restore_ms']:.1f} ms"
        rows.append((f"exact from {kind}", f"{hit['first_token_ms']:.1f} ms{restore}"))
    for line in columns(rows):
        click.echo(f"  {line}")


def _own_disk_tier() -> None:
    """Have the cache make its disk tier in a folder of this run, on the same file system."""
    import tempfile

    from erllama_py._machine.environment import Environment

    settings = Environment().cache()
    if settings.disk == 0:
        return
    place = settings.disk_dir.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        own = tempfile.mkdtemp(prefix="bench-", dir=place)
    except OSError:
        own = tempfile.mkdtemp(prefix="erllama-bench-")
    os.environ["ERLLAMA_CACHE_DIR"] = own
    # Before the cache is opened: what is registered first runs last, when that is closed.
    atexit.register(shutil.rmtree, Path(own), ignore_errors=True)


def _measure(model: str, prompt_tokens: int, reply_tokens: int, rounds: int) -> dict[str, Any]:
    from erllama_py import api

    began = time.perf_counter()
    with Progress(lambda: f"loading {model}"):
        one = api.load_model(load_config(model))
    load_s = time.perf_counter() - began
    cold: list[dict[str, Any]] = []
    exact: dict[str, list[dict[str, Any]]] = {}
    with one, Progress(lambda: f"measuring {model}, round {len(cold) + 1} of {rounds}"):
        on_disk = any(tier["name"] == "disk" for tier in api.cache_snapshot(0)["tiers"])
        while len(cold) < rounds and (not cold or time.perf_counter() - began < _BUDGET_S):
            prompt = _prompt(one, prompt_tokens)
            cold.append(_run(one, prompt, reply_tokens))
            _keep(exact, _run(one, prompt, 1))
            if on_disk and api.flush(10.0) and _out_of_memory():
                _keep(exact, _run(one, prompt, 1))
    return {
        "model": model,
        "prompt_tokens": prompt_tokens,
        "reply_tokens": reply_tokens,
        "rounds": len(cold),
        "load_s": round(load_s, 3),
        "prefill_tokens_per_s": _median(prompt_tokens / run["prefill_s"] for run in cold),
        "cold_first_token_ms": _median(run["first_token_ms"] for run in cold),
        "decode_tokens_per_s": _median(run["decode_rate"] for run in cold),
        "exact": {
            kind: {
                "first_token_ms": _median(run["first_token_ms"] for run in runs),
                "restore_ms": _median(run["restore_ms"] for run in runs),
            }
            for kind, runs in exact.items()
        },
    }


def _out_of_memory() -> bool:
    """Evict from memory what is on disk; a request that has just replied holds it a moment."""
    from erllama_py import api
    from erllama_py.otp import cache

    ends = time.monotonic() + _SETTLE_S
    while time.monotonic() < ends:
        cache.evict_bytes(1 << 62, ["ram"])
        rows = api.cache_snapshot(1)["rows"]
        if rows and rows[0]["tier"] == "disk":
            return True
        time.sleep(0.01)
    return False


def _prompt(model: str, length: int) -> list[int]:
    """Return so many tokens that begin as no prompt did before."""
    import secrets

    from erllama_py import api

    days = range(1, 2 + length // 8)
    text = secrets.token_hex(8) + ". " + "".join(_TEXT.format(day, day % 7) for day in days)
    return api.tokenize(model, text)[:length]


def _run(model: str, prompt: list[int], reply_tokens: int) -> dict[str, Any]:
    """Answer once; return what it took."""
    from erllama_py import api

    began = time.perf_counter()
    arrivals = []
    stats: dict[str, Any] = {}
    with api.infer(model, prompt, {"response_tokens": reply_tokens}) as events:
        for event in events:
            if event.token_id is not None:
                arrivals.append(time.perf_counter())
            stats = event.stats or stats
        if events.error:
            raise events.error
        told = api.explain(model, events)
    first = (arrivals[0] if arrivals else time.perf_counter()) - began
    decode = arrivals[-1] - arrivals[0] if len(arrivals) > 1 else 0.0
    return {
        "kind": stats["cache_hit_kind"],
        "tier": stats.get("tier"),
        "first_token_ms": first * 1000,
        "prefill_s": stats["prefill_ms"] / 1000 or first,
        "decode_rate": (len(arrivals) - 1) / decode if decode else None,
        "restore_ms": told["restore_ms"],
    }


def _keep(exact: dict[str, list[dict[str, Any]]], run: dict[str, Any]) -> None:
    if run["kind"] == "exact":
        exact.setdefault(str(run["tier"]), []).append(run)


def _median(values: Any) -> float | None:
    import statistics

    known = [value for value in values if value is not None]
    return round(statistics.median(known), 2) if known else None
