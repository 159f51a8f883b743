"""Calls from other threads: in order, all of them, and without holding up the loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from erl_bridge.runtime.inbox import BATCH, Inbox


def test_calls_of_each_thread_keep_their_order() -> None:
    """Also while the loop is draining."""
    seen: list[tuple[int, int]] = []

    async def main() -> None:
        inbox = Inbox()

        def producer(number: int) -> None:
            for i in range(2000):
                inbox.put(seen.append, (number, i))

        threads = [threading.Thread(target=producer, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        while len(seen) < 6000:  # noqa: ASYNC110  # turns of the loop are what is counted
            await asyncio.sleep(0)
        for thread in threads:
            thread.join()

    asyncio.run(main())
    for number in range(3):
        assert [i for n, i in seen if n == number] == list(range(2000))


def test_the_loop_gets_its_turn() -> None:
    """A queue longer than a batch is not drained in one turn."""
    lengths: list[int] = []

    async def main() -> None:
        inbox = Inbox()
        for _ in range(BATCH * 3):
            inbox.put(int)
        while len(inbox):
            await asyncio.sleep(0)
            lengths.append(len(inbox))

    asyncio.run(main())
    assert len(lengths) >= 3


def test_a_failing_call_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged."""
    seen: list[int] = []

    async def main() -> None:
        inbox = Inbox()
        inbox.put(seen.append, 1)
        inbox.put(int, "x")
        inbox.put(seen.append, 2)
        while len(seen) < 2:  # noqa: ASYNC110  # the same
            await asyncio.sleep(0)

    asyncio.run(main())
    assert seen == [1, 2]
    assert "invalid literal" in caplog.text


def test_closing_runs_what_is_queued_and_takes_no_more() -> None:
    """The last messages of a stream are sent, later ones are not an error."""
    seen: list[int] = []

    async def main() -> Inbox:
        inbox = Inbox()
        for i in range(BATCH * 2):
            inbox.put(seen.append, i)
        inbox.close()
        assert seen == list(range(BATCH * 2))
        return inbox

    inbox = asyncio.run(main())
    inbox.put(seen.append, -1)
    assert -1 not in seen


def test_a_loop_that_is_gone_is_no_error() -> None:
    """A thread may outlive the node it sends to."""

    async def main() -> Inbox:
        return Inbox()

    inbox = asyncio.run(main())
    inbox.put(int)
    inbox.put(int)
