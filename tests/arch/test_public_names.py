"""What a module offers is written down, and is there."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys

import pytest

from tests.arch.source import PACKAGES, ROOT, Module, modules, tree_of

MODULES = [module for module in modules() if not module.name.endswith("__main__")]
HEAVY = ("IPython", "anyio", "erl_bridge", "ipywidgets", "jinja2", "llama_cpp", "numpy")


def is_public(module: Module) -> bool:
    """Whether no part of its name is private."""
    return not any(part.startswith("_") for part in module.name.split("."))


def defines_something(module: Module) -> bool:
    """Whether the module binds a public name, its own or one of this project."""
    for node in tree_of(module.path).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names = [name]
            case ast.ClassDef(name=name):
                names = [name]
            case ast.Assign(targets=targets):
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case ast.ImportFrom(module=str(origin)) if origin.startswith(PACKAGES):
                names = [alias.asname or alias.name for alias in node.names]
            case _:
                names = []
        if any(not name.startswith("_") for name in names):
            return True
    return False


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_all_is_a_tuple_of_names_that_exist(module: Module) -> None:
    """Every public module has ``__all__``; a private one need not, but it must be true."""
    loaded = importlib.import_module(module.name)
    names = getattr(loaded, "__all__", None)
    if names is None:
        assert not (is_public(module) and defines_something(module)), "no __all__"
        return
    assert isinstance(names, tuple)
    assert [name for name in names if not hasattr(loaded, name)] == []
    assert len(set(names)) == len(names)


def test_importing_the_package_loads_nothing_heavy() -> None:
    """``import erllama_py`` is for scripts that may never load a model."""
    code = "import json, sys, erllama_py; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = json.loads(result.stdout)
    assert "erllama_py" in loaded
    assert [name for name in HEAVY if name in loaded] == []
