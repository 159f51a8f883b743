"""What the cache costs where it never helps: time with it over time without it, no hits.

Two models of the same file, one with ``cache`` false.  Each pair gives both the same new
prompts, back to back so that storing one overlaps the next, and changes who goes first.
What is stored goes to memory and, as by default, on to files.  The prompts of a pair take
long enough for that to be written several times while they are answered; only what is left
at the end is waited for outside, so that the other model does not pay for it.

    python -m benchmarks.no_hits [--model smollm2] [--pairs 7] [--tokens 256] [--prompts 12]

Target: at most 1.03, the median of the pairs.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence

from benchmarks._common import arguments, ask, flush, load, machine, new_tokens, settle

TARGET = 1.03
REPLY = 32


def total(model: str, prompts: Sequence[list[int]]) -> float:
    """Return the seconds that all prompts take, one behind the other."""
    began = time.perf_counter()
    answers = [ask(model, prompt, REPLY) for prompt in prompts]
    seconds = time.perf_counter() - began
    if hits := [answer.kind for answer in answers if answer.kind != "cold"]:
        raise SystemExit(f"a new prompt was answered {hits[0]}")
    settle()
    flush()
    return seconds


def main() -> None:
    """Run the pairs and print each, then the median."""
    parser = arguments(__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=12, help="of a pair")
    options = parser.parse_args()
    chance = random.Random(1)
    with tempfile.TemporaryDirectory(prefix="erllama-bench-") as folder:
        os.environ |= {"ERLLAMA_CACHE_DISK": "4G", "ERLLAMA_CACHE_DIR": folder}
        print(machine())
        cached = load(options.model, options.tokens + 256)
        plain = load(options.model, options.tokens + 256, cache=False)
        ratios = []
        for number in range(options.pairs):
            prompts = [new_tokens(chance, options.tokens) for _ in range(options.prompts)]
            order = (cached, plain) if number % 2 else (plain, cached)
            seconds = {model: total(model, prompts) for model in order}
            ratios.append(seconds[cached] / seconds[plain])
            print(
                f"pair {number + 1}: with {seconds[cached]:.2f} s, without"
                f" {seconds[plain]:.2f} s: {ratios[-1]:.3f}",
                flush=True,
            )
        cached.unload()
        plain.unload()
    low, _, high = statistics.quantiles(ratios, n=4)
    print(
        f"median of {len(ratios)} pairs of {options.prompts} prompts of {options.tokens} tokens:"
        f" {statistics.median(ratios):.3f}, quartiles {low:.3f} to {high:.3f} (target {TARGET})"
    )


if __name__ == "__main__":
    main()
