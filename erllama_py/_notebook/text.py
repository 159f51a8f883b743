"""Pure text: making a model's words fit to be shown, filling prompts, drawing tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from erllama_py._notebook.args import BadUsage

__all__ = (
    "as_text",
    "clean",
    "close_fence",
    "escape",
    "fill",
    "markdown_table",
    "plain_table",
    "size",
)

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
r"""All controls but tab and newline.  A ``\r`` or ``\b`` makes JupyterLab process the whole
output again, an escape sequence would steer a terminal."""

_FENCE: Final = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})(.*)")
"""A code fence, by CommonMark 4.5; what follows backticks may hold none."""

_FILL: Final = re.compile(r"\{\{(.*?)\}\}")

_MARKUP: Final = re.compile(r"([\\`*_{}\[\]<>#|~$])")


def clean(text: str) -> str:
    """Return the text without control characters."""
    return _CONTROL.sub("", text)


def close_fence(text: str) -> str:
    """Close a code block that is still open at the end of a Markdown text."""
    fence = ""
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if not found:
            continue
        if not fence:
            fence = found[1]
        elif found[1].startswith(fence) and not found[2].strip():
            fence = ""
    if not fence:
        return text
    return text + ("" if text.endswith("\n") else "\n") + fence


def escape(text: str) -> str:
    """Return Markdown that shows the text as it is."""
    return _MARKUP.sub(r"\\\1", clean(text))


def fill(text: str, names: Mapping[str, Any]) -> str:
    """Replace ``{{name}}`` by the text of that variable.

    Only names are looked up, nothing is evaluated, and what was filled in is not
    searched again.

    :raises BadUsage: with all names that are missing, or what is no name.
    """
    wanted = [found.strip() for found in _FILL.findall(text)]
    odd = [name for name in wanted if not name.isidentifier()]
    if odd:
        raise BadUsage(
            f"{{{{{odd[0]}}}}} is not the name of a variable",
            "--fill evaluates nothing: assign the value to a name first",
        )
    missing = sorted({name for name in wanted if name not in names})
    if missing:
        raise BadUsage(f"not defined: {', '.join(missing)}", "the cell asks for them with --fill")
    return _FILL.sub(lambda found: as_text(names[found[1].strip()]), text)


def as_text(value: Any) -> str:
    """Return what a variable stands for in a prompt."""
    text = getattr(value, "text", value)  # an earlier reply stands for its text
    return text if isinstance(text, str) else str(value)


def size(nbytes: float) -> str:
    """Return a number of bytes in three digits: ``28.6 MB``."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if nbytes < 999.5:
            break
        nbytes, unit = nbytes / 1000, larger
    return f"{nbytes:.0f} {unit}" if unit == "B" or nbytes >= 99.95 else f"{nbytes:.1f} {unit}"


def plain_table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Draw a table for a terminal; numbers stand to the right."""
    texts = [[_cell(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *texts, strict=True)]
    align: list[Callable[[str, int], str]] = [
        str.rjust if _is_right(column) else str.ljust for column in _columns(heads, rows)
    ]
    lines = [list(heads), ["-" * width for width in widths], *texts]
    return "\n".join(
        "  ".join(
            put(cell, width) for put, cell, width in zip(align, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write a table in Markdown; cells are text, whatever marks they hold."""
    rule = ["---:" if _is_right(column) else "---" for column in _columns(heads, rows)]
    texts = [[escape(_cell(cell)) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(heads), rule, *texts])


def _cell(value: Any) -> str:
    return clean(str(value)).replace("\n", " ").replace("\t", " ")


def _columns(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [[row[number] for row in rows] for number in range(len(heads))]


def _is_right(column: list[Any]) -> bool:
    return bool(column) and all(isinstance(cell, (int, float)) for cell in column)
