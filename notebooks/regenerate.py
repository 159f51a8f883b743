"""Run the notebooks and keep their outputs, without what differs from run to run.

Usage: python notebooks/regenerate.py [NOTEBOOK ...]     all of this folder by default

Edit a notebook anywhere, then run this before it is committed.  Replies and times are
those of the machine it ran on; cells that show them are tagged ``nbval-ignore-output``.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_SECONDS = 300
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
ABSOLUTE_PATH = re.compile(r"(?<![\w.~:/])/(?:home|root|Users|tmp|usr|opt|var|mnt)/[\w.-]+")


def run(notebook: nbformat.NotebookNode, folder: Path = HERE) -> None:
    """Execute a notebook in place.

    :raises nbclient.exceptions.CellExecutionError: a cell failed.
    """
    os.environ["ERLLAMA_RENDER"] = "final"
    NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    ).execute()


def clean(notebook: nbformat.NotebookNode) -> None:
    """Remove what would show nothing after a reload, or differs from run to run."""
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = _joined(cell.outputs)
        for output in cell.get("outputs", ()):
            # The text beside it stays; the widget itself is gone with its kernel.
            output.get("data", {}).pop(WIDGET_VIEW, None)


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join neighbouring pieces of one stream: where it is cut is chance."""
    whole: list[nbformat.NotebookNode] = []
    for output in outputs:
        last = whole[-1] if whole else {}
        if output.output_type == "stream" and output.name == last.get("name"):
            whole[-1].text += output.text
        else:
            whole.append(output)
    return whole


def problems(notebook: nbformat.NotebookNode) -> list[str]:
    """Say what keeps a notebook from being committed."""
    found = []
    text = nbformat.writes(notebook)
    if path := ABSOLUTE_PATH.search(text):
        found.append(f"the absolute path {path[0]}")
    if "widgets" in notebook.metadata or WIDGET_VIEW in text:
        found.append("the state of a widget")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("cells that were not run in order")
    for cell in code:
        if "execution" in cell.metadata:
            found.append("the times of a run")
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"an error: {output.ename}")
            if output.get("name") == "stderr":
                found.append(f"a line on stderr: {output.text[:60]!r}")
    return found


def main(names: list[str]) -> None:
    """Regenerate the notebooks that are named, or all."""
    for path in [Path(name) for name in names] or sorted(HERE.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        print(f"running {path.name}", flush=True)
        run(notebook, path.resolve().parent)
        clean(notebook)
        if found := problems(notebook):
            sys.exit(f"{path.name} has {'; '.join(found)}")
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1:])
