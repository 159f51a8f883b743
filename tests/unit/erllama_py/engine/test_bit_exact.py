"""Exactness ``bit``: warm equals cold, logits and greedy tokens, bit for bit.

The model runs in this process behind a backend that keeps a copy of the logits every
token is drawn from.  The cold side caches nothing; the warm side is given every way of
being warm: exact repeats, extensions with and without the reply, and heads shared with
an earlier prompt up to any token.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator

import msgspec
import pytest

from erllama_py._backends import open_backend
from erllama_py._backends.base import Backend, Sampler
from erllama_py._cache.store import Cache
from erllama_py._engine import worker
from erllama_py._engine.caching import ModelCache
from erllama_py._engine.host import ModelHost
from erllama_py._engine.request import Request
from erllama_py.config import EVERYDAY_POLICY, parse_load, parse_request
from tests.models import gemma3_path, smollm2_path

PROMPTS = 50
REPLY = 6

drawn: list[bytes] = []
"""Logits of the running request's tokens, in order."""


class Recording:
    """A backend that keeps what tokens are drawn from."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)

    def sample(self, sampler: Sampler, row: int) -> int:
        logits = bytearray(self._backend.info.logits_bytes)
        self._backend.copy_logits(row, memoryview(logits))
        drawn.append(bytes(logits))
        return self._backend.sample(sampler, row)

    def sample_stored(self, sampler: Sampler, logits: memoryview) -> int:
        drawn.append(bytes(logits))
        return self._backend.sample_stored(sampler, logits)


class Loaded:
    """A model in this process, one slot."""

    def __init__(self, path: str, *, cached: bool) -> None:
        config = parse_load(
            {
                "model_path": path,
                "context_opts": {"n_ctx": 2048, "n_threads": 2, "n_threads_batch": 2},
                "policy": EVERYDAY_POLICY,
                "exactness": "bit",
                "cache": cached,
            }
        )
        self._config = msgspec.structs.replace(config, in_process=True)
        self.cache = Cache(2 << 30)
        ignore = lambda *_: None  # noqa: E731 - three callbacks that nobody needs here
        self._host = ModelHost(
            path,
            self._config,
            ModelCache(self.cache, self._config),
            on_up=ignore,
            on_down=ignore,
            on_gone=ignore,
        )
        self._host.load()

    def run(self, tokens: list[int]) -> tuple[list[int], list[bytes], str, int]:
        """Generate greedily; return tokens, their logits, the hit and its length."""
        drawn.clear()
        parsed = parse_request({"response_tokens": REPLY}, "bit", None)
        request = Request("complete", parsed.generate, tokens=array("I", tokens))
        self._host.submit(request)
        result = request.wait()
        # The finish row is stored after the reply: let it, before the next lookup.
        self._host.call("detokenize", b"")
        return result["generated"], list(drawn), request.kind, request.prefix_len

    def close(self) -> None:
        self._host.unload()


@pytest.fixture(params=[smollm2_path, gemma3_path], ids=["smollm2", "gemma3-swa"])
def pair(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Loaded, Loaded]]:
    """A model that caches nothing and one that caches everything."""
    monkeypatch.setattr(
        worker, "open_backend", lambda config, log=None: Recording(open_backend(config, log))
    )
    path = request.param()
    cold, warm = Loaded(path, cached=False), Loaded(path, cached=True)
    yield cold, warm
    cold.close()
    warm.close()


def next_prompt(
    chance: random.Random, earlier: list[list[int]], replies: list[list[int]]
) -> list[int]:
    """Make a prompt of 20 to 1500 tokens, related to an earlier one or to none."""
    length = round(20 * 75 ** chance.random())
    fresh = [chance.randrange(300, 20_000) for _ in range(length)]
    if not earlier:
        return fresh
    which = chance.randrange(len(earlier))
    match chance.randrange(4):
        case 0:
            prompt = earlier[which]
        case 1:
            prompt = earlier[which] + replies[which] + fresh[:150]
        case 2:
            prompt = earlier[which][: chance.randrange(1, len(earlier[which]) + 1)] + fresh[:300]
        case _:
            prompt = fresh
    return (prompt + fresh)[: max(20, min(len(prompt), 1500))]


@pytest.mark.model
@pytest.mark.timeout(900)
def test_warm_equals_cold_bit_for_bit(pair: tuple[Loaded, Loaded]) -> None:
    cold, warm = pair
    chance = random.Random(20)
    prompts: list[list[int]] = []
    replies: list[list[int]] = []
    hits: list[tuple[str, int, int]] = []
    for number in range(PROMPTS):
        prompt = next_prompt(chance, prompts, replies)
        expected, logits, _, _ = cold.run(prompt)
        for _ in range(2 if number % 5 == 0 else 1):
            tokens, same, kind, prefix = warm.run(prompt)
            hits.append((kind, prefix, len(prompt)))
            assert tokens == expected, hits[-1]
            assert [a == b for a, b in zip(same, logits, strict=True)] == [True] * len(logits), (
                hits[-1]
            )
        prompts.append(prompt)
        replies.append(expected)
    kinds = [kind for kind, _, _ in hits]
    # The comparison means something only if the warm side was warm in every way.
    assert kinds.count("exact") >= 10
    assert kinds.count("partial") >= 10
    assert kinds.count("cold") >= 5
    assert warm.cache.counters.snapshot()["corrupt_files"] == 0
