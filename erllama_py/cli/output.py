"""What commands print: JSON for scripts, aligned columns for people.  Pure but for ``emit``."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Sequence
from typing import Any

import click

__all__ = ("age", "columns", "count", "emit", "json_option", "size")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def emit(value: Any) -> None:
    """Print a value as JSON; keys in bytes as hex."""
    # JSON has a way to write what the terminal's encoding cannot.
    utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    click.echo(json.dumps(value, indent=2, default=_plain, ensure_ascii=not utf8))


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of cells, each column as wide as its widest cell."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def size(nbytes: float) -> str:
    """Say a number of bytes as people do, in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} GiB"


def age(seconds: float) -> str:
    """Say how long something is ago."""
    for limit, step, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{max(0.0, seconds) / step:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def count(number: int, noun: str) -> str:
    """Say how many there are of something."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)
