"""Waiting for a row that is being written."""

from __future__ import annotations

import logging
import threading

import pytest

from erllama_py._cache.grade import streamed
from erllama_py._cache.key import encode_tokens
from tests.cachelab import Lab, content

IDS = [1, 2, 3, 4]


class Calls:
    """Counts its calls, and checks that each comes without the cache's lock."""

    def __init__(self, lab):
        self.lab = lab
        self.count = 0
        self.called = threading.Event()

    def __call__(self):
        self.lab.cache.snapshot()  # would hang if the lock were held
        self.count += 1
        self.called.set()


@pytest.fixture
def lab():
    lab = Lab()
    yield lab
    lab.cache.close()


@pytest.fixture
def calls(lab):
    return Calls(lab)


def publish(lab, lease):
    data = content(IDS)
    lease.add_block(0, encode_tokens(IDS), streamed(2), lab.put(data), len(data), 0)
    return lease.add_row(encode_tokens(IDS), "finish")

    return streamed(2)


@pytest.mark.parametrize("key", [b"?" * 32, "text", None])
def test_what_nobody_writes_is_not_waited_for(lab, calls, key):
    lab.space.await_row(key, 60, calls)
    assert calls.count == 1


def test_no_time_is_no_wait(lab, calls):
    with lab.lookup(IDS) as lease:
        lease.expect_row(lab.key(IDS))
        lab.space.await_row(lab.key(IDS), 0, calls)
        assert calls.count == 1
    assert calls.count == 1


def test_a_published_row_wakes_once(lab, calls):
    key = lab.key(IDS)
    with lab.lookup(IDS) as lease:
        lease.expect_row(key)
        assert lab.space.status(key) == "writing"
        lab.space.await_row(key, 60, calls)
        assert calls.count == 0
        assert publish(lab, lease) == key
        assert calls.count == 1
        assert lab.space.status(key) == "available"
        lab.space.await_row(key, 60, calls)
        assert calls.count == 2
    assert calls.count == 2


def test_another_requests_row_wakes_too(lab, calls):
    with lab.lookup(IDS) as one, lab.lookup(IDS) as two:
        one.expect_row(lab.key(IDS))
        lab.space.await_row(lab.key(IDS), 60, calls)
        publish(lab, two)
        assert calls.count == 1


@pytest.mark.parametrize("end", ["abandon", "close", "refused"])
def test_an_abandoned_row_wakes_once(lab, calls, end):
    key = lab.key(IDS)
    lease = lab.lookup(IDS)
    lease.expect_row(key)
    lab.space.await_row(key, 60, calls)
    if end == "abandon":
        lease.abandon_row(key)
        lease.abandon_row(key)
    elif end == "refused":
        assert lease.add_row(encode_tokens(IDS), "finish") is None
    else:
        lease.close()
    assert calls.count == 1
    assert lab.space.status(key) is None
    lease.close()
    assert calls.count == 1


def test_of_two_writers_both_must_give_up(lab, calls):
    one, two = lab.lookup(IDS), lab.lookup(IDS)
    for lease in (one, two):
        lease.expect_row(lab.key(IDS))
    lab.space.await_row(lab.key(IDS), 60, calls)
    one.close()
    assert calls.count == 0
    two.close()
    assert calls.count == 1


def test_time_ends_a_wait_and_nothing_wakes_it_again(lab, calls):
    with lab.lookup(IDS) as lease:
        lease.expect_row(lab.key(IDS))
        lab.space.await_row(lab.key(IDS), 0.01, calls)
        assert calls.called.wait(30)
        publish(lab, lease)
    assert calls.count == 1


def test_a_failing_callback_does_not_stop_the_next(lab, calls, caplog):
    def fails():
        raise RuntimeError("not today")

    with lab.lookup(IDS) as lease, caplog.at_level(logging.ERROR):
        lease.expect_row(lab.key(IDS))
        lab.space.await_row(lab.key(IDS), 60, fails)
        lab.space.await_row(lab.key(IDS), 60, calls)
        assert publish(lab, lease)
    assert calls.count == 1
    assert "not today" in caplog.text


def test_a_closed_lease_announces_nothing(lab):
    lease = lab.lookup(IDS)
    lease.close()
    lease.expect_row(lab.key(IDS))
    assert lab.space.status(lab.key(IDS)) is None
