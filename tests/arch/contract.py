"""The contract: what is in it, read from the sources, and the rows that tell it.

The rows are tables in ``docs/reference/contract``; what must have one comes from the node's
tables of functions, from what the parsers of options ask for, and from the reasons that
errors are raised with.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tests.arch.source import ROOT, Module, modules, tree_of

FOLDER = ROOT / "docs" / "reference" / "contract"

RAISED = {
    *("ErllamaError", "BadCall", "ModelGone", "BackendError", "StepFailed", "RestoreFailed"),
    *("NoSlot", "_bad", "_refuse"),
}
"""What is called with a reason first."""
FAILED = {"_fail": 1}
"""What is called with a reason elsewhere, and where."""
IMPLIED = {"_badarg": "badarg", "invalid": "invalid", "NotSupported": "not_supported"}
"""What is called without, and the reason it makes."""
RETURNED = {"refusal": "erllama_py._engine.prompt"}
"""What returns (reason, detail)."""
NOT_SERVED = ("erllama_py.cli", "erllama_py._notebook", "erl_bridge.runtime")
"""Whose errors are no answers of the API."""


class Row(NamedTuple):
    """One row."""

    file: str
    table: str
    name: str
    meaning: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}.toml [{self.table}] {self.name}"


def rows(folder: Path = FOLDER) -> list[Row]:
    """Read every row."""
    return [
        Row(path.stem, table, name, *parts)
        for path in sorted(folder.glob("*.toml"))
        for table, content in tomllib.loads(path.read_text(encoding="utf-8")).items()
        for name, row in content.items()
        if (parts := (row[0], tuple(row[1:])))
    ]


def names(file: str, table: str = "") -> set[str]:
    """Return what has a row in one table, or in any table of a file."""
    return {row.name for row in rows() if row.file == file and (not table or row.table == table)}


def differences(file: str, table: str, needed: set[str]) -> list[str]:
    """Say which rows are missing from a table, as what to add, and which are for nothing."""
    there = names(file, table)
    return [
        *(missing(file, table, name) for name in sorted(needed - there)),
        *(needless(file, table, name) for name in sorted(there - needed)),
    ]


def missing(file: str, table: str, name: str) -> str:
    """Say which row to add."""
    row = f'{_key(name)} = ["what it means", "tests/...py::test_that_shows_it"]'
    return f"{_place(file, table)}: {name} is not told.  Add:  {row}"


def needless(file: str, table: str, name: str) -> str:
    """Say which row to remove."""
    return f"{_place(file, table)}: there is no {name}.  Remove the row"


def _place(file: str, table: str) -> str:
    return f"docs/reference/contract/{file}.toml [{_key(table)}]"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"'


# -- tests --------------------------------------------------------------------------------


@cache
def tests_in(path: Path) -> frozenset[str]:
    """Return the tests of a file, read from its text: ``test_x``, ``TestY::test_z``."""
    found: set[str] = set()
    for node in tree_of(path).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=owner, body=body):
                found |= {
                    f"{owner}::{item.name}"
                    for item in body
                    if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
                }
    return frozenset(name for name in found if name.rpartition("::")[2].startswith("test_"))


def wrong_tests(told: list[Row], root: Path = ROOT) -> list[str]:
    """Say which rows lack a test, or name one that is not there."""
    found = [f"{row}: no test is named" for row in told if not row.tests]
    cases: dict[str, list[Row]] = {}
    for row in told:
        for test in row.tests:
            path, _, name = test.partition("::")
            base = name.partition("[")[0]
            if not (root / path).is_file():
                found.append(f"{row}: there is no file {path}")
            elif base not in tests_in(root / path):
                found.append(f"{row}: there is no {base} in {path}")
            elif base != name:
                cases.setdefault(test, []).append(row)
    if cases:
        there = collected(tuple(sorted({test.partition("::")[0] for test in cases})), root)
        found += [
            f"{row}: {test} is not among the cases of that test"
            for test, named in cases.items()
            for row in named
            if test not in there
        ]
    return found


@cache
def collected(paths: tuple[str, ...], root: Path) -> set[str]:
    """Return the node ids in files, cases of parametrised tests each: pytest must say those."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "-p", "no:randomly", *paths],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return {line for line in result.stdout.splitlines() if "::" in line}


# -- options ------------------------------------------------------------------------------


class Asked(dict[str, Any]):
    """An option map that notes which keys it is asked for."""

    def __init__(self, options: Mapping[str, Any], noted: set[str]) -> None:
        super().__init__(options)
        self._noted = noted

    def get(self, key: str, default: Any = None) -> Any:
        self._noted.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self._noted.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._noted.add(str(key))
        return super().__contains__(key)


def keys_in_text(path: Path) -> set[str]:
    """Return the keys that a parser's text reads from maps: ``options.get("key")``,
    ``options["key"]``, ``"key" in options``, ``_integer(options, "key", ...)``."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[ast.Name(), ast.Constant(value=key), *_]):
                reads = name.startswith("_") and name != "_options" and isinstance(key, str)
                found |= {key} if reads else set()
            case ast.Call(
                func=ast.Attribute(attr="get", value=ast.Name(id="options" | "given")),
                args=[ast.Constant(value=str(key)), *_],
            ):
                found.add(key)
            case ast.Subscript(
                value=ast.Name(id="options" | "given"), slice=ast.Constant(value=str(key))
            ):
                found.add(key)
            case ast.Compare(
                left=ast.Constant(value=str(key)),
                ops=[ast.In() | ast.NotIn()],
                comparators=[ast.Name(id="options" | "given")],
            ):
                found.add(key)
    return found


# -- reasons ------------------------------------------------------------------------------


def reasons() -> dict[str, str]:
    """Return every reason that an error is raised with, and a place where it is."""
    found: dict[str, str] = {}
    for module in modules():
        if not module.name.startswith(NOT_SERVED):
            for reason, line in reasons_of(module):
                found.setdefault(reason, f"{module.path.relative_to(ROOT)}:{line}")
    return found


def reasons_of(module: Module) -> Iterator[tuple[str, int]]:
    """Find the reasons written in a module."""
    for node in ast.walk(tree_of(module.path)):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=args):
                if name in IMPLIED:
                    yield IMPLIED[name], node.lineno
                position = 0 if name in RAISED else FAILED.get(name, -1)
                if 0 <= position < len(args):
                    for reason in _atoms(args[position]):
                        yield reason, node.lineno
            case ast.FunctionDef(name=name) if RETURNED.get(name) == module.name:
                for inner in ast.walk(node):
                    match inner:
                        case ast.Return(value=ast.Tuple(elts=[first, *_])):
                            for reason in _atoms(first):
                                yield reason, inner.lineno


def _atoms(reason: ast.expr) -> list[str]:
    """Return the names a reason may have: of an atom, or of a tuple's first."""
    match reason:
        case ast.Constant(value=str(name)):
            return [name] if re.fullmatch(r"[a-z_0-9]+", name) else []
        case ast.IfExp(body=one, orelse=other):
            return _atoms(one) + _atoms(other)
        case ast.Tuple(elts=[first, *_]):
            return _atoms(first)
        case ast.Call(
            func=ast.Name(id="Atom") | ast.Attribute(attr="Atom"), args=[ast.Constant() as name]
        ):
            return _atoms(name)
    return []


def messages_in(path: Path) -> set[str]:
    """Return the tags of messages written in a module: ``erllama_...``."""
    return {
        node.value
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"erllama_[a-z_]+", node.value)
    }
