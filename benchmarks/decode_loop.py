"""What the backend costs a decoded token, against a bare loop over llama.cpp's C API.

Both prefill 32 tokens and decode 128 greedily, on contexts of their own on the same
file with the same number of threads.  They take turns of 16 tokens, so that a busy
machine hits both alike, and the ratio is taken within each pair:

    python -m benchmarks.decode_loop [--model smollm2] [--threads N] [--pairs 7]

Target: the backend's loop reaches at least 0.97 of the bare one.
"""

from __future__ import annotations

import ctypes
import statistics
import time

import llama_cpp.llama_cpp as native

from benchmarks._common import arguments
from erllama_py._backends import open_backend
from erllama_py._backends.base import Backend, BackendConfig, ContextOptions, Row, SamplerOptions
from erllama_py._machine.catalogue import resolve_model
from erllama_py._machine.cpus import default_threads

PROMPT = 32
DECODED = 128
TURN = 16
N_CTX = 512
TARGET = 0.97


class Bare:
    """The loop a C programmer would write, through ctypes."""

    def __init__(self, path: str, threads: int) -> None:
        params = native.llama_context_default_params()
        params.n_ctx = N_CTX
        params.n_batch = 512
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.model = native.llama_model_load_from_file(
            path.encode(), native.llama_model_default_params()
        )
        self.context = native.llama_init_from_model(self.model, params)
        self.memory = native.llama_get_memory(self.context)
        self.sampler = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
        native.llama_sampler_chain_add(self.sampler, native.llama_sampler_init_greedy())

        self.one = (ctypes.c_int32 * 1)()
        self.batch = native.llama_batch_get_one(self.one, 1)

    def begin(self, prompt: list[int]) -> None:
        """Prefill."""
        self.out: list[int] = []
        native.llama_memory_clear(self.memory, False)
        tokens = (ctypes.c_int32 * len(prompt))(*prompt)
        native.llama_decode(self.context, native.llama_batch_get_one(tokens, len(prompt)))

    def decode(self, count: int) -> float:
        """Decode ``count`` tokens; return the seconds it took."""
        begin = time.perf_counter()
        for _ in range(count):
            self.one[0] = native.llama_sampler_sample(self.sampler, self.context, -1)
            self.out.append(self.one[0])
            native.llama_decode(self.context, self.batch)
        return time.perf_counter() - begin


class ThroughBackend:
    """The same through the backend's contract."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.sampler = backend.new_sampler(SamplerOptions())

    def begin(self, prompt: list[int]) -> None:
        """Prefill."""
        self.out: list[int] = []
        self.pos = len(prompt)
        self.backend.clear(0)
        self.backend.step([Row(0, 0, prompt, True)])

    def decode(self, count: int) -> float:
        """Decode ``count`` tokens; return the seconds it took."""
        begin = time.perf_counter()
        for _ in range(count):
            token = self.backend.sample(self.sampler, 0)
            self.out.append(token)
            self.backend.step([Row(0, self.pos, [token], True)])
            self.pos += 1
        return time.perf_counter() - begin


def pair(bare: Bare, ours: ThroughBackend, prompt: list[int]) -> tuple[float, float]:
    """Return tokens per second of both, taking turns and changing who goes first."""
    seconds = {id(bare): 0.0, id(ours): 0.0}
    for loop in (bare, ours):
        loop.begin(prompt)
    for turn in range(DECODED // TURN):
        for loop in (bare, ours) if turn % 2 else (ours, bare):
            seconds[id(loop)] += loop.decode(TURN)
    if bare.out != ours.out:
        raise SystemExit("the two loops generated different tokens")
    return DECODED / seconds[id(bare)], DECODED / seconds[id(ours)]


def main() -> None:
    """Run the pairs and print medians."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=default_threads()[0])
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    path = resolve_model(options.model)
    context = ContextOptions(
        n_ctx=N_CTX, n_threads=options.threads, n_threads_batch=options.threads
    )
    # First, since it puts the log in its place before anything native is called.
    backend = open_backend(BackendConfig("llama", model_path=path, context=context))
    bare = Bare(path, options.threads)
    ours = ThroughBackend(backend)
    prompt = [100 + 7 * i for i in range(PROMPT)]
    pair(bare, ours, prompt)  # warms up
    rates = []
    for number in range(options.pairs):
        plain, through = pair(bare, ours, prompt)
        rates.append((plain, through))
        ratio = through / plain
        print(f"pair {number}: bare {plain:6.1f} tok/s, backend {through:6.1f}: {ratio:.3f}")
    ratio = statistics.median(through / plain for plain, through in rates)
    print(
        f"median: bare {statistics.median(p for p, _ in rates):.1f} tok/s, "
        f"backend {statistics.median(o for _, o in rates):.1f} tok/s, ratio {ratio:.3f} "
        f"(target {TARGET})"
    )
    backend.close()


if __name__ == "__main__":
    main()
