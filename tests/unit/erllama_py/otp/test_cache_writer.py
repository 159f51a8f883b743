"""The writer: saves by hand, so many at once."""

from __future__ import annotations

import os
import threading

import pytest

from erllama_py.otp import (
    cache_meta_srv,
    cache_writer,
)
from erllama_py.types import Atom
from tests.cachelab import Lab
from tests.handrows import META, META_KEY, counted, key_of, meta_of, reason
from tests.waiting import wait_for


def test_the_writer_saves_announces_and_counts(lab: Lab, disk: Atom):
    for name in ("cold", "continued", "finish", "evict", "shutdown", "unknown"):
        meta = meta_of(len(name), 5, save_reason=name)
        assert cache_writer.save(disk, "disk", meta, b"payload", 0) == key_of(len(name), 5)
    assert [
        counted(f"saves_{n}") for n in ("cold", "continued", "finish", "evict", "shutdown")
    ] == [1] * 5
    assert [row[5] for row in cache_meta_srv.dump()] == ["available"] * len(cache_meta_srv.dump())
    assert cache_writer.current() == 0


def test_a_save_that_does_not_publish_is_counted(lab: Lab, disk: Atom):
    cache_writer.save(disk, "disk", META, b"payload")
    assert reason(cache_writer.save, disk, "disk", META, b"payload") == "already_present"
    assert [counted(n) for n in ("saves_finish", "saves_dropped", "duplicate_dropped")] == [1, 1, 1]
    cache_writer.set_max_concurrent(1)
    cache_writer.acquire(0, holder="another")
    assert reason(cache_writer.save, disk, "disk", meta_of(9), b"", 0) == "max_concurrent"
    cache_writer.release(holder="another")
    cache_meta_srv.reserve_save(key_of(9), "disk", "another")
    assert reason(cache_writer.save, disk, "disk", meta_of(9), b"", 0) == "conflict"
    assert [counted(n) for n in ("saves_dropped", "duplicate_dropped")] == [3, 1]
    assert reason(cache_writer.save, "nobody", "disk", meta_of(8), b"", 0) == "noproc"
    assert cache_writer.current() == 0


def test_a_failed_save_gives_its_reservation_up(
    lab: Lab, disk: Atom, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        assert reason(cache_writer.save, disk, "disk", META, b"payload") == "enospc"
    assert cache_meta_srv.dump() == []
    assert cache_writer.save(disk, "disk", META, b"payload") == META_KEY


def test_places_are_taken_by_processes(lab: Lab):
    cache_writer.set_max_concurrent(2)
    assert cache_writer.max_concurrent() == 2
    assert cache_writer.release() == "ok"
    assert cache_writer.acquire(0) == "ok"
    assert cache_writer.acquire("infinity", holder="pid") == "ok"
    assert reason(lambda: cache_writer.acquire(0, holder="more")) == "max_concurrent"
    waiter = threading.Thread(target=cache_writer.acquire, args=(60_000,))
    waiter.start()
    cache_meta_srv.process_died("pid")
    waiter.join(30)
    wait_for(lambda: cache_writer.current() == 1)
    cache_writer.release()
    assert cache_writer.current() == 0
