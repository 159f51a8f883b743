"""When what is stored is written to files."""

from __future__ import annotations

import math

import pytest

from erllama_py._cache import backlog
from erllama_py._cache.backlog import LATEST_S, SETTLE_S, Backlog
from erllama_py._cache.saver import BATCH_BYTES, Job
from erllama_py._cache.tier import RAM
from erllama_py._cache.trie import Blob
from tests.cachelab import CHUNK, THREADS, Lab, Run
from tests.waiting import wait_for

PROMPT = list(range(1, 23))
NEVER_S = 3600.0


@pytest.fixture
def space():
    return Lab().space


def jobs(space, *sizes, at=0.0):
    """Make jobs that come one a second."""
    return [Job(space, Blob({RAM: None}, size, 0), at + n) for n, size in enumerate(sizes)]


def filled(memory, made):
    waiting = Backlog(memory)
    return waiting, [waiting.add(job) for job in made]


def test_nothing_is_never_due():
    assert Backlog(1 << 30).due(None) == Backlog(1 << 30).due(5.0) == math.inf


def test_while_requests_run_the_oldest_waits_for_their_end(space):
    waiting, _ = filled(1 << 30, jobs(space, 64, 64, at=10.0))
    assert waiting.due(None) == 10.0 + LATEST_S


def test_once_they_are_over_it_is_written_soon_after(space):
    waiting, _ = filled(1 << 30, jobs(space, 64, 64, at=10.0))
    assert waiting.due(idle_since=11.0) == 11.0 + SETTLE_S
    assert waiting.due(idle_since=3.0) == 10.0 + SETTLE_S


def test_a_moment_between_two_requests_is_not_their_end(space):
    waiting, _ = filled(1 << 30, jobs(space, 64, at=10.0))
    assert waiting.due(idle_since=10.0 + LATEST_S - 0.01) == 10.0 + LATEST_S


def test_a_whole_batch_waits_for_nobody(space):
    made = jobs(space, BATCH_BYTES - 64, 63, 1, 1, at=10.0)
    waiting, told = filled(1 << 30, made)
    assert told == [True, False, True, False]
    assert waiting.due(None) == 10.0 + SETTLE_S
    assert waiting.take(10.0 + SETTLE_S) == made
    assert waiting.due(None) == math.inf


def test_of_a_small_memory_a_part_is_a_batch(space):
    waiting, told = filled(8 * 64, jobs(space, 32, 32, at=10.0))
    assert told == [True, True]
    assert waiting.due(None) == 10.0 + SETTLE_S


def test_what_came_later_stays(space):
    made = jobs(space, 1, 2, 3)
    waiting, _ = filled(1 << 30, made)
    assert waiting.take(1.5 + SETTLE_S) == made[:2]
    assert len(waiting) == 1
    assert waiting.take(0.0, all_of_it=True) == made[2:]
    assert not waiting.take(0.0, all_of_it=True)


def test_a_request_that_runs_is_not_idleness():
    lab = Lab()
    assert lab.cache._shared.idle_since is not None
    with lab.lookup(PROMPT), lab.lookup([7] * 9) as other:
        other.close()
        other.close()  # counted once
        assert lab.cache._shared.idle_since is None
    assert lab.cache._shared.idle_since is not None


def queued(lab):
    """Count what waits to be written."""
    return lab.cache.snapshot()["saving"]["queued"]


def on_disk(lab):
    """Count the bytes that are written."""
    return lab.cache.counters.snapshot()["bytes_disk"]


def stored(lab, lease):
    run = Run(lab, lease, PROMPT, (), "token", CHUNK, THREADS, canonical=True)
    run.save(len(PROMPT), "finish", logits=True)


def test_what_a_request_leaves_is_written_when_it_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(backlog, "LATEST_S", NEVER_S)
    lab = Lab(1 << 22, path=tmp_path / "kv")
    with lab.lookup(PROMPT) as lease:
        stored(lab, lease)
        assert queued(lab)
    wait_for(lambda: on_disk(lab) and not queued(lab))
    lab.cache.close()


@pytest.mark.parametrize(("memory", "latest_s"), [(1 << 22, SETTLE_S), (1 << 13, NEVER_S)])
def test_a_long_request_is_written_while_it_runs(tmp_path, monkeypatch, memory, latest_s):
    """Because it has waited for long enough, or takes too much of the memory."""
    monkeypatch.setattr(backlog, "LATEST_S", latest_s)
    lab = Lab(memory, segment_bytes=1 << 12, path=tmp_path / "kv")
    with lab.lookup(PROMPT) as lease:
        stored(lab, lease)
        wait_for(lambda: on_disk(lab))
    lab.cache.close()


def test_flushing_waits_for_no_request(tmp_path, monkeypatch):
    monkeypatch.setattr(backlog, "LATEST_S", NEVER_S)
    lab = Lab(1 << 22, path=tmp_path / "kv")
    with lab.lookup(PROMPT) as lease:
        stored(lab, lease)
        assert lab.cache.flush()
        assert on_disk(lab)
        assert not queued(lab)
    lab.cache.close()
