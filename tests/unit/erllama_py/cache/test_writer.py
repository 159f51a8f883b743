"""Places for saves: never more than there are, none lost with its holder."""

from __future__ import annotations

import math
import threading

import pytest

from erllama_py._cache.writer import Places
from erllama_py.errors import BadCall, ErllamaError
from tests.waiting import wait_for


def full(places: Places, holder: object) -> bool:
    try:
        places.acquire(holder, 0)
    except ErllamaError as error:
        return bool(error.reason == "max_concurrent")
    return False


def test_no_more_than_the_limit_hold_a_place():
    places = Places(2)
    assert [full(places, name) for name in "abc"] == [False, False, True]
    assert (places.current, places.limit) == (2, 2)
    places.release("a")
    assert not full(places, "c")
    assert full(places, "a")


def test_a_holder_has_one_place():
    places = Places(2)
    assert [full(places, "a"), full(places, "a")] == [False, False]
    assert places.current == 1
    places.release("a")
    places.release("a")
    assert places.current == 0


def test_a_timeout_ends_the_wait():
    places = Places(1)
    places.acquire("a", 0)
    with pytest.raises(ErllamaError, match="1 saves are running"):
        places.acquire("b", 20)


@pytest.mark.parametrize("how", ["release", "holder_died", "limit"])
@pytest.mark.parametrize("timeout", [60_000, math.inf])
def test_who_waits_gets_the_next_place(how: str, timeout: float):
    places = Places(1)
    places.acquire("a", 0)
    waiter = threading.Thread(target=places.acquire, args=("b", timeout))
    waiter.start()
    if how == "limit":
        places.limit = 2
    else:
        getattr(places, how)("a")
    waiter.join(30)
    assert not waiter.is_alive()
    assert full(places, "c")


def test_a_dead_threads_place_is_free():
    places = Places(1)
    thread = threading.Thread(target=lambda: places.acquire(threading.current_thread(), 0))
    thread.start()
    thread.join()
    assert not full(places, "b")
    assert places.current == 1


def test_a_thread_that_dies_while_others_wait_is_noticed():
    places = Places(1)
    leave = threading.Event()

    def hold() -> None:
        places.acquire(threading.current_thread(), 0)
        leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    wait_for(lambda: places.current == 1)
    waiter = threading.Thread(target=places.acquire, args=("b", 60_000))
    waiter.start()
    leave.set()
    waiter.join(30)
    assert not waiter.is_alive()
    holder.join()


def test_a_lowered_limit_waits_for_those_who_hold():
    places = Places(2)
    assert [full(places, "a"), full(places, "b")] == [False, False]
    places.limit = 1
    places.release("a")
    assert full(places, "c")
    places.release("b")
    assert not full(places, "c")


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, None])
def test_a_limit_is_a_number_from_one(limit: object):
    with pytest.raises(BadCall):
        Places(limit)
