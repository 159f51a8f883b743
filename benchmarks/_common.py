"""What the benchmarks share: loading, asking and timing, and processes of their own.

Times are the caller's: from the call to the event.  Ratios are taken within one run, since
what else the machine does changes between runs; :func:`machine` says how much that is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from erllama_py import api
from erllama_py._machine.cpus import default_threads
from erllama_py.config import EVERYDAY_POLICY

__all__ = (
    "REPLY",
    "Answer",
    "ChildFailed",
    "arguments",
    "ask",
    "child",
    "computed",
    "flush",
    "given",
    "load",
    "machine",
    "new_tokens",
    "settle",
    "shared",
)

ROOT = Path(__file__).resolve().parent.parent
REPLY = 8
PAUSE_S = 0.2
WARM_UP = 32
MEMORY_ONLY = {"ERLLAMA_CACHE_DISK": "0", "ERLLAMA_CACHE_RAM_FILE": "0"}
"""Unless a benchmark says otherwise: a file tier would remember the run before this one."""


class Answer(NamedTuple):
    """One request as its caller saw it."""

    first_s: float
    """Until the first token."""
    step_s: float
    """A decode step; 0 for a reply of fewer than four tokens."""
    tokens: list[int]
    """Of the reply."""
    stats: dict[str, Any]

    @property
    def kind(self) -> str:
        """What was found in the cache: ``cold``, ``partial`` or ``exact``."""
        return str(self.stats["cache_hit_kind"])


class ChildFailed(RuntimeError):
    """A process of a benchmark's own ended with an error; its last line is the message."""


# -- before ---------------------------------------------------------------------------------


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with ``--model``, described by a docstring's first line."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2", help="a GGUF file or a known name")
    return parser


def machine() -> str:
    """Return the usable cores and what runs on them: a busy machine makes noisy figures."""
    cores = default_threads()[1]
    return f"{cores} usable core(s), load average {os.getloadavg()[0]:.1f}"


def load(path: str, n_ctx: int, *, slots: int = 1, warm: bool = True, **config: Any) -> api.Model:
    """Load a model and, unless ``warm`` is false, answer a short prompt with it."""
    for name, value in MEMORY_ONLY.items():
        os.environ.setdefault(name, value)
    context = {"n_ctx": n_ctx, "n_seq_max": slots, **config.pop("context_opts", {})}
    whole = {"model_path": path, "policy": EVERYDAY_POLICY, "context_opts": context, **config}
    model = api.load_model(whole)
    if warm:
        ask(model, list(range(1000, 1000 + WARM_UP)))
        settle()
    return model


def new_tokens(chance: random.Random, count: int) -> list[int]:
    """Draw tokens that every vocabulary of a language model has, control tokens excluded."""
    return [chance.randrange(2000, 20_000) for _ in range(count)]


def settle() -> None:
    """Let the model evaluate and store its last token, which is not the next request's cost."""
    time.sleep(PAUSE_S)


# -- asking ---------------------------------------------------------------------------------


def ask(model: str, prompt: Sequence[int], reply: int = REPLY) -> Answer:
    """Stream a reply of ``reply`` tokens."""
    began = time.perf_counter()
    times: list[float] = []
    tokens: list[int] = []
    stats: dict[str, Any] | None = None
    for event in api.infer(model, prompt, {"response_tokens": reply}):
        if event.token_id is not None:
            times.append(time.perf_counter())
            tokens.append(event.token_id)
        stats = event.stats or stats
    if stats is None or not times:
        raise SystemExit("the model answered nothing")
    # An exact hit's second token waits for the restore; the steps after it do not.
    steps = [after - before for before, after in itertools.pairwise(times[1:])]
    return Answer(times[0] - began, statistics.median(steps) if steps else 0.0, tokens, stats)


def computed(prompt: Sequence[int], answer: Answer) -> int:
    """Return how many tokens of a prompt were not taken from the cache."""
    return len(prompt) - int(answer.stats["prefix_len"])


def shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many leading tokens two sequences have in common."""
    for at, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return at
    return min(len(left), len(right))


def flush() -> None:
    """Wait until everything saved is on its file tiers."""
    facade: Any = api
    facade.flush()


# -- processes of their own -----------------------------------------------------------------


def child(module: str, what: Mapping[str, Any], env: Mapping[str, str]) -> Any:
    """Run a benchmark's ``--child`` and return what it printed, from JSON.

    :param what: arguments, see :func:`given`.
    :param env: set for the child; the tiers that it does not name are off.
    :raises ChildFailed: it ended with an error.
    """
    others = {k: v for k, v in os.environ.items() if not k.startswith("ERLLAMA_CACHE_")}
    command = [sys.executable, "-m", module, "--child", json.dumps(what)]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=others | MEMORY_ONLY | dict(env),
    )
    if done.returncode != 0:
        raise ChildFailed((done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def given() -> dict[str, Any] | None:
    """Return a child's arguments; None in a process that is not one."""
    if sys.argv[1:2] != ["--child"]:
        return None
    what: dict[str, Any] = json.loads(sys.argv[2])
    return what
