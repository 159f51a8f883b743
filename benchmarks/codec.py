"""Time the term codec: best microseconds of a call, with erlang-py beside it when installed.

    python benchmarks/codec.py [--json FILE] [--rounds N]

The terms are those the node sends and receives most.  Best, not mean: the codec does the
same work every time, and all that varies is what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from erl_bridge.etf import (
    Atom,
    Encoded,
    Pid,
    Reference,
    binary_term,
    decode,
    encode,
    encode_body,
    tuple_head,
)

try:
    import erlang  # type: ignore[import-untyped]  # erlang-py has no types
except ImportError:
    erlang = None

# What the codec was built to reach.  Microseconds.
TARGETS = {
    "4096 token ids, decode": 150,
    "4096 token ids, encode": 120,
    "2048 floats, encode": 60,
    "token message, cached head": 1,
    "result map, encode": 150,
    "result map, decode": 150,
}


def best(call: Callable[[], Any], rounds: int) -> float:
    """Return the best time of one call in microseconds; short ones are timed in batches."""
    once = min(timeit.repeat(call, number=1, repeat=5))
    number = max(1, int(20e-6 / max(once, 1e-9)))
    return min(timeit.repeat(call, number=number, repeat=rounds)) / number * 1e6


def result_map(rng: random.Random) -> dict[Atom, Any]:
    """Make a completion result: 20 keys in all, two lists of 100 tokens, text and statistics."""
    tokens = [[rng.randrange(200_000) for _ in range(100)] for _ in range(2)]
    stats = {Atom(f"stat_{index}"): index * 1000 for index in range(10)}
    return {
        Atom("reply"): b"a reply of some length, " * 12,
        Atom("generated"): tokens[0],
        Atom("context_tokens"): tokens[1],
        Atom("committed_tokens"): 200,
        Atom("finish_key"): bytes(32),
        Atom("cache_hit_kind"): Atom("partial"),
        Atom("finish_reason"): Atom("stop"),
        Atom("stop_sequence"): b"\n",
        Atom("cost"): 1.5,
        Atom("stats"): stats,
    }


def theirs(term: Any) -> Any:
    """Return ``term`` in erlang-py's types."""
    if isinstance(term, Atom):
        return erlang.OtpErlangAtom(term.name)
    if isinstance(term, bytes):
        return erlang.OtpErlangBinary(term)
    if isinstance(term, list):
        return [theirs(item) for item in term]
    if isinstance(term, tuple):
        return tuple(map(theirs, term))
    if isinstance(term, dict):
        return {theirs(key): theirs(value) for key, value in term.items()}
    if isinstance(term, Reference):
        return erlang.binary_to_term(encode(term))
    return term


def cases() -> dict[str, tuple[Callable[[], Any], Callable[[], Any] | None]]:
    """Return each case's call, and erlang-py's call for the same work where it has one."""
    rng = random.Random(1)
    node = Atom("erllama@127.0.0.1")
    ref = Reference(node, 1_700_000_000, (1, 2, 3))
    terms = {
        "4096 token ids": [rng.randrange(200_000) for _ in range(4096)],
        "2048 floats": [rng.uniform(-1, 1) for _ in range(2048)],
        "result map": result_map(rng),
        "token message": (Atom("erllama_token"), ref, b" word"),
        "1 MiB binary": bytes(1024 * 1024),
    }
    made: dict[str, tuple[Callable[[], Any], Callable[[], Any] | None]] = {}
    for name, term in terms.items():
        data = encode(term)
        their_encode = their_decode = None
        if erlang is not None:
            their_term = theirs(term)
            their_encode = partial(erlang.term_to_binary, their_term)
            their_decode = partial(erlang.binary_to_term, data)
        made[f"{name}, decode"] = (partial(decode, data), their_decode)
        made[f"{name}, encode"] = (partial(encode, term), their_encode)

    head = tuple_head(3, Atom("erllama_token"), ref)
    made["token message, cached head"] = (lambda: head + binary_term(b" word"), None)
    cached = Encoded(encode_body(ref))
    tag = Atom("erllama_token")
    made["token message, cached reference"] = (lambda: encode((tag, cached, b" word")), None)
    control = encode((22, Pid(node, 90, 0, 1), Pid(node, 91, 0, 2)))
    made["control message, decode"] = (lambda: decode(control), None)
    try:
        import numpy as np  # noqa: PLC0415 - optional here as in the codec
    except ImportError:
        return made
    floats = np.array(terms["2048 floats"])
    made["2048 floats, encode from numpy"] = (lambda: encode(floats), None)
    return made


def main() -> None:
    """Run and print all cases."""
    parser = argparse.ArgumentParser(description="Time the term codec.")
    parser.add_argument("--rounds", type=int, default=500, help="repetitions a case; best counts")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()

    figures: dict[str, dict[str, float | None]] = {}
    print(f"{'best µs of a call':36}{'ours':>10}{'erlang-py':>12}{'target':>10}")
    for name, (ours, other) in cases().items():
        mine = best(ours, options.rounds)
        their = best(other, max(5, options.rounds // 10)) if other else None
        target = TARGETS.get(name)
        figures[name] = {"ours": mine, "erlang_py": their, "target": target}
        print(
            f"{name:36}{mine:10.2f}"
            f"{'-' if their is None else f'{their:.1f}':>12}"
            f"{'-' if target is None else target:>10}"
        )
    if options.json:
        about = {"python": platform.python_version(), "machine": platform.machine()}
        options.json.write_text(json.dumps({"about": about, "best_us": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
