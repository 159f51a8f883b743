"""A request right behind a reply, requests without the cache, traces, measures."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from erllama_py._cache.checksum import crc
from erllama_py._cache.ram import Extent
from erllama_py._engine import scheduler
from erllama_py._engine.frames import (
    Admitted,
    Cancel,
    Captured,
    Closed,
    Done,
    Lookup,
    Restored,
    Saved,
    Stored,
    Token,
    Trace,
)
from tests.enginepeer import MEMORY, MEMORY_BYTES, Peer, stub_peer, stub_pieces
from tests.waiting import wait_for

PROMPT = list(range(1000, 1150))
STEP_MS = 30


class Shelf:
    """Puts payloads at the end of the granted memory."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._end = MEMORY_BYTES

    def put(self, data: bytes) -> Extent:
        self._end -= -(-len(data) // 64) * 64
        self._peer.memory[self._end : self._end + len(data)] = data
        return Extent(MEMORY, self._end, len(data))

    def exact(self, number: int, tokens: list[int]) -> None:
        """Answer a lookup: all of it is there, with logits."""
        data = struct.pack("<I", len(tokens))
        logits = Stored(self.put(data), len(data), crc(data))
        pieces = stub_pieces(tokens, self.put)
        self._peer.plan(number, pieces, len(tokens), kind="exact", logits=logits)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the engine wait for requests and plans as long as a busy machine needs."""
    monkeypatch.setattr(scheduler, "GRACE_S", 1.0)
    monkeypatch.setattr(scheduler, "PLAN_WAIT_S", 5.0)


@pytest.fixture
def peer() -> Iterator[Peer]:
    with stub_peer(stub={"step_delay_ms": STEP_MS}) as peer:
        peer.grant()
        yield peer


@pytest.mark.usefixtures("patient")
def test_an_exact_hit_behind_a_reply_has_its_token_before_the_reply_is_stored(peer: Peer) -> None:
    shelf = Shelf(peer)
    peer.submit(1, PROMPT, 2)
    peer.cold(1)
    peer.wait(Done, 1)
    peer.submit(2, PROMPT, 3)
    shelf.exact(2, PROMPT)
    peer.finish(1, 2)
    assert peer.at(Token, 2) < peer.at(Closed, 1)
    assert peer.at(Admitted, 2) < peer.at(Token, 2)
    finish = [saved for saved in peer.seen(Saved) if saved.reason == "finish"]
    assert [(saved.id, saved.length) for saved in finish] == [(1, 152), (2, 153)]
    assert peer.wait(Done, 2).committed == 153


@pytest.mark.usefixtures("patient")
def test_a_request_that_the_reply_helps_asks_when_that_is_stored(peer: Peer) -> None:
    """It goes on from the reply, whose tail is not stored yet."""
    peer.submit(1, PROMPT, 2)
    peer.cold(1)
    peer.wait(Done, 1)
    reply = [token.token for token in peer.seen(Token, 1) if token.token is not None]
    peer.submit(2, [*PROMPT, *reply, 5], 1)
    peer.cold(2)
    peer.finish(1, 2)
    finish = next(saved for saved in peer.seen(Saved, 1) if saved.reason == "finish")
    assert peer.frames.index(finish) < peer.at(Lookup, 2)


def test_requests_without_a_pause_all_get_their_rows(peer: Peer) -> None:
    """Each comes in the grace of the one before; steps that store are made all the same."""
    shelf = Shelf(peer)
    peer.submit(1, PROMPT, 2)
    peer.cold(1)
    peer.wait(Done, 1)
    rows = []
    for number in range(2, 20):
        peer.submit(number, PROMPT, 1)
        shelf.exact(number, PROMPT)
        peer.wait(Done, number)
        rows.append(number)
    peer.finish(*rows)
    finish = [saved.id for saved in peer.seen(Saved) if saved.reason == "finish"]
    assert finish == [1, *rows]
    assert all(peer.wait(Done, number).saving for number in rows)


def test_early_requests_are_served_in_order_and_can_be_cancelled(peer: Peer) -> None:
    shelf = Shelf(peer)
    peer.submit(1, PROMPT, 2)
    peer.cold(1)
    peer.wait(Done, 1)
    for number in (2, 3, 4):
        peer.submit(number, PROMPT, 4)
    peer.send(Cancel(3))
    shelf.exact(2, PROMPT)
    shelf.exact(4, PROMPT)
    peer.finish(1, 2, 3, 4)
    assert peer.wait(Done, 3).finish_reason == "cancelled"
    assert peer.at(Done, 2) < peer.at(Token, 4)
    assert not peer.seen(Token, 3)


@pytest.mark.usefixtures("patient")
def test_a_plan_that_comes_after_its_request_was_cancelled_is_let_go(peer: Peer) -> None:
    shelf = Shelf(peer)
    peer.submit(1, PROMPT, 2)
    peer.cold(1)
    peer.wait(Done, 1)
    peer.submit(2, PROMPT, 4)
    peer.wait(Lookup, 2)
    peer.send(Cancel(2))
    peer.wait(Closed, 2)
    shelf.exact(2, PROMPT)
    assert peer.wait(Restored, 2).bad == []
    assert not peer.seen(Token, 2)


@pytest.mark.usefixtures("patient")
def test_damage_behind_an_early_token_costs_a_prefill_and_no_reply(peer: Peer) -> None:
    shelf = Shelf(peer)
    peer.submit(1, PROMPT, 2)
    peer.cold(1)
    peer.wait(Done, 1)
    peer.submit(2, PROMPT, 3)
    peer.wait(Lookup, 2)
    shelf.exact(2, PROMPT)
    peer.wait(Token, 2)
    pieces = stub_pieces(PROMPT, shelf.put)
    pieces[0] = pieces[0]._replace(crc=1)
    peer.finish(1, 2)
    peer.submit(3, PROMPT, 3)
    peer.plan(3, pieces, len(PROMPT))
    peer.finish(3)
    assert peer.wait(Restored, 3).corrupt
    assert peer.wait(Done, 3).committed == 153


def test_a_model_that_is_stopped_stores_the_replies_that_are_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "GRACE_S", 60.0)
    with stub_peer() as peer:
        peer.grant()
        peer.submit(1, PROMPT, 2)
        peer.cold(1)
        peer.wait(Done, 1)
        assert not peer.seen(Closed, 1)
    assert [saved.length for saved in peer.seen(Saved, 1) if saved.reason == "finish"] == [152]


def test_a_request_without_the_cache_neither_asks_nor_stores(peer: Peer) -> None:
    peer.submit(1, PROMPT, 3, cached=False)
    peer.finish(1)
    assert peer.wait(Admitted, 1).kind == "cold"
    assert not peer.wait(Done, 1).saving
    for kind in (Lookup, Captured, Saved):
        assert not peer.seen(kind)


def test_a_trace_has_the_logits_of_every_token(peer: Peer) -> None:
    shelf = Shelf(peer)
    for number in (1, 2):
        peer.submit(number, PROMPT, 4, trace=True)
        if number == 1:
            peer.cold(1)
        else:
            shelf.exact(2, PROMPT)
        peer.finish(number)
        assert peer.at(Trace, number) < peer.at(Done, number)
        trace = peer.wait(Trace, number)
        fd = peer.descriptors[peer.frames.index(trace)]
        data = os.pread(fd, 1000, 0)
        assert trace.rows == 4
        # The stub's logits are the length of the sequence that they follow.
        assert struct.unpack("<4I", data) == (150, 151, 152, 153)


def test_a_trace_of_a_request_that_draws_nothing_is_none(peer: Peer) -> None:
    peer.submit(1, PROMPT, 0, trace=True)
    peer.cold(1)
    peer.finish(1)
    assert not peer.seen(Trace)


def test_closed_tells_what_a_prefill_alone_took(peer: Peer) -> None:
    peer.submit(1, PROMPT, 3)
    peer.cold(1)
    peer.finish(1)
    closed = peer.wait(Closed, 1)
    assert closed.prefill_tokens == 150
    assert closed.prefill_ns >= 2 * STEP_MS * 1_000_000  # two slices


def test_a_prefill_beside_others_is_no_measure() -> None:
    with stub_peer(stub={"step_delay_ms": STEP_MS}, n_seq_max=2) as peer:
        peer.grant()
        peer.submit(1, PROMPT, 40)
        peer.cold(1)
        peer.wait(Token, 1)
        peer.submit(2, list(range(300, 600)), 1)
        peer.cold(2)
        peer.finish(2)
        assert peer.wait(Closed, 2).prefill_tokens == 0


def heads(count: int) -> list[list[int]]:
    """Prompts with one head of 640 tokens."""
    return [[*range(5000, 5640), *range(n * 100, n * 100 + 20)] for n in range(1, count + 1)]


def test_one_head_is_prefilled_once() -> None:
    with stub_peer(stub={"step_delay_ms": STEP_MS}, n_seq_max=4, n_ctx=4096) as peer:
        peer.grant()
        for number, prompt in enumerate(heads(4), 1):
            peer.submit(number, prompt, 8)
        peer.cold(1)
        peer.wait(Lookup, 2)
        # Its blocks are there when the next one asks, and none of those waits for the end.
        assert len(peer.seen(Captured, 1)) >= 10
        assert not peer.seen(Done, 1)
        pieces = stub_pieces(heads(1)[0], Shelf(peer).put, 640)
        for number in (2, 3, 4):
            peer.plan(number, pieces, 640)
        peer.finish(1, 2, 3, 4)
        for number in (2, 3, 4):
            assert peer.wait(Restored, number).shared == 640


def test_a_head_is_not_waited_for_by_others_than_it_serves() -> None:
    with stub_peer(stub={"step_delay_ms": STEP_MS}, n_seq_max=4, n_ctx=4096) as peer:
        peer.grant()
        prompt = heads(1)[0]
        peer.submit(1, prompt, 4)
        peer.cold(1)
        wait_for(lambda: len(peer.seen(Captured, 1)) >= 1)
        peer.submit(2, prompt[:64], 4)
        peer.cold(2)
        peer.submit(3, prompt, 4, cached=False)
        peer.wait(Admitted, 3)
        assert len(peer.seen(Captured, 1)) < 10
        peer.finish(1, 2, 3)


def test_a_head_whose_prefill_is_cancelled_is_computed_by_the_next() -> None:
    with stub_peer(stub={"step_delay_ms": STEP_MS}, n_seq_max=2, n_ctx=4096) as peer:
        peer.grant()
        for number, prompt in enumerate(heads(2), 1):
            peer.submit(number, prompt, 4)
        peer.cold(1)
        wait_for(lambda: len(peer.seen(Captured, 1)) >= 1)
        peer.send(Cancel(1))
        peer.cold(2)
        peer.finish(1, 2)
        assert peer.wait(Done, 2).committed == 664
