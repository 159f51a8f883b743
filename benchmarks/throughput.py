"""Eight streams at once, against llama-server and llama.cpp's own batched benchmark.

Each round draws eight new prompts of 32 tokens; every side answers them greedily with 64
tokens each, and who goes first changes.  All have the same file, n_ctx, n_batch, unified
KV, flash attention and number of threads.  Two rates, in tokens a second:

whole
    All tokens, over the time from the first request to the last token.
decode
    Tokens after every stream has its first one, over the time from then on.

Ours are eight ``api.infer`` streams, read in turn.  llama-server has eight slots and gets
eight requests on open connections, read by one loop that only notes when bytes came; what
they say is looked at afterwards.  Its sampler chain is its default one at temperature 0,
which is quicker than temperature alone.  ``llama-batched-bench`` computes the same shape
without drawing a token, and is started for each round.

The second part has a head of 256 tokens in front of the prompts, another one each round,
as the conversations of one application have: ours computes it once.  Here llama-server may
reuse what it can (``cache_prompt``).

The third part runs beside a process that keeps one core busy.  Each side waits for its
threads as it does by itself: llama-server spins, a model process soon sleeps
(``GOMP_SPINCOUNT``, see ``_engine/process.py``), which costs some per cent where nothing
else runs.

    python -m benchmarks.throughput [--model smollm2] [--rounds 5] [--threads DECODE,BATCH]

``llama_server.py`` says where the binaries come from.  Targets, of whole replies: 0.9 of
the batched benchmark, and 1.25 times llama-server for prompts with a head in common.  For
prompts that have nothing in common the engine itself is the limit: llama-server comes to
0.97 of the batched benchmark there, and nobody on the same engine to 1.25 times that.  One
stream: see ``stream.py``.
"""

from __future__ import annotations

import json
import random
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._common import arguments, load, machine, new_tokens, settle
from benchmarks.llama_server import ABSENT, HOST, binary, serving
from erllama_py import api
from erllama_py._machine.catalogue import resolve_model
from erllama_py._machine.cpus import default_threads

STREAMS = 8
PROMPT = 32
HEAD = 256
REPLY = 64
FEWER = 3
"""Rounds of the parts behind the first."""
N_BATCH = 512
N_CTX = 4096
OF_SERVER = 1.25
OF_BATCHED = 0.9


class Rate(NamedTuple):
    """Tokens a second of all streams together."""

    whole: float
    decode: float


class Prompts(NamedTuple):
    """What a round asks."""

    head: list[int]
    tails: list[list[int]]

    @property
    def whole(self) -> list[list[int]]:
        """The prompts, one a stream."""
        return [self.head + tail for tail in self.tails]


def rate(times: Sequence[Sequence[float]]) -> Rate:
    """Return the rates of streams whose tokens came at these seconds from the first request."""
    every = sorted(moment for stream in times for moment in stream)
    begun = max(stream[0] for stream in times)
    after = [moment for moment in every if moment > begun]
    return Rate(len(every) / every[-1], len(after) / (every[-1] - begun))


# -- ours -----------------------------------------------------------------------------------


def ours(model: str, prompts: Prompts) -> Rate:
    """Stream the replies, reading a token of each in turn."""
    began = time.perf_counter()
    streams = [api.infer(model, one, {"response_tokens": REPLY}) for one in prompts.whole]
    times: list[list[float]] = [[] for _ in streams]
    live = list(zip(streams, times, strict=True))
    while live:
        for pair in list(live):
            if not _next_token(pair[0]):
                live.remove(pair)
                continue
            pair[1].append(time.perf_counter() - began)
    settle()
    return rate(times)


def _next_token(stream: Any) -> bool:
    return any(event.token_id is not None for event in stream)


def endless(
    path: str, context: dict[str, int], chance: random.Random, rounds: int
) -> list[Prompts]:
    """Draw prompts whose replies do not end before their last token.

    llama-server can be told not to stop; what ours would say is found out with a model
    that caches nothing.
    """
    model = load(path, N_CTX, slots=STREAMS, cache=False, context_opts=context)
    found: list[list[int]] = []
    while len(found) < rounds * STREAMS:
        drawn = [new_tokens(chance, PROMPT) for _ in range(STREAMS)]
        streams = [api.infer(model, one, {"response_tokens": REPLY}) for one in drawn]
        for prompt, stream in zip(drawn, streams, strict=True):
            *_, last = stream
            if last.stats and last.stats["finish_reason"] == "length":
                found.append(prompt)
    model.unload()
    return [Prompts([], found[at * STREAMS :][:STREAMS]) for at in range(rounds)]


def new_prompts(chance: random.Random, head: int) -> Prompts:
    """Draw prompts with so many tokens in common; a reply of ours may end early."""
    return Prompts(new_tokens(chance, head), [new_tokens(chance, PROMPT) for _ in range(STREAMS)])


# -- llama-server ----------------------------------------------------------------------------


def served(port: int, prompts: Prompts) -> Rate:
    """Post the requests and note when bytes of their streams come."""
    connections = [socket.create_connection((HOST, port)) for _ in prompts.tails]
    chunks: list[list[tuple[float, bytes]]] = [[] for _ in connections]
    requests = [_request(one, cached=bool(prompts.head)) for one in prompts.whole]
    with selectors.DefaultSelector() as ready:
        began = time.perf_counter()
        for number, connection in enumerate(connections):
            connection.sendall(requests[number])
            ready.register(connection, selectors.EVENT_READ, number)
        while ready.get_map():
            for key, _ in ready.select():
                data = connections[key.data].recv(1 << 16)
                if data:
                    chunks[key.data].append((time.perf_counter() - began, data))
                else:
                    ready.unregister(key.fileobj)
                    connections[key.data].close()
    return rate([_token_times(one) for one in chunks])


