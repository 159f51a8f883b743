"""One stream through the whole product, against a bare loop over llama.cpp's C API.

The product's side is what a caller sees: the time between the first and the last
``token_id`` event of ``api.infer``, across the model process, its socket and the
reader thread.  The bare loop decodes as many tokens in a process of its own kind: this
one.  Both use the same threads; pairs alternate which goes first.

    python -m benchmarks.stream [--model smollm2] [--threads N] [--pairs 7]

Target: at least 0.97 of the bare loop.
"""

from __future__ import annotations

import statistics
import time

from benchmarks._common import arguments
from benchmarks.decode_loop import Bare
from erllama_py import api
from erllama_py._backends import native_log
from erllama_py._machine.catalogue import resolve_model
from erllama_py._machine.cpus import default_threads

PROMPT = [100 + 7 * i for i in range(32)]
DECODED = 128
TARGET = 0.97


def ours(model: str) -> tuple[float, list[int]]:
    """Return tokens per second at the caller, and the tokens."""
    times: list[float] = []
    tokens: list[int] = []
    for event in api.infer(model, PROMPT, {"response_tokens": DECODED}):
        if event.token_id is not None:
            times.append(time.perf_counter())
            tokens.append(event.token_id)
    return (len(times) - 1) / (times[-1] - times[0]), tokens


def main() -> None:
    """Run the pairs and print each, then the medians."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=default_threads()[0])
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    native_log.install()
    threads = {"n_threads": options.threads, "n_threads_batch": options.threads}
    model = api.load_model({"model_path": options.model, "context_opts": {"n_ctx": 512, **threads}})
    bare = Bare(resolve_model(options.model), options.threads)

    def plain() -> float:
        bare.begin(PROMPT)
        bare.decode(1)
        return (DECODED - 1) / bare.decode(DECODED - 1)

    pairs = []
    for number in range(options.pairs + 1):
        if number % 2:
            rate, (through, tokens) = plain(), ours(model)
        else:
            through, tokens = ours(model)
            rate = plain()
        if tokens != bare.out:
            raise SystemExit("the two generated different tokens")
        if number:  # the first pair warms up
            pairs.append((rate, through))
            ratio = through / rate
            print(f"pair {number}: bare {rate:6.1f} tok/s, product {through:6.1f}: {ratio:.3f}")
    ratio = statistics.median(through / rate for rate, through in pairs)
    print(
        f"median of {len(pairs)} pairs, {options.threads} thread(s): bare"
        f" {statistics.median(r for r, _ in pairs):.1f} tok/s, product"
        f" {statistics.median(t for _, t in pairs):.1f} tok/s, ratio {ratio:.3f} (target {TARGET})"
    )
    model.unload()


if __name__ == "__main__":
    main()
