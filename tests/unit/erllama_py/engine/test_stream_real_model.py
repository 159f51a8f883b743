"""At ``stream``, what is restored is what a stream had in its cells: on SmolLM2, every byte.

The model runs in this process.  Whenever a sequence was restored, and whenever one ends,
its cells are packed one by one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from erllama_py._cache.filetier import FileTier
from erllama_py._cache.store import Cache
from erllama_py._engine import worker
from erllama_py._engine.job import Job
from erllama_py._engine.request import Request
from erllama_py._engine.restore import Restore
from erllama_py._engine.scheduler import Scheduler
from erllama_py.config import EVERYDAY_POLICY
from tests import owncore
from tests.histories import ask
from tests.models import smollm2_path
from tests.owncore import OwnCore, own_core

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

TEXT = "The lighthouse keeper wrote one line in the log every evening. " * 30


class Watched(Scheduler):
    """Keeps the cells of sequences, by request."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.begun: dict[int, list[bytes]] = {}
        self.left: dict[int, list[bytes]] = {}

    def _restored(self, job: Job, restore: Restore) -> None:
        assert self._backend.length(job.slot) == restore.keep
        self.begun[job.id] = self._cells_of(job)
        super()._restored(job, restore)

    def _release(self, job: Job, *, park: bool = False, keep: bool = False) -> None:
        if job.active:
            self.left[job.id] = self._cells_of(job)
        super()._release(job, park=park, keep=keep)

    def _cells_of(self, job: Job) -> list[bytes]:
        cells = []
        for at in range(self._backend.length(job.slot)):
            out = bytearray(self._backend.packed_size(job.slot, at, at + 1))
            assert self._backend.pack(job.slot, at, at + 1, memoryview(out)) == len(out)
            cells.append(bytes(out))
        return cells


@contextmanager
def watched(
    cache: Cache,
    home: FileTier | None = None,
    *,
    parking: bool = False,
    chunk: int = 128,
    least: int = 16,
) -> Iterator[tuple[OwnCore, Watched]]:
    """Load the model in this process."""
    made: list[Watched] = []

    def scheduler(*args: Any) -> Watched:
        made.append(Watched(*args, parking=parking))
        return made[0]

    def here(config: dict[str, Any]) -> Any:
        return msgspec.structs.replace(parse(config), in_process=True)

    parse = owncore.parse_load
    bounds = {"min_tokens": least, "cold_min_tokens": least, "prefill_chunk_size": chunk}
    policy = {**EVERYDAY_POLICY, **bounds}
    threads = {"n_threads": 1, "n_threads_batch": 1}
    context = {"n_ctx": 1024, "n_seq_max": 2, "n_batch": chunk, "n_ubatch": chunk, **threads}
    config = {"model_path": smollm2_path(), "policy": policy, "context_opts": context}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "Scheduler", scheduler)
        patch.setattr(owncore, "parse_load", here)
        with own_core(cache, home, **config) as core:
            core.host.cache._worth = None  # what is there is restored, however slow this machine
            yield core, made[0]


def tokens_of(core: OwnCore) -> list[int]:
    tokens = array("I")
    tokens.frombytes(core.host.call("tokenize", TEXT.encode()))
    return tokens.tolist()


def begins(engine: Watched, request: Request, stream: list[bytes]) -> bool:
    """Whether what a request was restored to is the beginning of a stream."""
    cells = engine.begun[request.id]
    assert len(cells) >= request.prefix_len - 1 > 0
    return cells == stream[: len(cells)]


@pytest.mark.parametrize("parking", [False, True], ids=["restored", "in the context"])
def test_what_is_restored_is_what_the_stream_had(tmp_path: Path, parking: bool) -> None:
    cache = Cache(1 << 28)
    home = cache.add_tier("disk", "disk", tmp_path, 1 << 28)
    with watched(cache, home, parking=parking) as (core, engine):
        prompt = tokens_of(core)[:300]
        (first,) = ask(core, prompt, count=40)
        stream = engine.left[first.id]
        assert (first.exactness, len(stream)) == (None, 340)
        (again,) = ask(core, prompt, count=2)
        assert (again.kind, again.exactness) == ("exact", "stream")
        assert begins(engine, again, stream)
        # The next turn is another computation, behind all of the first.
        (then,) = ask(core, [*first.tokens, *prompt[:50]], count=40)
        assert (then.kind, then.prefix_len, then.exactness) == ("partial", 340, "stream")
        assert begins(engine, then, stream)
        longer, said = engine.left[then.id], then.tokens
        assert longer[:340] == stream
        assert cache.flush(60)
    cache = Cache(1 << 28)
    home = cache.add_tier("disk", "disk", tmp_path, 1 << 28)
    with watched(cache, home, parking=parking) as (core, engine):
        for tier in ("disk", "ram"):
            (request,) = ask(core, [*said, prompt[0 if tier == "ram" else 1]], count=2)
            assert (request.prefix_len, request.exactness) == (len(said), "stream")
            assert begins(engine, request, longer)
            assert cache.flush(60)


def test_what_two_streams_computed_is_neither_of_them() -> None:
    with watched(Cache(1 << 28), chunk=512, least=150) as (core, engine):
        prompt = tokens_of(core)[:300]
        # The first decodes what the second prefills, but its block is there first.  A whole
        # chunk, prefilled alone, would take its place.
        (decoded,) = ask(core, prompt[:50], count=60)
        assert len(decoded.tokens) > 64
        prompt = [*decoded.tokens, *prompt[:100]]
        (prefilled,) = ask(core, prompt, count=2)
        assert (decoded.kind, prefilled.kind) == ("cold", "cold")
        streams = [engine.left[one.id] for one in (decoded, prefilled)]
        (mixed,) = ask(core, [*prompt, 5], count=2)
        assert (mixed.kind, mixed.exactness) == ("partial", "token")
        assert not any(begins(engine, mixed, stream) for stream in streams)
