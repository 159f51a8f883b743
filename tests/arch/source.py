"""The project's own source, read as syntax trees.

What a module imports is read from its tree and not with a pattern: an import inside a
function, over several lines or by ``importlib.import_module("...")`` counts, and the same
words in a docstring do not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("erllama_py", "erl_bridge")


class Module(NamedTuple):
    """One module of the project."""

    name: str
    path: Path


class Import(NamedTuple):
    """One imported name.

    ``from a import b`` gives ``a.b``: whether b is a module cannot be seen, and what may
    not import ``a`` may not import anything of it either.
    """

    importer: str
    target: str
    line: int
    lazy: bool
    """Inside a function, or for the type checker only: importing the module does not run it."""

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def modules(root: Path = ROOT) -> list[Module]:
    """List every module of both packages."""
    return [
        Module(module_name(path.relative_to(root)), path)
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    ]


def module_name(relative: Path) -> str:
    """Name the module a file holds."""
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    """Parse a file, once."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(module: Module) -> list[Import]:
    """List what a module imports, wherever in it."""
    package = module.name
    if module.path.name != "__init__.py":
        package = package.rpartition(".")[0]
    return [
        Import(module.name, target, node.lineno, lazy)
        for node, lazy in statements(tree_of(module.path), lazy=False)
        for target in targets(node, package)
    ]


def statements(parent: ast.AST, *, lazy: bool) -> Iterator[tuple[ast.stmt | ast.expr, bool]]:
    """Walk all statements and expressions, with whether importing the module skips them."""
    deferred = isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    if isinstance(parent, ast.If) and ast.unparse(parent.test).endswith("TYPE_CHECKING"):
        deferred = True
    for child in ast.iter_child_nodes(parent):
        if isinstance(child, ast.stmt | ast.expr):
            yield child, lazy or deferred
        yield from statements(child, lazy=lazy or deferred)


def targets(node: ast.stmt | ast.expr, package: str) -> list[str]:
    """Name what a statement or call imports; empty for anything else."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=origin, names=names, level=level):
            above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
            base = ".".join([*above, *([origin] if origin else [])])
            return [f"{base}.{alias.name}" for alias in names]
        case ast.Call(
            func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
            args=[ast.Constant(value=str(target)), *_],
        ):
            return [target]
    return []


def is_within(target: str, module: str) -> bool:
    """Whether a dotted name is a module or something in it."""
    return target == module or target.startswith(module + ".")


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a module has one of these names; ``a.b.*`` means a.b and all below it."""
    return any(
        fnmatchcase(name, pattern) or (pattern.endswith(".*") and name == pattern[:-2])
        for pattern in patterns
    )
