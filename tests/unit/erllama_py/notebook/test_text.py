"""Text fit to be shown, prompts filled, tables drawn."""

from __future__ import annotations

import pytest

from erllama_py._notebook.args import BadUsage
from erllama_py._notebook.reply import Reply
from erllama_py._notebook.text import (
    clean,
    close_fence,
    escape,
    fill,
    markdown_table,
    plain_table,
    size,
)


def test_control_characters_are_removed_and_nothing_else() -> None:
    assert clean("a\r\nb\tc\x1b[31md\x08\x7f\x9be\0") == "a\nb\tc[31mde"
    assert clean("naïve 🙂 日本 a\u200db") == "naïve 🙂 日本 a\u200db"


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ("no fence", "no fence"),
        ("```python\nx = 1", "```python\nx = 1\n```"),
        ("```\nx\n", "```\nx\n```"),
        ("```\nx\n```\nrest", "```\nx\n```\nrest"),
        ("````\n```\nx", "````\n```\nx\n````"),
        ("~~~\n```\nx", "~~~\n```\nx\n~~~"),
        ("   ```\nx\n   ```", "   ```\nx\n   ```"),
        ("    ```\nindented code", "    ```\nindented code"),
        ("``` not ` a fence\nx", "``` not ` a fence\nx"),
        ("```\n``` python\nx", "```\n``` python\nx\n```"),
    ],
)
def test_an_open_code_block_is_closed(text: str, closed: str) -> None:
    assert close_fence(text) == closed


def test_fill_replaces_names_once_and_evaluates_nothing() -> None:
    names = {"a": "one {{b}}", "b": 2, "answer": Reply("m", "", 0, 0)}
    names["answer"].text = "the reply"
    text = "{{a}} {{ b }} {b} $a {{answer}}"
    assert fill(text, names) == "one {{b}} 2 {b} $a the reply"


def test_fill_names_everything_that_is_missing() -> None:
    with pytest.raises(BadUsage, match="not defined: x, y"):
        fill("{{y}} {{x}} {{y}} {{a}}", {"a": 1})


@pytest.mark.parametrize("text", ["{{a.b}}", "{{f()}}", "{{}}", "{{a + 1}}"])
def test_fill_refuses_what_is_no_name(text: str) -> None:
    with pytest.raises(BadUsage, match="is not the name of a variable"):
        fill(text, {"a": 1})


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (28_580_032, "28.6 MB"), (253e6, "253 MB"),
     (4 << 30, "4.3 GB"), (999_999, "1.0 MB"), (2e15, "2000 TB")],
)  # fmt: skip
def test_sizes_have_three_digits(nbytes: float, text: str) -> None:
    assert size(nbytes) == text


def test_a_plain_table_aligns_numbers_to_the_right() -> None:
    table = plain_table(("name", "n"), [["a", 5], ["long one", 10]])
    assert table.splitlines() == ["name       n", "--------  --", "a          5", "long one  10"]


def test_a_markdown_table_shows_marks_as_text() -> None:
    table = markdown_table(("name", "n"), [["a|b <i>*x*</i>\n", 5]])
    assert table.splitlines()[1] == "| --- | ---: |"
    assert table.splitlines()[2:] == [r"| a\|b \<i\>\*x\*\</i\>  | 5 |"]


def test_escape_leaves_plain_words_alone() -> None:
    assert escape("cold: 5 tokens, 3/s") == "cold: 5 tokens, 3/s"
