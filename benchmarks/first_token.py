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

import random
import statistics

from benchmarks._common import arguments, ask, load, machine, new_tokens, settle

TARGET = 150


def main() -> None:
    """Run the pairs and print each, then the medians."""
    parser = arguments(__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    print(machine())
    model = load(options.model, options.tokens + 256)
    chance = random.Random(1)
    ratios, warm_times, steps = [], [], []
    for number in range(options.pairs):
        prompt = new_tokens(chance, options.tokens)
        cold = ask(model, prompt)
        settle()
        warm = ask(model, prompt)
        settle()
        if (cold.kind, warm.kind) != ("cold", "exact"):
            raise SystemExit(
                f"expected a cold and an exact answer, got {cold.kind} and {warm.kind}"
            )
        ratios.append(cold.first_s / warm.first_s)
        warm_times.append(warm.first_s)
        steps.append(warm.step_s)
        print(
            f"pair {number + 1}: cold {cold.first_s * 1000:7.1f} ms, exact"
            f" {warm.first_s * 1000:6.2f} ms: {ratios[-1]:6.0f} times sooner;"
            f" a decode step {warm.step_s * 1000:.1f} ms"
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
