"""How long a lookup takes: a long prompt against a cache of many rows.

Run: ``python -m benchmarks.lookup [rows] [tokens]``.  Payloads take 64 bytes each, since
nothing here reads them.  Prints microseconds, median and worst of 200 runs.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable

from erllama_py._cache.divergence import diverge
from erllama_py._cache.finding import search
from erllama_py._cache.grade import Want, streamed, whole_chunk
from erllama_py._cache.identity import Identity
from erllama_py._cache.key import encode_tokens
from erllama_py._cache.lease import Tail
from erllama_py._cache.store import Cache

BLOCK, CHUNK, THREADS = 64, 128, 2
RUNS = 200


def main() -> None:
    """Fill a cache, then time what an admission and a view do."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    length = int(sys.argv[2]) if len(sys.argv) > 2 else 30_000
    rng = random.Random(1)
    prompt = [rng.randrange(50_000) for _ in range(length)]

    cache = Cache(1 << 30, BLOCK)
    space = cache.namespace(Identity(bytes(32), "f16", bytes(32)))

    def store(ids: list[int]) -> None:
        with space.lookup(encode_tokens(ids), chunk=CHUNK, threads=THREADS) as lease:
            lease.restored()
            whole = len(ids) // BLOCK * BLOCK
            for start in range(lease.captured, whole, BLOCK):
                extent = cache.reserve(64)
                assert extent is not None
                tokens = encode_tokens(ids[start : start + BLOCK])
                lease.add_block(start, tokens, whole_chunk(CHUNK), extent, 64, 0)
            tail = None
            if whole < len(ids):
                extent = cache.reserve(64)
                assert extent is not None
                tail = Tail(whole, extent, 64, 0, streamed(THREADS))
            lease.add_row(encode_tokens(ids), "finish", tail=tail)

    began = time.perf_counter()
    store(prompt)
    for number in range(rows - 1):
        if number % 2:  # a branch off the long prompt
            cut = rng.randrange(BLOCK, length)
            store([*prompt[: cut - cut % BLOCK], *(rng.randrange(50_000) for _ in range(40))])
        else:  # something of its own
            store([rng.randrange(50_000) for _ in range(rng.randrange(20, 200))])
    took = time.perf_counter() - began
    shot = cache.snapshot(limit=1)
    print(
        f"{shot['row_count']} rows, {shot['blocks']['nodes']} nodes, stored in {took:.1f} s, "
        f"{length} tokens asked for"
    )

    root = space.space
    tokens = encode_tokens(prompt)
    diverging = encode_tokens([*prompt[:-30], *range(60_000, 60_030)])
    miss = encode_tokens([60_000, *prompt])
    want, bit = Want.of("token", CHUNK, THREADS), Want.of("bit", CHUNK, THREADS)

    def admit(ids: bytes) -> None:
        space.lookup(ids, chunk=CHUNK, threads=THREADS).close()

    def reserve() -> None:
        extent = cache.reserve(64)
        assert extent is not None
        cache.release(extent)

    measure("search, all of it", lambda: search(root, tokens, want))
    measure("search, all but 30", lambda: search(root, diverging, want))
    measure("search, bit", lambda: search(root, diverging, bit))
    measure("search, nothing", lambda: search(root, miss, want))
    measure("key", lambda: space.key(tokens))
    measure("lookup and close, exact", lambda: admit(tokens))
    measure("lookup and close, partial", lambda: admit(diverging))
    reached = search(root, diverging, want).tip

    def ask_why() -> None:
        seen = space.preview(diverging, chunk=CHUNK, threads=THREADS)
        cache.elsewhere(space, diverging, 0, seen.mark)
        space.evicted(diverging, 0, seen.mark)

    measure("lookup and close, cold", lambda: admit(miss))
    measure("divergence, with a lookup", lambda: diverge(root, diverging, reached))
    measure("divergence, cold", lambda: diverge(root, miss, root.root))
    measure("divergence, from the front", lambda: diverge(root, diverging, root.root))
    measure("preview, and why", ask_why)
    measure("snapshot of 100 rows", lambda: cache.snapshot(limit=100))
    measure("reserve and release", reserve)
    cache.close()


def measure(name: str, call: Callable[[], object]) -> None:
    """Time one call, many times."""
    times = []
    for _ in range(RUNS):
        began = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - began) / 1000)
    print(f"{name:28} {statistics.median(times):8.0f} {max(times):8.0f}")


if __name__ == "__main__":
    main()