def _request(prompt: list[int], *, cached: bool) -> bytes:
    body = {
        "prompt": prompt,
        "n_predict": REPLY,
        "stream": True,
        "cache_prompt": cached,
        "temperature": 0,
        "ignore_eos": True,
        "return_tokens": True,
    }
    data = json.dumps(body).encode()
    head = f"POST /completion HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def _token_times(chunks: Sequence[tuple[float, bytes]]) -> list[float]:
    """Return when each token was there: with the last byte of its line.

    A token that is half a character is in no line; such ones count with the last.
    """
    times: list[float] = []
    left = b""
    last: dict[str, Any] = {}
    for moment, data in chunks:
        *lines, left = (left + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                last = json.loads(line[6:])
                times += [moment] * len(last.get("tokens", ()))
    missing = int(last.get("tokens_predicted", 0)) - len(times)
    if not times or len(times) + missing != REPLY:
        said = b"".join(data for _, data in chunks)[-200:].decode(errors="replace")
        raise SystemExit(f"llama-server did not answer {REPLY} tokens: {said}")
    return times + [times[-1]] * missing


# -- llama.cpp's own --------------------------------------------------------------------------


def batched(program: Path, path: str, threads: tuple[int, int]) -> Rate:
    """Run the batched benchmark once."""
    options = {
        "-m": path,
        "-c": N_CTX,
        "-b": N_BATCH,
        "-ub": N_BATCH,
        "-npp": PROMPT,
        "-ntg": REPLY,
        "-npl": STREAMS,
        "-t": threads[0],
        "-tb": threads[1],
        "-fa": "on",
        "--output-format": "jsonl",
    }
    command = [str(program), "-kvu", *(str(word) for pair in options.items() for word in pair)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    lines = [json.loads(one) for one in done.stdout.splitlines() if one.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{program.name} failed: {(done.stderr.splitlines() or ['?'])[-1]}")
    return Rate(STREAMS * REPLY / lines[-1]["t"], lines[-1]["speed_tg"])


# -- rounds -------------------------------------------------------------------------------------


def compare(
    title: str,
    sides: dict[str, Callable[[Prompts], Rate]],
    rounds: Sequence[Prompts],
    **targets: float,
) -> None:
    """Run every side on every round's prompts; print rates, and ours over each other one.

    The first round warms up.

    :param targets: by side, with ``_`` for ``-``.
    """
    print(f"\n{title}")
    found: dict[str, list[Rate]] = {name: [] for name in sides}
    names = list(sides)
    for number, prompts in enumerate(rounds):
        for name in names if number % 2 else names[::-1]:
            found[name].append(sides[name](prompts))
        if number:
            said = "; ".join(
                f"{n} {r[-1].whole:.0f} / {r[-1].decode:.0f}" for n, r in found.items()
            )
            print(f"round {number}: {said}", flush=True)
    mine = found["ours"][1:]
    for name, rates in found.items():
        print(f"{name}: whole {spread([r.whole for r in rates[1:]], 0)} tok/s,", end=" ")
        print(f"decode {spread([r.decode for r in rates[1:]], 0)} tok/s")
        if name == "ours":
            continue
        pairs = list(zip(mine, rates[1:], strict=True))
        target = targets.get(name.replace("-", "_"))
        print(
            f"  ours over {name}: whole {spread([a.whole / b.whole for a, b in pairs])},"
            f" decode {spread([a.decode / b.decode for a, b in pairs])}",
            end="\n" if target is None else f" (target {target}, whole)\n",
        )


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> int:
    """Run both parts."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", default=",".join(map(str, default_threads())))
    options = parser.parse_args()
    one, many = map(int, options.threads.split(","))
    threads = (one, many)
    context = {"n_threads": one, "n_threads_batch": many, "n_batch": N_BATCH}
    path = resolve_model(options.model)
    print(f"{machine()}; {one} thread(s) for a token, {many} for more")
    chance = random.Random(1)
    apart = endless(path, context, chance, options.rounds + 1)
    alike = [new_prompts(chance, HEAD) for _ in range(FEWER + 1)]
    beside = [new_prompts(chance, 0) for _ in range(FEWER + 1)]
    with ExitStack() as stack:
        model = load(path, N_CTX, slots=STREAMS, context_opts=context)
        stack.callback(model.unload)
        sides: dict[str, Callable[[Prompts], Rate]] = {"ours": lambda prompts: ours(model, prompts)}
        program = binary()
        if program is None or not Path(program).is_file():
            print(ABSENT)
        else:
            more = ("--kv-unified", "--cache-ram", "0", "--batch-size", str(N_BATCH))
            port = stack.enter_context(serving(program, path, N_CTX, threads, *more, slots=STREAMS))
            sides["llama-server"] = lambda prompts: served(port, prompts)
        bench = Path(program or "").with_name("llama-batched-bench")
        own = {"batched-bench": lambda _: batched(bench, path, threads)} if bench.is_file() else {}
        shape = f"{STREAMS} streams of {REPLY} tokens, tokens/s whole / decode; prompts of {PROMPT}"
        compare(shape, sides | own, apart, batched_bench=OF_BATCHED)
        head = f"{shape} behind a new head of {HEAD}"
        compare(head, sides, alike, llama_server=OF_SERVER)
        with busy_core():
            compare(f"{shape}, beside a busy core", sides, beside)
    return 0


if __name__ == "__main__":
    sys.exit(main())
