"""The bytes of a container."""

from __future__ import annotations

import msgspec
import pytest

from erllama_py._cache.blockfile import (
    ALIGN,
    MAX_DESCRIPTION,
    Damaged,
    Entry,
    Foreign,
    Head,
    pack_head,
    pack_row,
    pack_use,
    unpack_head,
    unpack_row,
)
from erllama_py._cache.checksum import crc
from erllama_py._cache.grade import last_slice, streamed, whole_chunk
from erllama_py._cache.key import encode_tokens
from erllama_py._cache.origin import UNKNOWN, Origin
from erllama_py._cache.room import Room

HEAD = Head(64, 1024, b"\x11" * 32, b'{"model": "x"}', 1_700_000_000)
NO_KEY = bytes(32)

BLOCK = Entry(
    kind="block",
    parent=b"\x22" * 32,
    start=640,
    tokens=encode_tokens(range(64)),
    length=64,
    grade=whole_chunk(512),
    key=NO_KEY,
    nbytes=10_000,
    crc=0xDEADBEEF,
    reason="",
    canonical=0,
    created=1_700_000_001,
    hits=3,
    used=1_700_000_002,
)
TAIL = msgspec.structs.replace(
    BLOCK, tokens=encode_tokens([7]), length=1, grade=last_slice(512, 705)
)
ROW = msgspec.structs.replace(
    BLOCK,
    kind="row",
    tokens=encode_tokens([1, 2, 3]),
    length=707,
    grade=None,
    key=b"\x33" * 32,
    nbytes=4096,
    reason="finish",
    canonical=512,
)
BARE = msgspec.structs.replace(ROW, tokens=b"", length=640, nbytes=0, crc=0, canonical=0)
WHOLE = msgspec.structs.replace(
    BLOCK, kind="whole", tokens=b"", length=2000, grade=streamed(4), key=b"\x44" * 32
)

AT = HEAD.data + 5 * ALIGN


