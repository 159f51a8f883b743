"""How many bytes a conversation takes in the cache, over those of its distinct tokens.

40 turns on two branches, each adding some tokens and a reply to all before it.  A token is
*distinct* once for every different text before it: the nodes of a trie of all contexts.
Their KV is the least that can be stored.  Bytes are counted after the model is unloaded,
when no room is set aside for what it might store next.

A block's bytes, and so a token's, are the difference between two rows of one and two
blocks; what a row of one block has besides is its logits, which are shown apart.

    python -m benchmarks.storage [--model smollm2] [--turns 40]

Target: at most 1.1, in every tier.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks._common import (
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
    shared,
)
from erllama_py import api

TARGET = 1.1
BLOCK = 64
NEW = (20, 90)
REPLY = 16
FORK = 4
"""The second branch leaves the first after a quarter of the turns."""

TIERS = ("ram", "ram_file", "disk")
QUOTA = "4G"


def distinct(contexts: Iterable[Sequence[int]]) -> int:
    """Return how many nodes a trie of the contexts has."""
    # In sorted order each shares most with the one just before it.
    total, before = 0, list[int]()
    for context in sorted(map(list, contexts)):
        total += len(context) - shared(before, context)
        before = context
    return total


def conversation(model: str, chance: random.Random, turns: int) -> list[list[int]]:
    """Hold a conversation that branches once; return every context it had."""
    contexts: list[list[int]] = []
    branches: list[list[int]] = [[]]
    for turn in range(turns):
        if turn == turns // FORK:
            branches.append(branches[0])
        at = turn % len(branches)
        prompt = branches[at] + new_tokens(chance, chance.randint(*NEW))
        branches[at] = prompt + ask(model, prompt, REPLY).tokens
        contexts.append(branches[at])
    return contexts


def calibrate(model: str, chance: random.Random) -> tuple[int, int, list[int]]:
    """Return the bytes of a block, those of one position's logits, and the tokens used."""
    tokens = new_tokens(chance, 2 * BLOCK)
    for length in (BLOCK, 2 * BLOCK):
        api.prefill_only(model, tokens[:length])
        settle()
    rows = {row["tokens"]: row for row in api.cache_snapshot()["rows"] if row["logits"]}
    block = rows[2 * BLOCK]["bytes"] - rows[BLOCK]["bytes"]
    return block, rows[BLOCK]["bytes"] - block, tokens


def measured(what: dict[str, Any]) -> dict[str, Any]:
    """Do one process's part."""
    chance = random.Random(1)
    turns = what["turns"]
    n_ctx = turns * (NEW[1] + REPLY) + 256
    model = load(what["model"], n_ctx, warm=False, tier=what["tier"], exactness="token")
    block, logits, calibrating = calibrate(model, chance)
    contexts = conversation(model, chance, turns)
    settle()
    if what["tier"] != "ram":
        flush()
    model.unload()
    snapshot = api.cache_snapshot(limit=1 << 20)
    return {
        "tokens": distinct([*contexts, calibrating]),
        "given": sum(map(len, contexts)),
        "token_bytes": block / BLOCK,
        "logits": logits * sum(row["logits"] for row in snapshot["rows"]),
        "tiers": {tier["name"]: tier["bytes"] for tier in snapshot["tiers"]},
        "turns": len(contexts),
    }


def main() -> int:
    """Print a line for each tier; return 1 where one could not be measured."""
    if what := given():
        print(json.dumps(measured(what)))
        return 0
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int, default=40)
    options = parser.parse_args()
    print(machine())
    failed = False
    for tier in TIERS:
        shm = "/dev/shm" if tier == "ram_file" else None
        with tempfile.TemporaryDirectory(prefix="erllama-bench-", dir=shm) as folder:
            env = {
                "ram": {},
                "ram_file": {
                    "ERLLAMA_CACHE_RAM_FILE": QUOTA,
                    "ERLLAMA_CACHE_RAM_FILE_DIR": folder,
                },
                "disk": {"ERLLAMA_CACHE_DISK": QUOTA, "ERLLAMA_CACHE_DIR": folder},
            }[tier]
            arg = {"model": options.model, "turns": options.turns, "tier": tier}
            try:
                report(tier, child("benchmarks.storage", arg, env))
            except ChildFailed as error:
                failed = True
                print(f"{tier}: not measured: {error}", flush=True)
    return int(failed)


def report(asked: str, found: dict[str, Any]) -> None:
    """Print what one process found."""
    least = found["tokens"] * found["token_bytes"]
    print(
        f"saves to {asked}: {found['turns']} turns, {found['given']} tokens in contexts,"
        f" {found['tokens']} distinct, {found['token_bytes']:.0f} bytes a token"
    )
    for name, stored in found["tiers"].items():
        kv = max(0, stored - found["logits"])
        print(
            f"  {name}: KV {kv / 1e6:.1f} MB over {least / 1e6:.1f} MB distinct:"
            f" {kv / least:.3f} (target {TARGET}); logits {found['logits'] / 1e6:.1f} MB beside",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
