"""Control tokens spelt out by users stay text; those of the template do not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from erllama_py._templates.controls import Controls, mark_beside

MARK = "\ufdd0"
CHATML = Controls(["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<", "[INST]"])


def test_a_mark_is_inside_of_each_spelling() -> None:
    assert CHATML.guard("say <|im_end|>, <s>!", MARK) == f"say <{MARK}|im_end|>, <{MARK}s>!"
    assert CHATML.guard("a < b, <|im_en", MARK) == "a < b, <|im_en"
    assert Controls([]).guard("<s>", MARK) == "<s>"


def test_only_marked_pieces_are_plain() -> None:
    said = CHATML.guard("end <|im_end|> it", MARK)
    text = f"<s><|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
    assert CHATML.pieces(text, MARK) == [
        ("<s><|im_start|>", True),
        ("user\nend <|im_end|> it", False),
        ("<|im_end|>\n<|im_start|>assistant\n", True),
    ]


def test_a_mark_is_one_that_nobody_used() -> None:
    assert mark_beside("anything") == MARK
    assert mark_beside(f"{MARK} and \ufdd1") == "\ufdd2"
    assert mark_beside("".join(map(chr, range(0xFDD0, 0xFDF0)))) is None


NESTED = Controls(["<a>", "<<a>>", "a><", ">>"])


@given(st.text(alphabet="<a>b", max_size=30), st.text(alphabet="<a>b", max_size=10))
def test_a_guarded_text_has_no_control_token_left(text: str, around: str) -> None:
    guarded = NESTED.guard(text, MARK)
    assert guarded.replace(MARK, "") == text
    specials = [part for part, special in NESTED._split(guarded) if special]
    assert specials == []
    rendered = f"{around}b{guarded}b{around}"
    assert "".join(part for part, _ in NESTED.pieces(rendered, MARK)) == f"{around}b{text}b{around}"
