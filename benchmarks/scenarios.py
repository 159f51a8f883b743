"""What the cache saves in three usual situations: time with it over time without it.

=========  ============================================================================
scenario   what is asked
=========  ============================================================================
nested     each prompt extends the one before: 256, 512, ... 2048 tokens
in turn    four agents with one head of 1024 tokens and a task of 128 each; two turns,
           the second adding 64 tokens to the first and its reply; one after another
at once    the same, the four of a turn at the same time, on four slots
=========  ============================================================================

Both models are loaded for the whole run, the second with ``cache`` false.  ``computed``
is the share of the tokens given that was computed and not found.

    python -m benchmarks.scenarios [--model smollm2] [--scale 1.0]
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from benchmarks._common import (
    Answer,
    arguments,
    ask,
    computed,
    load,
    machine,
    new_tokens,
    settle,
)

AGENTS = 4
NESTED = tuple(range(256, 2049, 256))
HEAD, TASK, MORE = 1024, 128, 64
REPLY = 16


class Outcome(NamedTuple):
    """One scenario on one model."""

    seconds: float
    given: int
    computed: int


Asked = tuple[list[int], Answer]
"""A prompt and what came of it."""


def nested(model: str, chance: random.Random, buckets: Sequence[int]) -> list[Asked]:
    """Ask prompts of which each extends the one before."""
    whole = new_tokens(chance, buckets[-1])
    return [(whole[:length], ask(model, whole[:length], REPLY)) for length in buckets]


def agents(model: str, chance: random.Random, head: int, *, at_once: bool) -> list[Asked]:
    """Let four agents that share a head take two turns each."""
    prompts = [new_tokens(chance, head)] * AGENTS
    done: list[Asked] = []
    with ThreadPoolExecutor(AGENTS if at_once else 1) as pool:
        for new in (TASK, MORE):
            prompts = [prompt + new_tokens(chance, new) for prompt in prompts]
            answers = list(pool.map(lambda prompt: ask(model, prompt, REPLY), prompts))
            done += zip(prompts, answers, strict=True)
            prompts = [p + answer.tokens for p, answer in zip(prompts, answers, strict=True)]
    return done


def run(scenario: Callable[[str, random.Random], list[Asked]], model: str, seed: int) -> Outcome:
    """Time a scenario."""
    began = time.perf_counter()
    asked = scenario(model, random.Random(seed))
    seconds = time.perf_counter() - began
    settle()
    return Outcome(
        seconds,
        sum(len(prompt) for prompt, _ in asked),
        sum(computed(prompt, answer) for prompt, answer in asked),
    )


def main() -> None:
    """Run each scenario with the cache and without."""
    parser = arguments(__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the prompts' lengths")
    options = parser.parse_args()
    head = max(64, int(HEAD * options.scale))
    buckets = [max(16, int(length * options.scale)) for length in NESTED]
    scenarios = {
        "nested": partial(nested, buckets=buckets),
        "in turn": partial(agents, head=head, at_once=False),
        "at once": partial(agents, head=head, at_once=True),
    }
    n_ctx = max(buckets[-1], AGENTS * (head + TASK + MORE + 2 * REPLY)) + 512
    print(machine())
    cached = load(options.model, n_ctx, slots=AGENTS)
    plain = load(options.model, n_ctx, slots=AGENTS, cache=False)
    print(f"{'scenario':10}{'given':>8}{'computed':>10}{'with s':>9}{'without s':>11}{'ratio':>8}")
    for seed, (name, scenario) in enumerate(scenarios.items()):
        ours, without = run(scenario, cached, seed), run(scenario, plain, seed)
        if without.computed != without.given:
            raise SystemExit("the model without a cache found something")
        print(
            f"{name:10}{ours.given:8}{ours.computed / ours.given:10.3f}{ours.seconds:9.2f}"
            f"{without.seconds:11.2f}{ours.seconds / without.seconds:8.3f}",
            flush=True,
        )
    cached.unload()
    plain.unload()


if __name__ == "__main__":
    main()
