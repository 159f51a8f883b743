"""Where stored KV came from, and what a lookup makes of it."""

from __future__ import annotations

import pytest

from erllama_py._cache.checksum import crc
from erllama_py._cache.grade import streamed
from erllama_py._cache.key import encode_tokens
from erllama_py._cache.lease import NewLogits, Tail
from erllama_py._cache.origin import UNKNOWN, Origin, interned
from tests.cachelab import BLOCK, THREADS, Lab, content, logits_of

IDS = list(range(100, 111))
S = streamed(THREADS)


@pytest.fixture
def lab():
    lab = Lab()
    yield lab
    lab.cache.close()


def store(lab, origins, logits=0, ids=IDS):
    """Store all of ``ids`` in pieces of these origins, and a row with logits of another."""
    tail = None
    with lab.lookup(ids) as lease:
        for start, origin in zip(range(0, len(ids), BLOCK), origins, strict=True):
            run = ids[start : start + BLOCK]
            data = content(run)
            if len(run) < BLOCK:
                tail = Tail(start, lab.put(data), len(data), crc(data), S, origin)
                break
            tokens = encode_tokens(run)
            lease.add_block(start, tokens, S, lab.put(data), len(data), crc(data), origin)
        data = logits_of(ids)
        last = NewLogits(lab.put(data), crc(data), False, logits) if logits else None
        assert lease.add_row(encode_tokens(ids), "finish", tail=tail, logits=last)


def label(lab, ids):
    with lab.lookup(ids) as lease:
        assert lease.label == lease.seen.label
        return lease.label


def test_one_stream_has_one_object():
    assert interned(3, 4) is interned(3, 4)
    assert interned(3, 4) == Origin(3, 4)


@pytest.mark.parametrize(
    ("origins", "labels"),
    [
        ([(5, 0), (5, 5), (5, 5)], ["stream", "stream", "stream"]),
        ([(5, 9), (5, 5), (6, 5)], ["stream", "stream", "stream"]),
        ([(5, 0), (6, 5), (7, 6)], ["stream", "stream", "stream"]),
        ([(5, 0), (5, 5), (5, 6)], ["stream", "stream", "token"]),
        ([(5, 0), (6, 6), (6, 6)], ["stream", "token", "token"]),
        ([(5, 0), (0, 5), (6, 0)], ["stream", "token", "token"]),
        ([(0, 0), (0, 0), (0, 0)], ["token", "token", "token"]),
    ],
)
def test_each_piece_has_to_stand_behind_what_it_was_computed_behind(lab, origins, labels):
    store(lab, [Origin(*one) for one in origins])
    assert [label(lab, [*IDS[:length], 1]) for length in (3, 8, 10)] == labels
    assert label(lab, IDS) == labels[-1]


@pytest.mark.parametrize(("logits", "expected"), [(6, "stream"), (5, "token"), (0, "stream")])
def test_the_logits_of_an_exact_hit_have_to_be_the_streams_too(lab, logits, expected):
    """Without logits the last token is decoded again."""
    store(lab, [Origin(5), Origin(5, 5), Origin(6, 5)], logits)
    with lab.lookup(IDS) as lease:
        assert (lease.kind, lease.logits is not None) == ("exact", logits > 0)
    assert label(lab, IDS) == expected


def test_a_block_that_is_there_keeps_its_origin(lab):
    store(lab, [Origin(5), Origin(5, 5)], ids=IDS[:8])
    with lab.space.go_on(encode_tokens([]), lab.lookup(IDS)._want) as lease:
        for start in (0, 4, 8):
            run = [*IDS, 7][start : start + BLOCK]
            data = content(run)
            new = lease.add_block(
                *(start, encode_tokens(run), S, lab.put(data), len(data), crc(data), Origin(6, 6))
            )
            assert new == (start == 8)
    with lab.lookup([*IDS, 7, 8]) as lease:
        assert [piece.origin for piece in lease.pieces] == [Origin(5), Origin(5, 5), Origin(6, 6)]
        assert lease.label == "token"
    assert label(lab, IDS[:8]) == "stream"


def test_files_keep_origins(tmp_path):
    numbers = [1, (1 << 64) - 1, 1 << 63]
    origins = [Origin(own, before) for own, before in zip(numbers, [0, *numbers], strict=False)]
    for turn in range(2):
        lab = Lab(path=tmp_path)
        if not turn:
            store(lab, origins, logits=numbers[-1])
        with lab.lookup(IDS) as lease:
            assert (lease.kind, lease.label) == ("exact", "stream")
            assert [piece.origin for piece in lease.pieces] == origins
        assert lab.cache.flush(10)
        lab.cache.close()


def test_files_of_before_say_nothing(tmp_path):
    lab = Lab(path=tmp_path)
    store(lab, [UNKNOWN] * 3)
    assert lab.cache.flush(10)
    lab.cache.close()
    lab = Lab(path=tmp_path)
    with lab.lookup(IDS) as lease:
        assert (lease.kind, lease.label) == ("exact", "token")
    lab.cache.close()
