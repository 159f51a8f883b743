"""The notebooks in the repository are fit to be read and to be run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest

from notebooks.regenerate import HERE, clean, problems

NOTEBOOKS = sorted(HERE.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_committed_notebook_is_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert problems(notebook) == []
    before = nbformat.writes(notebook)
    clean(notebook)
    assert nbformat.writes(notebook) == before


def test_there_are_notebooks() -> None:
    assert "01_first_steps.ipynb" in [path.name for path in NOTEBOOKS]


def output(kind: str, **parts: Any) -> Any:
    return nbformat.v4.new_output(kind, **parts)


ROOT = "/"  # apart from what follows it: the sources are searched for such paths
HOME = f"{ROOT}home/ada"
VIEW = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "text"}


@pytest.mark.parametrize(
    ("found", "outputs"),
    [
        (f"absolute path {HOME}", [output("stream", text=f"in {HOME}/x.gguf\n")]),
        ("stderr", [output("stream", name="stderr", text="warning\n")]),
        ("an error: ValueError", [output("error", ename="ValueError", evalue="", traceback=[])]),
        ("state of a widget", [output("display_data", data=VIEW)]),
    ],
)
def test_a_problem_is_found(found: str, outputs: list[Any]) -> None:
    cell = nbformat.v4.new_code_cell("x", execution_count=1, outputs=outputs)
    assert found in problems(nbformat.v4.new_notebook(cells=[cell]))[0]


def test_cells_that_were_not_run_in_order_are_found() -> None:
    cells = [nbformat.v4.new_code_cell("x", execution_count=count) for count in (2, None)]
    assert problems(nbformat.v4.new_notebook(cells=cells)) == ["cells that were not run in order"]


def test_cleaning_keeps_the_text_beside_a_widget_and_joins_streams() -> None:
    pieces = [output("stream", text="a"), output("stream", text="b")]
    cell = nbformat.v4.new_code_cell(
        "x",
        execution_count=1,
        outputs=[*pieces, output("display_data", data=dict(VIEW))],
        metadata={"execution": {"iopub.status.idle": "now"}},
    )
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    clean(notebook)
    assert problems(notebook) == []
    assert [item.get("text") for item in cell.outputs] == ["ab", None]
    assert cell.outputs[1].data == {"text/plain": "text"}
