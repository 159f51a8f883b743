"""Learning what a packed part looks like, on layouts made up here."""

from __future__ import annotations

import struct

from erllama_py._backends.llama_layout import PartLayout, Sample, learn

SEQ = 7
ROW = 40


def part(start: int, end: int, *, halves: int = 2, row: int = ROW, record: str = "<iIi") -> bytes:
    """Build a part in the engine's layout: head, then records and rows for each half."""
    out = struct.pack("<Ii", 0xAF143C58, SEQ)
    for half in range(halves):
        out += struct.pack("<II", 1, end - start)
        for pos in range(start, end):
            out += struct.pack(record, pos, 1, *([SEQ] if record == "<iIi" else [0, 0, SEQ]))
        out += struct.pack("<II", 0, 3)
        out += b"".join(bytes([half, pos % 251]) * (row // 2) for pos in range(start, end))
    return out


def samples(**kind: object) -> list[Sample]:
    return [
        Sample(a, b, SEQ, part(a, b, **kind))  # type: ignore[arg-type]
        for a, b in ((0, 16), (16, 32), (0, 37))
    ]


def learnt(**kind: object) -> PartLayout:
    layout = learn(samples(**kind))
    assert layout is not None
    return layout


def test_sizes_and_tables_are_learnt_for_one_and_two_halves() -> None:
    for halves in (1, 2):
        layout = learnt(halves=halves)
        data = part(640, 704, halves=halves)
        assert layout.size(64) == len(data)
        good = memoryview(bytearray(data))
        layout.make_canonical(good, 64)
        assert layout.fits(good, 640, 704)
        assert not layout.fits(good, 641, 705)
        assert good[4:8] == bytes(4)


def test_every_bit_of_every_table_counts() -> None:
    layout = learnt()
    data = bytearray(part(64, 72))
    layout.make_canonical(memoryview(data), 8)
    second = 8 + 8 + 8 * 12 + 8 + 8 * ROW + 8
    for table in (16, second):
        for bit in range(8 * 12 * 8):
            data[table + bit // 8] ^= 1 << bit % 8
            assert not layout.fits(memoryview(data), 64, 72)
            data[table + bit // 8] ^= 1 << bit % 8
    assert layout.fits(memoryview(data), 64, 72)


def test_making_canonical_changes_nothing_but_the_sequence() -> None:
    layout = learnt()
    data = bytearray(part(0, 5))
    layout.make_canonical(memoryview(data), 5)
    differing = {at for at, (a, b) in enumerate(zip(data, part(0, 5), strict=True)) if a != b}
    assert len(differing) == 1 + 2 * 5


def test_other_records_are_left_unchecked_and_untouched() -> None:
    layout = learnt(record="<iIiii")
    data = bytearray(part(9, 20, record="<iIiii"))
    assert layout.size(11) == len(data)
    layout.make_canonical(memoryview(data), 11)
    assert data == part(9, 20, record="<iIiii")
    assert layout.fits(memoryview(data), 0, 11)


def test_irregular_sizes_have_no_layout() -> None:
    odd = samples()
    odd[1] = odd[1]._replace(data=odd[1].data + b"\0")
    assert learn(odd) is None


def windowed(tokens: int, window: int, *, turn: int = 0) -> bytes:
    """Build a whole sequence whose second half has its last ``window`` cells, turned around."""
    first = part(0, tokens, halves=1)
    second = part(max(0, tokens - window), tokens)
    at = len(part(max(0, tokens - window), tokens, halves=1))
    data = bytearray(first + second[at:])
    table = len(first) + 8
    records = data[table : table + 12 * window]
    data[table : table + 12 * window] = records[12 * turn :] + records[: 12 * turn]
    return bytes(data)


def test_beyond_a_window_the_second_half_has_its_last_cells() -> None:
    layout = learn(samples(), window=40)
    assert layout is not None
    assert layout.size(64) == len(part(0, 64)) - 24 * (ROW + 12)
    for turn in (0, 5):
        data = bytearray(windowed(64, 40, turn=turn))
        assert len(data) == layout.size(64)
        layout.make_canonical(memoryview(data), 64)
        assert layout.fits(memoryview(data), 0, 64)
        assert not layout.fits(memoryview(data), 1, 65)
        second = len(part(0, 64, halves=1)) + 8
        for table, cells in ((16, 64), (second, 40)):
            for bit in range(cells * 12 * 8):
                data[table + bit // 8] ^= 1 << bit % 8
                assert not layout.fits(memoryview(data), 0, 64)
                data[table + bit // 8] ^= 1 << bit % 8
    assert layout.size(40) == len(part(0, 40))


def test_beyond_a_window_a_layout_without_tables_has_no_known_size() -> None:
    layout = learn(samples(record="<iIiii"), window=40)
    assert layout is not None
    assert (layout.size(40) > 0, layout.size(41)) == (True, 0)


def test_another_sequences_part_fits_as_a_whole_only() -> None:
    layout = learnt()
    data = bytearray(part(0, 8))
    assert layout.fits(memoryview(data), 0, 8)
    data[4:8] = bytes(4)
    assert not layout.fits(memoryview(data), 0, 8)
