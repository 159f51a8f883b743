"""Whole characters out of fragments that split them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from erllama_py._engine.utf8 import Utf8Assembler


@given(st.text(), st.integers(1, 5))
def test_any_text_cut_anywhere_comes_back_whole(text: str, step: int) -> None:
    data = text.encode()
    assembler = Utf8Assembler()
    parts = [assembler.feed(data[i : i + step]) for i in range(0, len(data), step)]
    assert "".join(parts) + assembler.flush() == text


def test_half_a_character_waits_for_the_other_half() -> None:
    assembler = Utf8Assembler()
    assert assembler.feed(b"a\xc3") == "a"
    assert assembler.feed(b"\xa9") == "é"


def test_bytes_that_are_no_text_show_as_replacement_characters() -> None:
    assembler = Utf8Assembler()
    assert assembler.feed(b"\xff!") == "�!"
    assert assembler.feed(b"\xe2\x82") == ""
    assert assembler.flush() == "�"
