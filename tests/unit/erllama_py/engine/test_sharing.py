"""Heads taken over from sequences of the context, on SmolLM2: same tokens, no restore.

The model runs in this process; its scheduler is made to park whatever it may.  What a
request says is compared with a model that caches nothing.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator

import msgspec
import pytest

from erllama_py._cache.store import Cache
from erllama_py._engine import worker
from erllama_py._engine.caching import ModelCache
from erllama_py._engine.frames import Restored
from erllama_py._engine.host import ModelHost
from erllama_py._engine.request import Request
from erllama_py._engine.scheduler import Scheduler
from erllama_py._engine.tokenbytes import unpack_tokens
from erllama_py.config import EVERYDAY_POLICY, parse_load, parse_request
from tests.models import smollm2_path
from tests.waiting import wait_for

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

N_CTX = 1024
ONE_THREAD = {"n_threads": 1, "n_threads_batch": 1}
"""Threads that wait for each other would make a busy machine slower still."""
TEXT = "The lighthouse keeper wrote one line in the log every evening. " * 30


class Loaded:
    """A model in this process, and its scheduler within reach."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slots: int, *, cached: bool) -> None:
        made: list[Scheduler] = []
        restored: list[Restored] = []

        def scheduler(*args, **options) -> Scheduler:
            made.append(Scheduler(*args, parking=True, **options))
            return made[0]

        with monkeypatch.context() as patch:
            patch.setattr(worker, "Scheduler", scheduler)
            config = parse_load(
                {
                    "model_path": smollm2_path(),
                    "context_opts": {"n_ctx": N_CTX, "n_seq_max": slots, **ONE_THREAD},
                    "policy": EVERYDAY_POLICY,
                    "cache": cached,
                }
            )
            config = msgspec.structs.replace(config, in_process=True)
            cache = ModelCache(Cache(1 << 30), config)
            told = cache.restored

            def keep(request: Request, frame: Restored) -> None:
                restored.append(frame)
                told(request, frame)

            cache.restored = keep  # type: ignore[method-assign]
            ignore = lambda *_: None  # noqa: E731 - three callbacks that nobody needs here
            self.host = ModelHost("m", config, cache, ignore, ignore, ignore)
            self.host.load()
        self.scheduler = made[0]
        self.restored = restored

    def submit(self, tokens: list[int], count: int = 12, exactness: str = "token") -> Request:
        parsed = parse_request({"response_tokens": count}, exactness, None)
        request = Request("complete", parsed.generate, tokens=array("I", tokens))
        self.host.submit(request)
        return request

    def run(self, tokens: list[int], count: int = 12, exactness: str = "token") -> list[int]:
        generated: list[int] = self.submit(tokens, count, exactness).wait()["generated"]
        self.settle()
        return generated

    def settle(self) -> None:
        """Wait until every request has given back what it held, and check the books."""
        wait_for(lambda: not self.scheduler._jobs, 20)
        slots = self.scheduler._slots
        backend = self.scheduler._backend
        for slot in range(backend.info.n_seq_max):
            parked = slots.parked.get(slot, array("I"))
            assert backend.length(slot) == len(parked) == slots._cells.length(slot)

    @property
    def shared(self) -> int:
        """Tokens taken over so far."""
        return sum(frame.shared for frame in self.restored)


@pytest.fixture(params=[1, 3], ids=["one slot", "three slots"])
def warm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loaded]:
    one = Loaded(monkeypatch, request.param, cached=True)
    yield one
    one.host.unload()


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loaded]:
    one = Loaded(monkeypatch, 1, cached=False)
    yield one
    one.host.unload()


def tokens_of(model: Loaded, text: str) -> list[int]:
    return unpack_tokens(model.host.call("tokenize", text.encode())).tolist()


def test_the_next_turn_goes_on_in_its_own_cells(warm: Loaded, cold: Loaded) -> None:
    prompt = tokens_of(warm, TEXT)[:200]
    for turn in range(3):
        reply = warm.run(prompt)
        assert reply == cold.run(prompt)
        assert bool(warm.shared) == bool(turn)
        prompt = prompt + reply + tokens_of(warm, f" Then, on day {turn},")
    # Nothing was restored but by taking over what was there.
    assert all(frame.load_ns == 0 for frame in warm.restored)
    assert len(warm.scheduler._slots.parked) == 1


def test_a_branch_is_cut_from_what_is_parked(warm: Loaded, cold: Loaded) -> None:
    prompt = tokens_of(warm, TEXT)[:200]
    warm.run([*prompt, 500, 501, 502])
    branch = [*prompt, 600, 601]
    assert warm.run(branch) == cold.run(branch)
    assert warm.shared >= 192
    assert warm.run(branch[:100]) == cold.run(branch[:100])


def test_other_prompts_push_parked_ones_out_and_all_are_right(warm: Loaded, cold: Loaded) -> None:
    chance = random.Random(5)
    base = tokens_of(warm, TEXT)
    heads = [base[:180], [*base[10:150], 99, 98], base[20:200]]
    for number in range(6):
        prompt = [*chance.choice(heads)[: chance.randrange(70, 200)], 700 + number]
        assert warm.run(prompt, 5) == cold.run(prompt, 5)


def test_requests_with_one_head_share_its_cells(
    monkeypatch: pytest.MonkeyPatch, cold: Loaded
) -> None:
    warm = Loaded(monkeypatch, 4, cached=True)
    head = tokens_of(warm, TEXT)[:256]
    prompts = [[*head, *range(900 + 20 * n, 915 + 20 * n)] for n in range(4)]
    # Four times 271 tokens and their room would not fit beside each other uncounted.
    requests = [warm.submit(prompt, 40) for prompt in prompts]
    most = 0

    def over() -> bool:
        nonlocal most
        most = max(most, len(warm.scheduler._slots.running))
        assert warm.scheduler._slots.used() <= N_CTX
        return all(request.over for request in requests)

    wait_for(over, 60)
    warm.settle()
    assert most == 4
    assert warm.shared >= 3 * 256
    # Beside others the last bits differ; the first tokens of these have no near ties.
    for request, prompt in zip(requests, prompts, strict=True):
        assert request.wait()["generated"][:4] == cold.run(prompt, 4)
    warm.host.unload()


def test_bit_requests_find_no_parked_cells_and_leave_none(warm: Loaded, cold: Loaded) -> None:
    prompt = tokens_of(warm, TEXT)[:150]
    warm.run(prompt)
    assert warm.scheduler._slots.parked
    assert warm.run(prompt, exactness="bit") == cold.run(prompt, exactness="bit")
    assert not warm.scheduler._slots.parked
    assert warm.shared == 0


def test_parked_cells_make_room(warm: Loaded) -> None:
    base = tokens_of(warm, TEXT * 3)
    warm.run(base[:300], 4)
    warm.run([7, *base[: N_CTX - 250]], 4)
    warm.run([9, *base[: N_CTX - 300]], 250)  # NoSlot comes while it decodes
    assert warm.scheduler._slots.used() <= N_CTX
