"""Several models in one core: one comes and goes while others are talked to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from erllama_py import api
from erllama_py._engine.registry import core
from erllama_py.errors import ErllamaError
from erllama_py.testing import stub_model
from tests.models import gemma3_path, smollm2_path
from tests.waiting import wait_for

THREADS = {"n_threads": 1, "n_threads_batch": 2}
SLOW = {"step_delay_ms": 1}
ROUNDS = 5
COLD = {"cache": False}
"""What a request finds in the cache is the affair of other tests."""


def left() -> dict[str, Any]:
    """What a model could leave behind in this process and below it."""
    mapped = Path("/proc/self/maps").read_text()
    return {
        "processes": {one.pid for one in psutil.Process().children(recursive=True)},
        "threads": sorted(one.name for one in threading.enumerate()),
        "shared": sorted(Path("/dev/shm").iterdir()),
        "segments": mapped.count("memfd:"),
        "ids": {host.id for host in core().hosts()},
        "memory": api.model_memory(),
    }


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def waited_for(expected: Callable[[], bool]) -> None:
    """Threads end a moment after what they did is seen."""
    wait_for(expected, seconds=10)


class Talker(threading.Thread):
    """Asks a model the same again and again, until told to end."""

    def __init__(self, model: api.Model, prompt: list[int], count: int) -> None:
        super().__init__(name=f"talker-{model}")
        self.model = model
        self._prompt = prompt
        self._count = count
        self._ends = threading.Event()
        self.replies: list[list[int]] = []
        self.wrong: list[Any] = []

    def said(self) -> list[int]:
        events = list(api.infer(self.model, self._prompt, {"response_tokens": self._count}))
        if events[-1].kind != "done":
            self.wrong.append(events[-1].reason)
        return [event.token_id for event in events if event.kind == "token_id"]

    def run(self) -> None:
        while not self._ends.is_set():
            self.replies.append(self.said())

    def end(self) -> None:
        self._ends.set()
        self.join()


def talk_while(models: list[api.Model], prompts: list[list[int]], count: int, do: Any) -> None:
    """Run ``do`` while the models are talked to; their replies are those of before."""
    talkers = [Talker(model, prompt, count) for model, prompt in zip(models, prompts, strict=True)]
    alone = [talker.said() for talker in talkers]
    pids = [api.model_info(model)["pid"] for model in models]
    for talker in talkers:
        talker.start()
    try:
        do(talkers)
    finally:
        for talker in talkers:
            talker.end()
    for talker, first, pid in zip(talkers, alone, pids, strict=True):
        assert talker.wrong == []
        assert talker.replies
        assert {len(reply) for reply in (first, *talker.replies)} == {count}
        if api.model_info(talker.model)["backend"] == "erllama_model_llama":
            assert all(reply == first for reply in talker.replies)
        else:  # the stub says one word, another in each request
            assert all(len(set(reply)) == 1 for reply in talker.replies)
        assert api.model_info(talker.model)["pid"] == pid


def test_loads_and_unloads_leave_streams_and_nothing_else(tmp_path: Path) -> None:
    """Processes, threads, descriptors, shared memory: as many as before, after each round."""
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(Path(smollm2_path()).read_bytes()[: 1 << 16])
    with ExitStack() as stack:
        own = {"in_process": False, "stub_opts": SLOW}
        a, b = (stack.enter_context(stub_model(name, **own)) for name in "ab")

        def come_and_go(talkers: list[Talker]) -> None:
            with stub_model("c", in_process=False) as c:  # what is made once is made
                api.complete(c, "x y", {"response_tokens": 2})
            names = {talker.name for talker in talkers}
            before, open_before = left(), descriptors()
            assert names <= set(before["threads"])
            for _ in range(ROUNDS):
                with stub_model("c", in_process=False) as c:
                    assert api.complete(c, "x y", {"response_tokens": 2})["generated"]
                    assert len(left()["processes"]) == len(before["processes"]) + 1
                for path in (torn, tmp_path / "none.gguf"):
                    with pytest.raises(ErllamaError) as caught:
                        api.load_model("c", {"model_path": str(path), "context_opts": THREADS})
                    assert caught.value.reason in ("load_failed", "malformed_gguf")
            waited_for(lambda: left() == before)
            waited_for(lambda: descriptors() <= open_before)

        talk_while([a, b], [[1, 2, 3], [4, 5, 6]], 20, come_and_go)


def test_ids_are_free_while_streams_of_others_run() -> None:
    with stub_model("a", stub_opts=SLOW) as a:
        seen: list[Any] = []
        forget = api.watch(lambda *event: seen.append(event))

        def take_turns(_: list[Talker]) -> None:
            for _ in range(50):
                with stub_model("c") as c:
                    api.complete(c, "x", {"response_tokens": 1})

        try:
            talk_while([a], [[1, 2, 3]], 20, take_turns)
        finally:
            forget()
        events = [(what, reason) for what, name, _, reason in seen if name == "c"]
        assert events == [("up", None), ("down", "shutdown")] * 50
        assert all(name == "c" for _, name, *_ in seen)


@pytest.mark.model
def test_real_models_say_the_same_while_another_comes_and_goes() -> None:
    context = {**THREADS, "n_ctx": 256}
    config = {"context_opts": context, **COLD}
    with ExitStack() as stack:
        a = stack.enter_context(api.load_model("a", {"model_path": smollm2_path(), **config}))
        b = stack.enter_context(api.load_model("b", {"model_path": gemma3_path(), **config}))
        prompts = [api.tokenize(model, "The capital of France is") for model in (a, b)]

        def come_and_go(talkers: list[Talker]) -> None:
            for _ in range(3):
                with api.load_model("c", {"model_path": smollm2_path(), **config}) as c:
                    assert c.complete("One", response_tokens=2)["generated"]
            waited_for(lambda: all(talker.replies for talker in talkers))

        talk_while([a, b], prompts, 8, come_and_go)


def test_one_budget_of_the_cache_for_all() -> None:
    """Rows of both count together, and each finds its own."""
    cache = core().cache
    with stub_model("a", fingerprint=b"a" * 32) as a, stub_model("b", fingerprint=b"b" * 32) as b:
        tokens = list(range(100, 300))
        for model in (a, b):
            assert api.prefill_only(model, tokens)["finish_key"] is not None
        used = cache.counters.snapshot()["bytes_ram"]
        assert 0 < used <= cache.snapshot(limit=0)["tiers"][0]["quota"]
        for model in (a, b):
            assert api.list_cached_prefixes(model, tokens) == len(tokens)
        api.unload(a)
        assert api.list_cached_prefixes(b, tokens) == len(tokens)