def packed(entry: Entry, slot: int = 9, head: Head = HEAD) -> bytes:
    size = -(-entry.nbytes // ALIGN) * ALIGN
    return pack_row(head, slot, entry, AT if size else 0, size)


def test_sizes():
    assert HEAD.row_bytes == 512
    assert HEAD.data == ALIGN + 1024 * 512
    assert Head(128, 3, b"", b"", 0).row_bytes == 768
    assert Head(128, 3, b"", b"", 0).data == 2 * ALIGN
    assert len(pack_head(HEAD)) == ALIGN


def test_a_head_round_trips_and_is_what_the_format_says():
    data = pack_head(HEAD)
    assert unpack_head(data) == HEAD
    assert data[:8] == b"erllamaB"
    numbers = [int.from_bytes(data[at : at + 4], "little") for at in range(8, 20, 4)]
    assert numbers == [1, 64, 1024]
    assert int.from_bytes(data[24:32], "little") == HEAD.data
    assert data[40:72] == HEAD.digest
    assert data[76:90] == HEAD.description
    assert int.from_bytes(data[-4:], "little") == crc(data[:-4])


def test_a_description_has_a_largest_size():
    full = HEAD._replace(description=b"d" * MAX_DESCRIPTION)
    assert MAX_DESCRIPTION >= 3000
    assert unpack_head(pack_head(full)) == full
    with pytest.raises(ValueError, match=f"at most {MAX_DESCRIPTION}"):
        pack_head(HEAD._replace(description=b"d" * (MAX_DESCRIPTION + 1)))
    with pytest.raises(ValueError, match="32 bytes"):
        pack_head(HEAD._replace(digest=b"short"))


def test_other_formats_and_later_versions_are_foreign():
    data = bytearray(pack_head(HEAD))
    data[8] = 2
    for other in (b"", b"erllamaB", b"KVC\x01" + bytes(ALIGN), bytes(data)):
        with pytest.raises(Foreign):
            unpack_head(other)


def test_every_bit_of_a_head_matters():
    data = pack_head(HEAD)
    for at in range(12, ALIGN, 37):
        wrong = bytearray(data)
        wrong[at] ^= 1 << at % 8
        with pytest.raises(Damaged):
            unpack_head(bytes(wrong))
    with pytest.raises(Damaged):
        unpack_head(data[:-1])


@pytest.mark.parametrize(
    "head", [HEAD._replace(block=0), HEAD._replace(rows=0), HEAD._replace(rows=1 << 21)]
)
def test_a_head_whose_numbers_make_no_sense_is_damaged_in_spite_of_its_checksum(head):
    with pytest.raises(Damaged, match="no sense"):
        unpack_head(pack_head(head))


@pytest.mark.parametrize("entry", [BLOCK, TAIL, ROW, BARE, WHOLE], ids=lambda one: one.kind)
def test_a_row_round_trips(entry):
    row = packed(entry)
    size = -(-entry.nbytes // ALIGN) * ALIGN
    assert len(row) == HEAD.row_bytes
    assert unpack_row(HEAD, 9, row) == (entry, AT if size else 0, size)


def test_a_row_of_zeros_is_free_whatever_its_use_says():
    assert unpack_row(HEAD, 0, bytes(512)) is None
    assert unpack_row(HEAD, 0, bytes(504) + pack_use(1, 2)) is None


def test_every_bit_of_a_row_but_its_use_matters():
    row = packed(BLOCK)
    for at in range(504):
        wrong = bytearray(row)
        wrong[at] ^= 1 << at % 8
        with pytest.raises(Damaged):
            unpack_row(HEAD, 9, bytes(wrong))
    found = unpack_row(HEAD, 9, row[:504] + pack_use(1 << 40, -1))
    assert found is not None
    assert (found[0].hits, found[0].used) == (0xFFFFFFFF, 0)


def test_a_row_is_good_only_in_its_place_and_file():
    row = packed(BLOCK)
    with pytest.raises(Damaged):
        unpack_row(HEAD, 8, row)
    with pytest.raises(Damaged):
        unpack_row(HEAD._replace(digest=b"\x12" * 32), 9, row)


WRONG = [
    {"kind": "node"},
    {"parent": b"short"},
    {"key": b"\x01" * 32},
    {"tokens": b"abc"},
    {"tokens": bytes(4 * 65), "length": 65},
    {"length": 63},
    {"tokens": b"", "length": 0},
    {"nbytes": 0},
    {"grade": None},
    {"reason": "finish"},
]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_an_entry_that_contradicts_itself_is_not_written(change):
    with pytest.raises(ValueError, match="entry: "):
        pack_row(HEAD, 9, msgspec.structs.replace(BLOCK, **change), AT, 3 * ALIGN)


def test_rows_and_wholes_have_their_rules_too():
    replace = msgspec.structs.replace
    for entry in (
        replace(ROW, reason="whim"),
        replace(ROW, grade=streamed(1)),
        replace(ROW, length=2),
        replace(WHOLE, tokens=b"abcd"),
        replace(WHOLE, length=2501),
        replace(BARE, crc=5),
    ):
        with pytest.raises(ValueError, match="entry: "):
            packed(entry)


@pytest.mark.parametrize(("offset", "size"), [(AT, 8192), (AT + 1, 12288), (ALIGN, 12288)])
def test_a_payload_must_fit_an_aligned_place_in_the_data(offset, size):
    with pytest.raises(ValueError, match="cannot be at"):
        pack_row(HEAD, 9, BLOCK, offset, size)


def test_room_can_be_claimed_where_it_is_free():
    room = Room(100)
    assert room.claim(40, 20)
    assert not room.claim(30, 20)
    assert not room.claim(40, 1)
    assert not room.claim(59, 5)
    assert not room.claim(90, 11)
    assert not room.claim(200, 1)
    assert room.claim(60, 40)
    assert room.claim(0, 40)
    assert (room.free, room.holes) == (0, [])
    room.give_back(40, 20)
    assert room.holes == [(40, 20)]
    assert not room.claim(0, 10)


def test_an_origin_is_in_bytes_that_were_zeros_before():
    """So files of before are read, as of unknown origin, and whoever wrote them reads ours."""
    known = msgspec.structs.replace(BLOCK, origin=Origin((1 << 64) - 1, 0x0102030405060708))
    with_it, without = packed(known), packed(BLOCK)
    assert without[-24:-8] == bytes(16)
    assert with_it[-24:-8] == b"\xff" * 8 + bytes(range(8, 0, -1))
    assert with_it[4:-24] == without[4:-24]
    assert unpack_row(HEAD, 9, without)[0].origin == UNKNOWN
    assert unpack_row(HEAD, 9, with_it)[0] == known
    # Of the longest tokens, too, they are no part.
    assert 136 + len(known.tokens) <= len(with_it) - 24
    wrong = bytearray(with_it)
    wrong[-20] ^= 1
    with pytest.raises(Damaged):
        unpack_row(HEAD, 9, bytes(wrong))
