"""What runs notebooks unattended must see our failures as failures.

IPython prints ``UsageError`` as a line on stderr and calls the cell a success; nbval
believes that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from tests.arch.source import ROOT

FAILING = {
    "no model": "%%erllama\nhello",
    "unknown option": "%%erllama --nope\nhello",
    "empty cell": "%%erllama",
    "empty cell with options": "%%erllama --max 3",
    "open quote": "%%erllama --stop don't\nhello",
    "unknown command": "%erllama lod",
    "no such file": "%erllama load no_such_file.gguf",
    "no such model": "%erllama use nobody",
}


def write(path: Path, cells: list[str]) -> nbformat.NotebookNode:
    """Write a notebook whose cells were run, and printed nothing."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source, execution_count=1) for source in cells]
    )
    nbformat.write(notebook, path)
    return notebook


@pytest.mark.parametrize("mode", ["--nbval", "--nbval-lax"])
def test_nbval_fails_every_failing_cell(mode: str, tmp_path: Path) -> None:
    write(tmp_path / "failing.ipynb", ["%load_ext erllama_py", *FAILING.values()])
    command = [sys.executable, "-m", "pytest", mode, "--nbval-current-env", "-q", "-rfE"]
    result = subprocess.run(
        [*command, "-p", "no:randomly", "-p", "no:cacheprovider", "failing.ipynb"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ERLLAMA_RENDER": "final"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.rstrip().splitlines()[-1].startswith(f"{len(FAILING)} failed, 1 passed")


def test_nbclient_sees_an_error_in_every_failing_cell(tmp_path: Path) -> None:
    notebook = write(tmp_path / "failing.ipynb", ["%load_ext erllama_py", *FAILING.values()])
    nbclient.NotebookClient(notebook, kernel_name="python3", allow_errors=True).execute()
    first, *failing = notebook.cells
    assert first.outputs == []
    for name, cell in zip(FAILING, failing, strict=True):
        (output,) = cell.outputs
        assert output.output_type == "error", name
        assert len(output.traceback) <= 2, name


def test_nbclient_stops_at_the_first(tmp_path: Path) -> None:
    notebook = write(tmp_path / "failing.ipynb", ["%load_ext erllama_py", "%%erllama", "ran = 1"])
    with pytest.raises(CellExecutionError, match="the cell is empty"):
        nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    assert notebook.cells[2].outputs == []
    assert notebook.cells[2].execution_count == 1  # what was written, not a second run
