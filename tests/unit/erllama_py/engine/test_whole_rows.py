"""Models whose sequences cannot be cut: rows are whole sequences."""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator

import pytest

from erllama_py._cache.checksum import crc
from erllama_py._cache.lease import Piece
from erllama_py._cache.ram import Extent
from erllama_py._engine.frames import (
    Admitted,
    Captured,
    Closed,
    Done,
    Lookup,
    Restored,
    Saved,
    SavedWhole,
    Stored,
    Token,
)
from tests.enginepeer import MEMORY, Peer, stub_peer

PROMPT = list(range(1000, 1300))
AT = 32 << 20
"""Where in the memory the tests put what they have plans name."""


@pytest.fixture
def peer() -> Iterator[Peer]:
    with stub_peer(stub={"whole_rows": True}) as peer:
        assert (peer.info.blocks, peer.info.whole_rows) == (False, True)
        peer.grant(blocks=0)
        yield peer


def payload(peer: Peer, row: SavedWhole) -> bytes:
    """What came with a row's descriptor."""
    fd = peer.descriptors[peer.frames.index(row)]
    data = os.pread(fd, row.nbytes + 1, 0)
    assert len(data) == row.nbytes
    assert crc(data) == row.crc
    return data


def logits_of(peer: Peer, row: SavedWhole) -> int:
    assert row.logits is not None
    extent = row.logits.extent
    data = peer.memory[extent.offset : extent.offset + row.logits.nbytes]
    assert crc(data) == row.logits.crc
    return int(struct.unpack("<I", data)[0])


def piece(peer: Peer, tokens: list[int]) -> Piece:
    data = array("I", tokens).tobytes()
    peer.memory[AT : AT + len(data)] = data
    return Piece(9, Extent(MEMORY, AT, len(data)), len(data), crc(data), 0, len(tokens))


def logits(peer: Peer, length: int) -> Stored:
    data = struct.pack("<I", length)
    peer.memory[AT - 64 : AT - 60] = data
    return Stored(Extent(MEMORY, AT - 64, 64), 4, crc(data))


def run(peer: Peer, number: int, tokens: list[int], count: int) -> list[int]:
    peer.submit(number, tokens, count)
    peer.cold(number)
    peer.finish(number)
    return [one.token for one in peer.seen(Token, number) if one.token is not None]


def test_a_prompt_and_its_reply_leave_whole_rows_with_logits(peer: Peer) -> None:
    reply = run(peer, 1, PROMPT, 5)
    cold, finish = peer.seen(SavedWhole, 1)
    assert (cold.reason, cold.length) == ("cold", 300)
    assert (finish.reason, finish.length) == ("finish", 305)
    assert cold.canonical
    assert not finish.canonical
    assert payload(peer, cold) == array("I", PROMPT).tobytes()
    assert payload(peer, finish) == array("I", PROMPT + reply).tobytes()
    assert (logits_of(peer, cold), logits_of(peer, finish)) == (300, 305)
    assert not peer.seen(Captured)
    assert not peer.seen(Saved)


def test_continued_rows_come_while_decoding() -> None:
    with stub_peer(stub={"whole_rows": True}, policy={"continued_interval": 10}) as peer:
        peer.grant(blocks=0)
        run(peer, 1, PROMPT, 25)
        rows = [(row.reason, row.length) for row in peer.seen(SavedWhole, 1)]
    assert rows == [("cold", 300), ("continued", 310), ("continued", 320), ("finish", 325)]


def test_a_row_is_restored_and_gone_on_from(peer: Peer) -> None:
    peer.submit(1, PROMPT, 2)
    peer.plan(1, [piece(peer, PROMPT[:200])], 200)
    peer.finish(1)
    assert peer.wait(Admitted, 1).prefix_len == 200
    rows = peer.seen(SavedWhole, 1)
    assert [row.length for row in rows] == [300, 302]
    assert payload(peer, rows[0]) == array("I", PROMPT).tobytes()


def test_an_exact_hit_draws_from_its_logits_and_stores_its_reply_only(peer: Peer) -> None:
    peer.submit(1, PROMPT, 2)
    peer.plan(1, [piece(peer, PROMPT)], 300, kind="exact", logits=logits(peer, 300))
    peer.finish(1)
    assert peer.at(Token, 1) < peer.at(Restored, 1)
    assert [(row.reason, row.length) for row in peer.seen(SavedWhole, 1)] == [("finish", 302)]


def test_damaged_logits_send_it_back_to_the_first_token(peer: Peer) -> None:
    """One token less cannot be cut off."""
    stored = logits(peer, 300)
    peer.memory[AT - 64] ^= 1
    peer.submit(1, PROMPT, 2)
    peer.plan(1, [piece(peer, PROMPT)], 300, kind="exact", logits=stored)
    peer.finish(1)
    assert peer.wait(Admitted, 1).kind == "cold"
    assert peer.wait(Restored, 1).bad == []
    assert [row.length for row in peer.seen(SavedWhole, 1)] == [300, 302]


def test_a_damaged_row_is_a_miss(peer: Peer) -> None:
    bad = piece(peer, PROMPT[:200])
    peer.memory[AT] ^= 1
    peer.submit(1, PROMPT, 2)
    peer.plan(1, [bad], 200)
    peer.finish(1)
    assert (peer.wait(Restored, 1).bad, peer.wait(Restored, 1).corrupt) == ([9], True)
    assert peer.wait(Done, 1).committed == 302


def test_a_prompt_alone_leaves_one_row(peer: Peer) -> None:
    peer.submit(1, PROMPT, mode="prefill_only")
    peer.cold(1)
    peer.finish(1)
    (row,) = peer.seen(SavedWhole, 1)
    assert row.length == 300
    assert logits_of(peer, row) == 300


def test_a_preempted_request_goes_on_from_a_row_of_its_own() -> None:
    slow = {"whole_rows": True, "step_delay_ms": 1.0}  # or the first is done before the second
    with stub_peer(stub=slow, n_ctx=512, n_seq_max=2) as peer:
        peer.grant(blocks=0)
        for number in (1, 2):
            peer.submit(number, list(range(number * 1000, number * 1000 + 60)), 300)
            peer.cold(number)
        again = peer.wait(Lookup, 2, count=2)
        assert again.resume is not None
        evicted = next(row for row in peer.seen(SavedWhole, 2) if row.reason == "evict")
        data = payload(peer, evicted)
        assert again.resume.startswith(data)
        peer.memory[AT : AT + len(data)] = data
        extent = Extent(MEMORY, AT, len(data))
        end = evicted.length
        peer.plan(2, [Piece(3, extent, len(data), crc(data), 0, end)], end)
        peer.finish(1, 2)
        assert len(peer.seen(Token, 2)) == 300
        assert peer.wait(Done, 2).committed == 360
        assert peer.seen(Closed, 1)
