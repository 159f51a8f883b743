"""How much sooner an exact hit answers than a cold prompt: time to the first token.

Each pair takes a new prompt of 1024 tokens, answers it cold, then again from the RAM
tier, and divides.  Times are the caller's: from ``api.infer`` to its first ``token_id``
event.  One decode step of the same model, measured in the same stream, stands beside.

    python -m benchmarks.first_token [--model smollm2] [--pairs 7] [--tokens 1024]

Between two requests there is a pause of 0.2 s: right behind its reply the model still
evaluates and stores the last token, one decode step that is not the next request's cost.

Target: at least 150 times sooner.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time

from erllama_py import api
from erllama_py.config import EVERYDAY_POLICY

TARGET = 150
REPLY = 8
PAUSE_S = 0.2


def ask(model: str, prompt: list[int]) -> tuple[float, float, str]:
    """Return seconds to the first token, seconds a decode step, and the kind of hit."""
    time.sleep(PAUSE_S)
    began = time.perf_counter()
    times = []
    kind = ""
    for event in api.infer(model, prompt, {"response_tokens": REPLY}):
        if event.token_id is not None:
            times.append(time.perf_counter())
        if event.stats:
            kind = event.stats["cache_hit_kind"]
    # An exact hit's second token waits for the restore; the steps after it do not.
    step = statistics.median(b - a for a, b in itertools.pairwise(times[1:]))
    return times[0] - began, step, kind


def main() -> None:
    """Run the pairs and print each, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    model = api.load_model(
        {
            "model_path": options.model,
            "policy": EVERYDAY_POLICY,
            "context_opts": {"n_ctx": options.tokens + 256},
        }
    )
    chance = random.Random(1)
    ratios, warm_times, steps = [], [], []
    for number in range(options.pairs):
        prompt = [chance.randrange(300, 20_000) for _ in range(options.tokens)]
        cold, _, first = ask(model, prompt)
        warm, step, second = ask(model, prompt)
        if (first, second) != ("cold", "exact"):
            raise SystemExit(f"expected a cold and an exact answer, got {first} and {second}")
        ratios.append(cold / warm)
        warm_times.append(warm)
        steps.append(step)
        print(
            f"pair {number + 1}: cold {cold * 1000:7.1f} ms, exact {warm * 1000:6.2f} ms:"
            f" {cold / warm:6.0f} times sooner; a decode step {step * 1000:.1f} ms"
        )
    print(
        f"median of {len(ratios)} pairs at {options.tokens} tokens: exact hit"
        f" {statistics.median(warm_times) * 1000:.2f} ms ="
        f" {statistics.median(warm_times) / statistics.median(steps):.2f} decode steps,"
        f" {statistics.median(ratios):.0f} times sooner than cold (target {TARGET})"
    )
    model.unload()


if __name__ == "__main__":
    main()
