"""Greedy replies with drafts against the same replies without, in one run.

* *edit*: a program is to be written again with a small change; drafts are looked up in it.
* *prose*: a story, in which nothing repeats itself: what drafting costs where it is no use.
* *draft model*: the story with drafts of another process, the same file: every draft is
  right, but none is quicker than the model itself, so this is its price and not its gain.

Each pair generates the same tokens or the benchmark fails; pairs alternate which goes
first, and ratios are of tokens per second, over without.

    python -m benchmarks.speculation [--model smollm2] [--pairs 5] [--tokens 200]
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks._common import arguments, load, machine, settle
from erllama_py import api

PROGRAM = """\
def area(width: float, height: float) -> float:
    \"\"\"Return the area of a rectangle.\"\"\"
    return width * height


def volume(width: float, height: float, depth: float) -> float:
    \"\"\"Return the volume of a box.\"\"\"
    return area(width, height) * depth


def surface(width: float, height: float, depth: float) -> float:
    \"\"\"Return the surface of a box.\"\"\"
    return 2 * (area(width, height) + area(height, depth) + area(width, depth))


"""
EDIT = "".join(f"# Version {number}\n\n{PROGRAM}" for number in range(1, 5)) + "# Version 5\n\n"
PROSE = "The keeper of the lighthouse opened the window and"
DRAFT = "the draft model"


def rate(model: str, prompt: str, count: int, speculate: Any) -> tuple[float, dict[str, Any]]:
    """Return tokens per second of the generation, and the reply."""
    options = {"response_tokens": count, "speculate": speculate}
    reply = api.complete(model, prompt, options)
    settle()
    return len(reply["generated"]) / (reply["stats"]["generation_ms"] / 1000), reply


def compare(name: str, model: str, prompt: str, speculate: Any, count: int, pairs: int) -> None:
    """Run the pairs of one scenario and print what came of them."""
    ratios, rates = [], []
    facts: dict[str, Any] = {}
    for number in range(pairs + 1):
        order = (speculate, False) if number % 2 else (False, speculate)
        ran = {bool(how): rate(model, prompt, count, how) for how in order}
        (plain, without), (drafted, reply) = ran[False], ran[True]
        if without["generated"] != reply["generated"]:
            raise SystemExit(f"{name}: drafts changed the reply")
        facts = reply["stats"]["speculation"]
        if number:  # the first pair warms up, and finds out which rows are exact
            ratios.append(drafted / plain)
            rates.append((plain, drafted))
    plain, drafted = (statistics.median(column) for column in zip(*rates, strict=True))
    why = f", plain: {facts['plain']}" if "plain" in facts else ""
    print(
        f"{name:12} without {plain:6.1f} tok/s, with {drafted:6.1f} tok/s:"
        f" ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f});"
        f" {facts['accepted']} of {facts['drafted']} drafted tokens right{why}",
        flush=True,
    )


def main() -> None:
    """Run the scenarios and print each."""
    parser = arguments(__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    print(machine())
    model = load(options.model, 2048)
    runs = options.tokens, options.pairs
    compare("edit", model, EDIT, "lookup", *runs)
    compare("prose", model, PROSE, "lookup", *runs)
    config = {"model_path": options.model, "context_opts": {"n_ctx": 2048}}
    with api.load_model(DRAFT, config):
        compare("draft model", model, PROSE, {"draft": DRAFT}, *runs)
    model.unload()


if __name__ == "__main__":
    main()
