"""What a run of a model process is given of the cache's memory, and that it ends with it."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator

import pytest

from erllama_py._backends.base import BLOCK, BackendInfo
from erllama_py._backends.stub import StubBackend
from erllama_py._cache.grade import whole_chunk
from erllama_py._cache.ram import Extent
from erllama_py._cache.store import Cache
from erllama_py._engine.caching import ModelCache
from erllama_py._engine.frames import (
    Captured,
    Frame,
    Grants,
    Lookup,
    Plan,
    Segment,
    Stored,
)
from erllama_py._engine.request import Request
from erllama_py._engine.supply import Supply, Target
from erllama_py.config import EVERYDAY_POLICY, GenerateOptions, LoadConfig, parse_load
from tests.waiting import wait_for

BYTES = 1000
PROMPT = array("I", range(BLOCK + 10))


class Process:
    """A run of a model process: it keeps what it was sent."""

    def __init__(self) -> None:
        self.told: list[Frame] = []

    def send(self, frame: Frame, fd: int | None = None) -> None:
        assert (fd is not None) == isinstance(frame, Segment)
        if fd is not None:
            os.fstat(fd)
        self.told.append(frame)

    @property
    def segments(self) -> list[int]:
        return [frame.index for frame in self.told if isinstance(frame, Segment)]

    @property
    def blocks(self) -> list[Extent]:
        grants = [frame.blocks for frame in self.told if isinstance(frame, Grants)]
        return [extent for one in grants for extent in one]

    @property
    def plan(self) -> Plan:
        plan = self.told[-1]
        assert isinstance(plan, Plan)
        return plan


@pytest.fixture
def cache() -> Iterator[Cache]:
    cache = Cache(1 << 20)
    yield cache
    cache.close()


def supply_of(cache: Cache, process: Process, blocks: int = 3) -> Supply:
    return Supply(cache, process, blocks=Target(blocks, BYTES), logits=Target(2, BYTES))


def fill(cache: Cache) -> None:
    """Leave no memory to be granted."""
    for nbytes in (BYTES, 1):
        while cache.reserve(nbytes) is not None:
            pass


# -- a supply -----------------------------------------------------------------------------


def test_a_segment_is_known_before_extents_in_it_are(cache: Cache) -> None:
    process = Process()
    supply_of(cache, process).start()
    *segments, grants = process.told
    assert all(isinstance(frame, Segment) for frame in segments)
    assert isinstance(grants, Grants)
    assert (len(grants.blocks), len(grants.logits)) == (3, 2)
    assert {extent.segment for extent in grants.blocks + grants.logits} == set(process.segments)


def test_what_is_spent_is_replaced_and_not_taken_back(cache: Cache) -> None:
    process = Process()
    supply = supply_of(cache, process)
    supply.start()
    one, two, _ = process.blocks
    supply.spent(one, two)
    supply.replenish()
    wait_for(lambda: len(process.blocks) == 5)
    supply.end()
    used = cache.counters.snapshot()["bytes_ram"]
    assert used == one.size + two.size
    cache.release(one)
    cache.release(two)


def test_a_segment_is_sent_once_to_each_process(cache: Cache) -> None:
    first, second = Process(), Process()
    supplies = [supply_of(cache, process) for process in (first, second)]
    for supply in supplies:
        supply.start()
        supply.introduce(first.segments * 2)
        supply.end()
    assert first.segments == second.segments
    assert len(set(first.segments)) == len(first.segments)


def test_a_file_that_is_gone_cannot_be_introduced(cache: Cache) -> None:
    with pytest.raises(KeyError):
        supply_of(cache, Process()).introduce([12345])


def test_nothing_is_granted_after_the_end(cache: Cache) -> None:
    process = Process()
    supply = supply_of(cache, process)
    supply.end()
    supply.start()
    supply.replenish()
    assert process.told == []


def test_a_full_cache_grants_what_it_has(cache: Cache) -> None:
    fill(cache)
    process = Process()
    supply = supply_of(cache, process)
    supply.start()
    supply.end()
    assert process.told == []


# -- a model's ----------------------------------------------------------------------------


@pytest.fixture
def config() -> LoadConfig:
    return parse_load(
        {"backend": "erllama_model_stub", "in_process": True, "policy": EVERYDAY_POLICY}
    )


@pytest.fixture
def info(config: LoadConfig) -> BackendInfo:
    return StubBackend(config.backend_config).info


def asked(part: ModelCache, process: Process) -> Request:
    """Look up the prompt for a request of this process."""
    request = Request("infer", GenerateOptions(), tokens=PROMPT)
    request.life = process
    part.admitted(request, 0)
    part.lookup(request, Lookup(request.id, None, 0), process)
    return request


def test_what_a_late_answer_told_a_process_that_ended_is_told_the_next_one(
    cache: Cache, config: LoadConfig, info: BackendInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lookup that waited for a row is answered on a timer, perhaps just as its process ends."""
    part = ModelCache(cache, config)
    first, second = Process(), Process()
    part.attach(info, BLOCK, first)
    request = asked(part, first)
    stored = Stored(first.blocks[0], info.block_bytes, 0)
    part.captured(request, Captured(request.id, 0, BLOCK, stored, whole_chunk(BLOCK), 0))
    part.closed(request)

    def meanwhile(_: object) -> bool:
        monkeypatch.undo()
        part.detach()
        fill(cache)  # or a grant would introduce the segment
        part.attach(info, BLOCK, second)
        return True

    monkeypatch.setattr(cache, "alone", meanwhile)
    part.closed(asked(part, first))
    assert second.told == []

    part.closed(asked(part, second))
    assert [piece.extent for piece in second.plan.pieces] == [stored.extent]
    assert second.segments == [stored.extent.segment]
    part.detach()
