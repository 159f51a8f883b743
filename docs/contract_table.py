"""The directive ``contract``: the tables of ``reference/contract`` as pages show them.

A file there holds tables, a table rows, a row a name, what it means, and the tests that
show it::

    [stats]
    prefill_ms = ["milliseconds to the end of the prefill", "tests/unit/x.py::test_y"]

``tests/arch/test_contract.py`` says which row is missing, and which test is not there.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FOLDER = Path(__file__).parent / "reference" / "contract"
COLUMNS = (("", 24), ("Meaning", 40), ("Shown by", 36))


class ContractTables(SphinxDirective):
    """Show every table of one file."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a heading and a table for each table of the file."""
        path = FOLDER / f"{self.arguments[0]}.toml"
        self.env.note_dependency(str(path))
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        shown: list[nodes.Node] = []
        for title, rows in tables.items():
            shown += [nodes.rubric("", title), table_of(rows)]
        return shown


def table_of(rows: dict[str, list[str]]) -> nodes.table:
    """Return the table of these rows."""
    group = nodes.tgroup(cols=len(COLUMNS))
    group += [nodes.colspec(colwidth=width) for _, width in COLUMNS]
    head, body = nodes.thead(), nodes.tbody()
    head += row_of([[nodes.paragraph("", title)] for title, _ in COLUMNS])
    for name, (meaning, *tests) in rows.items():
        cells = [
            [nodes.paragraph("", "", nodes.literal("", name))],
            [nodes.paragraph("", meaning)],
            [test_lines(test) for test in tests],
        ]
        body += row_of(cells)
    group += [head, body]
    table = nodes.table()
    table += group
    return table


def test_lines(test: str) -> nodes.line_block:
    """Return a test's name, and below it its file: in one line they are too long."""
    path, _, name = test.partition("::")
    block = nodes.line_block()
    for text in (name, path.removeprefix("tests/")):
        line = nodes.line("", text)
        line.indent = 0
        block += line
    return block


def row_of(cells: list[list[Any]]) -> nodes.row:
    """Return a row of cells."""
    row = nodes.row()
    for content in cells:
        entry = nodes.entry()
        entry += content
        row += entry
    return row


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("contract", ContractTables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
