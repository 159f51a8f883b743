"""Many requests on small quotas: what the core and the model process weigh meanwhile.

Run as a program, in a process that holds nothing else: ``python -m tests.steady JSON``
takes the fields of a :class:`Load` and prints what :func:`run` returns.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil

from erllama_py._cache.store import Cache
from tests.owncore import OwnCore, own_core


class Load(NamedTuple):
    """What is asked for; sizes in bytes."""

    config: dict[str, Any]
    ram: int
    segment: int
    disk: int
    directory: str
    requests: int = 1000
    settled: int = 300
    """Requests after which memory should have its size."""
    every: int = 20
    """Requests from one sample to the next."""
    vocabulary: int = 300
    length: int = 300
    """Most tokens of a prompt."""
    reply: int = 3


def run(load: Load) -> dict[str, Any]:
    """Return samples of resident bytes, and the highest of each gauge."""
    cache = Cache(load.ram, segment_bytes=load.segment)
    home = cache.add_tier("disk", "disk", Path(load.directory), load.disk)
    chance = random.Random(8)
    earlier: list[list[int]] = []
    weights: dict[str, list[int]] = {"core": [], "model": []}
    highest = {"bytes_ram": 0, "bytes_disk": 0, "files": 0}
    with own_core(cache, home, **load.config) as core:
        processes = {"core": psutil.Process(), "model": psutil.Process(_pid(core))}
        for number in range(load.requests):
            prompt = _next_prompt(chance, earlier, load)
            core.request(prompt, load.reply, trace=number % 50 == 0)
            counters = cache.counters.snapshot()
            files = sum(file.stat().st_size for file in Path(load.directory).glob("*.blk"))
            for gauge, value in (*counters.items(), ("files", files)):
                if gauge in highest:
                    highest[gauge] = max(highest[gauge], value)
            if number >= load.settled and number % load.every == 0:
                for name, process in processes.items():
                    weights[name].append(process.memory_info().rss)
        flushed = cache.flush(60)
        counters = cache.counters.snapshot()
    return {
        "growth": {name: _growth(samples) for name, samples in weights.items()},
        "weights": weights,
        "highest": highest,
        "counters": counters,
        "flushed": flushed,
    }


def _pid(core: OwnCore) -> int:
    pid = core.host.os_pid
    assert pid is not None
    return pid


def _next_prompt(chance: random.Random, earlier: list[list[int]], load: Load) -> list[int]:
    """Make a prompt: a repeat, a branch or a new one, of those of late."""
    fresh = [chance.randrange(3, load.vocabulary) for _ in range(chance.randrange(20, load.length))]
    which: list[Callable[[list[int]], list[int]]] = [
        lambda old: old,
        lambda old: (old[: chance.randrange(len(old))] + fresh)[: load.length],
        lambda _: fresh,
    ]
    prompt = chance.choice(which)(chance.choice(earlier)) if earlier else fresh
    earlier.append(prompt)
    del earlier[:-20]
    return prompt


def _growth(samples: list[int]) -> float:
    """Return how much more the last fifth weighs than the first."""
    part = len(samples) // 5
    return median(samples[-part:]) / median(samples[:part]) - 1


if __name__ == "__main__":
    print(json.dumps(run(Load(**json.loads(sys.argv[1])))))  # noqa: T201 - a program's answer
