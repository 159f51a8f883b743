"""Time to the first token of an exact repeat, by where its KV comes from.

========  ==========================================================================
source    how
========  ==========================================================================
live      right behind the first answer, without a pause
ram       shared memory
tmpfs     files on tmpfs, with too little memory for the prompts
disk      files in a temporary directory, with too little memory for the prompts
restart   those files, asked by a new Python process
========  ==========================================================================

Every source has processes of its own.  In each, new prompts are answered cold, then once
more in the same order, and the medians divided; a decode step of the same model in the
same process stands beside.  A new process answers one short prompt before it is timed.
The operating system's page cache is not dropped: "disk" is a file that was just written.

    python -m benchmarks.hits [--model smollm2] [--tokens 512 1024 2048] [--prompts 3]
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks._common import (
    Answer,
    ChildFailed,
    arguments,
    ask,
    child,
    flush,
    given,
    load,
    machine,
    new_tokens,
    settle,
)

SOURCES = ("live", "ram", "tmpfs", "disk", "restart")
LITTLE = "96M"
"""Memory for one long prompt, not for all: the repeats come in the order of the first
answers, and each finds that the ones after it have taken its place."""
PLENTY = "4G"


class Timed(NamedTuple):
    """One repeat."""

    tokens: int
    cold_s: float
    hit_s: float
    step_s: float
    kind: str
    tier: str


def measure(
    source: str,
    model: str,
    lengths: Sequence[int],
    prompts: int,
    context: dict[str, Any] | None = None,
) -> list[Timed]:
    """Time repeats of ``prompts`` new prompts of each length from one source.

    :param context: further ``context_opts``.
    :raises ChildFailed: the source is not there.
    """
    shm = "/dev/shm" if source == "tmpfs" else None
    with tempfile.TemporaryDirectory(prefix="erllama-bench-", dir=shm) as folder:
        each = [length for length in lengths for _ in range(prompts)]
        what = {
            "model": model,
            "lengths": each,
            "tier": {"tmpfs": "ram_file", "disk": "disk", "restart": "disk"}.get(source, "ram"),
            "live": source == "live",
            "ask": source != "restart",
            "context": context or {},
        }
        env = {
            "tmpfs": {
                "ERLLAMA_CACHE_RAM": LITTLE,
                "ERLLAMA_CACHE_RAM_FILE": PLENTY,
                "ERLLAMA_CACHE_RAM_FILE_DIR": folder,
            },
            "disk": {
                "ERLLAMA_CACHE_RAM": LITTLE,
                "ERLLAMA_CACHE_DISK": PLENTY,
                "ERLLAMA_CACHE_DIR": folder,
            },
            "restart": {"ERLLAMA_CACHE_DISK": PLENTY, "ERLLAMA_CACHE_DIR": folder},
        }.get(source, {})
        first = child("benchmarks.hits", what, env)
        if source == "restart":
            second = child("benchmarks.hits", what | {"first": False, "ask": True}, env)
            first["hits"] = second["hits"]
    return [
        Timed(length, cold, *hit)
        for length, cold, hit in zip(each, first["cold"], first["hits"], strict=True)
    ]


def measured(what: dict[str, Any]) -> dict[str, Any]:
    """Do one process's part: first answers, repeats, or both."""
    chance = random.Random(1)
    prompts = [new_tokens(chance, length) for length in what["lengths"]]
    n_ctx = max(what["lengths"]) + 256
    model = load(what["model"], n_ctx, tier=what["tier"], context_opts=what["context"])
    cold: list[float] = []
    hits: list[tuple[float, float, str, str]] = []

    def repeat(prompt: list[int]) -> None:
        answer = ask(model, prompt)
        hits.append((answer.first_s, answer.step_s, answer.kind, tier_of(answer)))

    if what.get("first", True):
        for prompt in prompts:
            answer = ask(model, prompt)
            if answer.kind != "cold":
                raise SystemExit(f"a new prompt was answered {answer.kind}")
            cold.append(answer.first_s)
            if what["live"]:
                repeat(prompt)
            settle()
            if what["tier"] != "ram":
                flush()
    if what["ask"] and not what["live"]:
        for prompt in prompts:
            repeat(prompt)
            settle()
    model.unload()
    return {"cold": cold, "hits": hits}


def tier_of(answer: Answer) -> str:
    """Return the tier that a reply's statistics name, or a dash."""
    return str(answer.stats.get("tier") or "-")


def table(source: str, repeats: Sequence[Timed]) -> None:
    """Print a line for each length."""
    for tokens in sorted({repeat.tokens for repeat in repeats}):
        these = [repeat for repeat in repeats if repeat.tokens == tokens]
        cold, hit, step = (
            statistics.median(times)
            for times in zip(*((t.cold_s, t.hit_s, t.step_s) for t in these), strict=True)
        )
        seen = Counter(f"{t.kind} {t.tier}" for t in these)
        print(
            f"{source:8}{tokens:7}{cold * 1000:10.0f}{hit * 1000:10.2f}{step * 1000:9.1f}"
            f"{cold / hit:10.0f}{hit / step:9.2f}   "
            + ", ".join(f"{count} {name}" for name, count in seen.items()),
            flush=True,
        )


def main() -> int:
    """Print a table; return 1 where a source could not be measured."""
    if what := given():
        print(json.dumps(measured(what)))
        return 0
    parser = arguments(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--prompts", type=int, default=3, help="of each length")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES)
    options = parser.parse_args()
    print(f"{machine()}; medians of {options.prompts} prompts; page cache not dropped")
    print(
        f"{'source':8}{'tokens':>7}{'cold ms':>10}{'hit ms':>10}{'step ms':>9}"
        f"{'sooner':>10}{'steps':>9}   hits"
    )
    failed = False
    for source in options.sources:
        try:
            table(source, measure(source, options.model, options.tokens, options.prompts))
        except ChildFailed as error:
            failed = True
            print(f"{source:8}not measured: {error}", flush=True)
    print("sooner: cold time over hit time; steps: hit time in decode steps")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
