"""``erlang:phash2/1`` against values of the runtime (OTP 25)."""

from __future__ import annotations

import pytest

from erllama_py._backends.phash2 import phash2_binary, phash2_embed


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", 13708901),
        (b"hello", 47480723),
        (b"world", 82372638),
        (b"a", 112802447),
        (b"1", 59054609),
        (b"user:", 61424945),
        (b"twelve_bytes", 39054913),
        (b"thirteen_byte", 96251524),
        (b"abcdefghijklmnopqrstuvw", 103130300),
        (b"abcdefghijklmnopqrstuvwx", 73490061),
        (b"\0", 96315567),
        (b"\xff" * 11, 85982562),
        (b"x y", 42664464),
    ],
)
def test_binaries(data: bytes, value: int) -> None:
    assert phash2_binary(data) == value


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        ([], 80463600),
        ([0], 92128995),
        ([256], 96495587),
        ([1, 2, 3], 133891508),
        ([1, 2, 3, 4], 56367402),
        ([1, 2, 3, 4, 5], 100274327),
        ([255, 256, 1], 126746764),
        ([1, 2, 300, 4, 5, 6, 7, 8, 900], 87055574),
        ([47480723, 82372638], 40286221),
        ([134217727, 1], 57673443),
    ],
)
def test_embed_tuples(tokens: list[int], value: int) -> None:
    assert phash2_embed(tokens) == value
