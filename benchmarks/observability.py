"""What it costs to look at a model while it decodes.

Phase, queue lengths, the latest cache hit, what models there are, the counters and the
scheduler's readings come from what the core knows already: no call crosses to the model
process.  Each is asked again and again, in turns,
from this process, where the reply's tokens arrive at the same time:

    python -m benchmarks.observability [--model smollm2] [--calls 5000]

Target: each has a median below 20 microseconds.  The slowest calls are those during which
the interpreter went to another thread; the 99th percentile says how slow.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks._common import arguments, load, machine
from erllama_py import api
from erllama_py._machine.catalogue import resolve_model
from erllama_py.errors import ErllamaError
from erllama_py.otp import cache, cache_counters, inflight, model_sup, registry, scheduler
from erllama_py.otp import model as model_functions
from erllama_py.types import Ref

N_CTX = 4096
PROMPT = 32
REPLY = N_CTX - PROMPT
TURN = 50
"""Calls of one function before the next one's: the caller's caches are warm, as in a loop."""
PAUSE_S = 0.005
TARGET_US = 20.0


def looks(model: str, ref: Callable[[], Ref]) -> Mapping[str, Callable[[], Any]]:
    """Return what is asked, by its name in Erlang.

    :param ref: returns that of the stream which is running.
    """
    pid = registry.whereis_name(model)
    return {
        "erllama:phase/1": lambda: api.phase(model),
        "erllama:pending_len/1": lambda: api.pending_len(model),
        "erllama:queue_depth/0": api.queue_depth,
        "erllama:queue_depth/1": lambda: api.queue_depth(model),
        "erllama:last_cache_hit/1": lambda: api.last_cache_hit(model),
        "erllama:counters/0": api.counters,
        "erllama:models/0": api.models,
        "erllama:status/1": lambda: api.status(model),
        "erllama:model_info/1": lambda: api.model_info(model),
        "erllama:list_models/0": api.list_models,
        "erllama_cache:get_counters/0": cache.get_counters,
        "erllama_cache_counters:snapshot/0": cache_counters.snapshot,
        "erllama_cache_counters:get/1": lambda: cache_counters.get(1),
        "erllama_inflight:queue_depth/0": inflight.queue_depth,
        "erllama_inflight:queue_depth/1": lambda: inflight.queue_depth(pid),
        "erllama_inflight:lookup/1": lambda: _looked_up(ref()),
        "erllama_inflight:all/0": inflight.all,
        "erllama_inflight:obs_get/1": lambda: inflight.obs_get(model),
        "erllama_registry:whereis_name/1": lambda: registry.whereis_name(model),
        "erllama_registry:all/0": registry.all,
        "erllama_model:cache_key_meta/1": lambda: model_functions.cache_key_meta(model),
        "erllama_model_sup:models/0": model_sup.models,
        "erllama_scheduler:status/0": scheduler.status,
        "model_totals, as metrics ask": lambda: api.model_totals(model),
    }


def _looked_up(ref: Ref) -> None:
    """Look a stream up that may have ended since."""
    with contextlib.suppress(ErllamaError):
        inflight.lookup(ref)


def ask(look: Callable[[], Any], calls: int) -> list[int]:
    """Return the nanoseconds of each of so many calls."""
    times = []
    for _ in range(calls):
        began = time.perf_counter_ns()
        look()
        times.append(time.perf_counter_ns() - began)
    return times


def main() -> None:
    """Ask while a reply is generated; print a line for each function."""
    parser = arguments(__doc__)
    parser.add_argument("--calls", type=int, default=5000, help="of each function")
    options = parser.parse_args()
    model = load(resolve_model(options.model), N_CTX)
    asked = looks(model, lambda: stream)
    times: dict[str, list[int]] = {name: [] for name in asked}
    decoded = 0

    def count(event: Any) -> None:
        nonlocal decoded
        decoded += event.kind == "token_id"

    def start() -> Any:
        # A text that goes on for long: nothing here depends on what it says.
        tokens = api.tokenize(model, "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19")
        return api.infer(model, tokens, {"response_tokens": REPLY}, count)

    stream = start()
    began = time.perf_counter()
    for _ in range(0, options.calls, TURN):
        for name, look in asked.items():
            while api.phase(model) != "generating":
                if api.phase(model) == "idle":
                    stream = start()
                time.sleep(PAUSE_S)
            times[name] += ask(look, TURN)
        time.sleep(PAUSE_S)  # others run, too
    took = time.perf_counter() - began
    api.cancel(stream)
    print(f"{machine()}; {decoded / took:.1f} tokens per second meanwhile")
    slow = []
    for name, values in times.items():
        median = statistics.median(values) / 1000
        late = statistics.quantiles(values, n=100)[98] / 1000
        slow += [name] if median >= TARGET_US else []
        print(f"{name:34} median {median:6.2f} us, p99 {late:7.2f} us")
    verdict = f"missed by {', '.join(slow)}" if slow else "met by all"
    print(f"target: median below {TARGET_US:.0f} us, {verdict}")
    model.unload()


if __name__ == "__main__":
    main()
