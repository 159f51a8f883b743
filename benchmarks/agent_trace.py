"""How much of what could be re-used is: an agent's requests over one long head.

A head of 6000 tokens, then 40 turns on two branches.  A turn takes an earlier prompt and
its reply, mostly the branch's latest, cuts it at an arbitrary token, as edits, retries and
dropped tool results do, and adds new ones.  Nothing is aligned to blocks.

*Re-usable* is the longest prefix that a prompt shares with any earlier prompt and its
reply, found by comparing the trace with itself; *re-used* is ``prefix_len``, what the
cache restored.

    python -m benchmarks.agent_trace [--model smollm2] [--scale 1.0] [--seed 1]

Target: at least 0.97 re-used of what is re-usable.
"""

from __future__ import annotations

import random
import time

from benchmarks._common import arguments, ask, load, machine, new_tokens, shared

TARGET = 0.97
HEAD, TURNS, BRANCHES = 6000, 40, 2
N_CTX = 12_288
NEW = (20, 160)
"""Fewest and most new tokens of a turn."""
REPLY = 6
FROM_LATEST = 0.7
WHOLE = 0.4
"""How often a turn starts from its branch's latest, and how often it cuts nothing off."""


class Trace:
    """The contexts there have been, and where the next turn starts."""

    def __init__(self, chance: random.Random, head: int) -> None:
        self.chance = chance
        self.head = new_tokens(chance, head)
        self.contexts: list[list[int]] = []
        self.branches: list[list[list[int]]] = [[] for _ in range(BRANCHES)]

    def next(self) -> tuple[int, list[int]]:
        """Return the branch of the next turn and its prompt."""
        chance = self.chance
        number = chance.randrange(BRANCHES)
        branch = self.branches[number] or [self.head]
        parent = branch[-1] if chance.random() < FROM_LATEST else chance.choice(branch)
        cut = len(parent)
        if chance.random() >= WHOLE:
            # A tenth of the cuts reach into the head: another tool list, an edited file.
            least = len(self.head) if chance.random() < 0.9 else len(self.head) // 2
            cut = chance.randint(min(least, cut), cut)
        return number, parent[:cut] + new_tokens(chance, chance.randint(*NEW))

    def reusable(self, prompt: list[int]) -> int:
        """Return the longest prefix that an earlier context has."""
        return max((shared(prompt, context) for context in self.contexts), default=0)

    def add(self, branch: int, context: list[int]) -> None:
        """Remember what a turn came to."""
        self.contexts.append(context)
        self.branches[branch].append(context)


def main() -> None:
    """Run the trace; print what was lost where, and the ratio."""
    parser = arguments(__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the head and the turns")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    trace = Trace(random.Random(options.seed), max(256, int(HEAD * options.scale)))
    print(machine())
    model = load(options.model, N_CTX)
    given = reusable = reused = short = 0
    began = time.perf_counter()
    for turn in range(max(4, int(TURNS * options.scale))):
        branch, prompt = trace.next()
        could = trace.reusable(prompt)
        answer = ask(model, prompt, REPLY)
        did = int(answer.stats["prefix_len"])
        given += len(prompt)
        reusable += could
        reused += did
        if did < could:
            short += 1
            print(f"turn {turn + 1}: {did} of {could} re-usable tokens, {answer.kind}")
        trace.add(branch, prompt + answer.tokens)
    seconds = time.perf_counter() - began
    model.unload()
    print(
        f"{len(trace.contexts)} turns, {given} tokens given in {seconds:.0f} s: {reusable}"
        f" re-usable, {reused} re-used, ratio {reused / reusable:.4f} (target {TARGET});"
        f" {short} turn(s) below 1; computed {given - reused} of {given}"
    )


if __name__ == "__main__":
    main()
