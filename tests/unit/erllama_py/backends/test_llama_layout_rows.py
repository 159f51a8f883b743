"""Learning what a whole row with a state looks like, on layouts made up here."""

from __future__ import annotations

import struct

import pytest

from erllama_py._backends.llama_layout import PartLayout, Sample, learn

STATE = 60


def row(tokens: int, *, cells: bool, seq: int = 0) -> bytes:
    """Build a row in the engine's layout: cells of 20 bytes a token, then one state."""
    out = struct.pack("<Ii", 0xAF143C58, seq)
    if cells:
        out += struct.pack("<II", 1, tokens)
        for pos in range(tokens):
            out += struct.pack("<iIi", pos, 1, seq)
        out += struct.pack("<II", 0, 3) + bytes(range(20)) * tokens
    return out + struct.pack("<IiIII", 1, tokens - 1, 0, 0, 3) + bytes([tokens % 251]) * STATE


def learnt(*, cells: bool) -> PartLayout:
    layout = learn([Sample(0, n, 0, row(n, cells=cells)) for n in (16, 32, 37)])
    assert layout is not None
    return layout


@pytest.mark.parametrize("cells", [True, False])
def test_every_bit_of_a_states_record_counts(cells: bool) -> None:
    layout = learnt(cells=cells)
    data = bytearray(row(90, cells=cells, seq=3))
    assert layout.size(90) == len(data)
    layout.make_canonical(memoryview(data), 90)
    assert data == row(90, cells=cells)
    assert layout.fits(memoryview(data), 0, 90)
    assert not layout.fits(memoryview(data), 0, 89)
    record = len(data) - STATE - 20
    for bit in range(8 * 12):
        data[record + bit // 8] ^= 1 << bit % 8
        assert not layout.fits(memoryview(data), 0, 90)
        data[record + bit // 8] ^= 1 << bit % 8
    assert layout.fits(memoryview(data), 0, 90)
