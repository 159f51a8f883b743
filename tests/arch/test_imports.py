"""Who may import what.

The layers inside each package are contracts of import-linter (pyproject.toml); the table
here says which modules own a foreign package, or a part of ours.  Each rule is also
shown to fail, on a small tree with a violation planted in it.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.arch.source import (
    PACKAGES,
    ROOT,
    Import,
    Module,
    imports,
    is_within,
    matches,
    modules,
    statements,
    tree_of,
)

OWNERS: dict[str, tuple[str, ...]] = {
    # The native engine: a process of its own loads it, and nothing else may.
    "llama_cpp": ("erllama_py._backends.llama*", "erllama_py._backends.native_log"),
    # The network is the node's; a model process hangs on a socket pair (see the test below).
    "socket": ("erl_bridge.net.*", "erllama_py._engine.*"),
    "ssl": ("erl_bridge.net.*",),
    "select": ("erl_bridge.net.*",),
    "selectors": ("erl_bridge.net.*",),
    "socketserver": (),
    # Event loops are the node's; the engine has threads.
    "asyncio": ("erl_bridge.*",),
    "anyio": ("erl_bridge.*",),
    "http": (),
    "urllib.request": (),
    # Notebook libraries are an extra: the core and the node work without them.
    "IPython": ("erllama_py._notebook.*", "erllama_py"),  # that one only for a signature
    "ipykernel": ("erllama_py._notebook.*",),
    "ipywidgets": ("erllama_py._notebook.*",),
    "anywidget": ("erllama_py._notebook.*",),
    "traitlets": ("erllama_py._notebook.*",),
    # Metrics are an extra, too.
    "prometheus_client": ("erllama_py.metrics",),
    # Chat templates come from model files: one place renders them, sandboxed.
    "jinja2": ("erllama_py._templates.*",),
    # Our own parts.
    "erl_bridge": ("erl_bridge.*", "erllama_py._notebook.*", "erllama_py.cli.*"),
    "erllama_py": ("erllama_py.*", "erl_bridge.service.*"),
    "erllama_py._engine": (
        "erllama_py._engine.*",
        "erllama_py.api.*",
        "erllama_py.otp.*",
        "erllama_py.testing",
    ),
    "erllama_py._cache": (
        "erllama_py._cache.*",
        "erllama_py._engine.*",
        "erllama_py.api.*",
        "erllama_py.config.*",  # the policy's numbers and defaults
        "erllama_py.otp.*",
    ),
    # What the command tells of the disk tier, without a model.
    "erllama_py._cache.inventory": ("erllama_py.cli.*",),
    "erllama_py._backends": (
        "erllama_py._backends.*",
        "erllama_py._engine.*",
        "erllama_py.config.*",  # what it checks and fills in
    ),
    # What every request's template needs of a loaded model, and the stub's own rendering.
    "erllama_py._backends.base": ("erllama_py._templates.*",),
    "erllama_py._backends.stub": ("erllama_py._templates.*",),
    "erllama_py._grammar": ("erllama_py._grammar.*", "erllama_py.config.*"),
    "erllama_py._machine": (
        "erllama_py._machine.*",
        "erllama_py._engine.*",
        "erllama_py.config.*",
        "erllama_py.api.*",
        "erllama_py.cli.*",  # what it says of the machine
        "erllama_py.otp.*",
    ),
    "erllama_py._templates": (
        "erllama_py._templates.*",
        "erllama_py._engine.*",
        "erllama_py.api.*",
        "erllama_py.config.*",  # names of templates
    ),
    "erllama_py._notebook": ("erllama_py._notebook.*", "erllama_py"),
}

ONLY_LAZILY = (
    # (importers, target): loading the importer must not load the target.
    (("erllama_py.*",), "erl_bridge"),
    (("erllama_py",), "erllama_py._notebook"),
    (("erllama_py",), "IPython"),
    (("erllama_py.*", "erl_bridge.*"), "erllama_py.metrics"),
)

SERVICE_MAY_USE = (
    "erllama_py",
    "erllama_py.api",
    "erllama_py.errors",
    "erllama_py.otp",
    "erllama_py.types",
)

PURE = (
    "erl_bridge.etf.*",
    "erl_bridge.proto.*",
    "erllama_py._cache.checksum",
    "erllama_py._cache.finding",
    "erllama_py._cache.grade",
    "erllama_py._cache.heads",
    "erllama_py._cache.index",
    "erllama_py._cache.key",
    "erllama_py._cache.kvc",
    "erllama_py._cache.origin",
    "erllama_py._cache.policy",
    "erllama_py._cache.queue",
    "erllama_py._cache.reservations",
    "erllama_py._cache.row",
    "erllama_py._cache.tier",
    "erllama_py._cache.trie",
    "erllama_py._engine.adapterset",
    "erllama_py._engine.spans",
    "erllama_py._engine.stops",
    "erllama_py._engine.tokenbytes",
    "erllama_py._engine.utf8",
    "erllama_py._grammar.*",
)
"""Decisions and formats: data in, data out."""

PURE_MAY_USE = ("crc32c", "erllama_py.errors", "erllama_py.types", "msgspec")

EFFECTS = (
    *("asyncio", "concurrent", "fcntl", "io", "logging", "mmap", "multiprocessing", "os"),
    *("pathlib", "random", "select", "selectors", "shutil", "signal", "socket", "ssl"),
    *("subprocess", "tempfile", "time"),
)
"""Standard modules that read or change the world.  Two are not here: ``threading``, since a
table of interned names needs a lock, and ``secrets``, since the challenge of a handshake
must come from the system's generator."""

NETWORK_CALLS = {
    *("create_connection", "create_server", "create_tcp_listener", "create_udp_socket"),
    *("create_unix_connection", "create_unix_listener", "create_unix_server"),
    *("connect_tcp", "connect_unix", "open_connection", "open_unix_connection"),
    *("start_server", "start_unix_server", "getaddrinfo"),
}
SOCKET_METHODS = {"accept", "bind", "connect", "connect_ex", "listen"}
"""Looked for only where sockets are: elsewhere a node connects, and a signature binds."""


def foreign(found: Iterable[Import]) -> list[Import]:
    """List imports of what belongs to others.

    Each rule that covers the target must allow it, but for the parts of a private
    package: there one that does is enough.
    """

    def allowed(item: Import) -> bool:
        rules = {name: owners for name, owners in OWNERS.items() if is_within(item.target, name)}
        verdicts = {name: matches(item.importer, owners) for name, owners in rules.items()}
        private = [verdicts.pop(name) for name in list(verdicts) if "._" in name]
        return all(verdicts.values()) and (not private or any(private))

    return [item for item in found if not allowed(item)]


def too_early(found: Iterable[Import]) -> list[Import]:
    """List imports that should wait until they are needed."""
    return [
        item
        for item in found
        for importers, target in ONLY_LAZILY
        if is_within(item.target, target) and matches(item.importer, importers) and not item.lazy
    ]


def impure(found: Iterable[Import]) -> list[Import]:
    """List imports that a pure module may not have."""

    def allowed(item: Import) -> bool:
        top = item.target.partition(".")[0]
        if top in sys.stdlib_module_names:
            return top not in EFFECTS
        own = [pattern for pattern in PURE if matches(item.importer, (pattern,))]
        package = item.importer.split(".")[:2]
        near = is_within(item.target, ".".join(package)) and any(
            is_within(item.target, pattern.removesuffix(".*")) for pattern in PURE
        )
        lower = is_within(item.target, "erl_bridge.etf") and "erl_bridge.proto.*" in own
        return near or lower or any(is_within(item.target, name) for name in PURE_MAY_USE)

    return [item for item in found if matches(item.importer, PURE) and not allowed(item)]


def beyond_the_facade(found: Iterable[Import]) -> list[Import]:
    """List what the service imports of erllama besides its façade."""
    public = [name for name in SERVICE_MAY_USE if name != "erllama_py"]
    return [
        item
        for item in found
        if item.importer.startswith("erl_bridge.")
        and is_within(item.target, "erllama_py")
        and not any(is_within(item.target, name) for name in public)
        and item.target not in SERVICE_MAY_USE
    ]


def network_calls(module: Module) -> list[str]:
    """List calls that open or offer a connection, by the name called."""
    has_sockets = any(is_within(item.target, "socket") for item in imports(module))
    return [
        f"{module.name}:{node.lineno} calls {name}"
        for node, _ in statements(tree_of(module.path), lazy=False)
        if isinstance(node, ast.Call)
        for name in [ast.unparse(node.func).rpartition(".")[2]]
        if name in NETWORK_CALLS or (has_sockets and name in SOCKET_METHODS)
    ]


RULES = {
    "owners": foreign,
    "lazily": too_early,
    "pure": impure,
    "facade": beyond_the_facade,
}


@pytest.fixture(scope="module")
def every_import() -> list[Import]:
    """All imports of both packages."""
    found = [item for module in modules() for item in imports(module)]
    assert len(found) > 50, "the source was not found"
    return found


@pytest.mark.parametrize("rule", RULES)
def test_imports_keep_the_rules(rule: str, every_import: list[Import]) -> None:
    """No module imports what is not its own to import."""
    assert [str(item) for item in RULES[rule](every_import)] == []


def test_only_the_nodes_net_package_opens_connections() -> None:
    """Elsewhere a socket is one end of a pair, or was handed in."""
    elsewhere = [m for m in modules() if not matches(m.name, ("erl_bridge.net.*",))]
    assert [call for module in elsewhere for call in network_calls(module)] == []


def test_every_rule_is_about_something() -> None:
    """A rule whose modules were renamed would pass for ever."""
    names = [module.name for module in modules()]
    assert [pattern for pattern in PURE if not any(matches(n, (pattern,)) for n in names)] == []


@pytest.mark.parametrize(
    ("rule", "file", "line"),
    [
        ("owners", "erllama_py/_engine/a.py", "import llama_cpp.llama_cpp as c"),
        ("owners", "erllama_py/_engine/a.py", "from erllama_py import _notebook"),
        ("owners", "erllama_py/_cache/a.py", "from socket import socketpair"),
        ("owners", "erl_bridge/proto/a.py", "def f():\n    import ssl"),
        (
            "owners",
            "erllama_py/api/__init__.py",
            "from importlib import import_module as i\nimport IPython",
        ),
        (
            "owners",
            "erllama_py/api/__init__.py",
            "import importlib\nimportlib.import_module('ipywidgets')",
        ),
        ("owners", "erllama_py/_engine/a.py", "def f():\n    from erl_bridge import net"),
        ("owners", "erl_bridge/net/a.py", "from erllama_py import errors"),
        ("owners", "erllama_py/_notebook/a.py", "from .._engine import host"),
        ("lazily", "erllama_py/cli/serving.py", "from erl_bridge import service"),
        ("lazily", "erllama_py/__init__.py", "from ._notebook import extension"),
        ("pure", "erl_bridge/etf/a.py", "import numpy"),
        ("pure", "erl_bridge/etf/a.py", "from erl_bridge.proto import frames"),
        ("pure", "erl_bridge/proto/a.py", "import time"),
        ("pure", "erllama_py/_cache/key.py", "from . import store"),
        ("pure", "erllama_py/_engine/stops.py", "import os.path"),
        ("facade", "erl_bridge/service/a.py", "from erllama_py._engine import host"),
        ("facade", "erl_bridge/service/a.py", "from erllama_py import testing"),
    ],
)
def test_a_planted_violation_is_found(rule: str, file: str, line: str, tmp_path: Path) -> None:
    """Each rule can fail."""
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    found = [item for module in modules(tmp_path) for item in imports(module)]
    assert RULES[rule](found)


@pytest.mark.parametrize(
    "code",
    [
        "import socket\ndef f(s):\n    s.bind(('', 0))",
        "async def f(loop):\n    await loop.create_server(P, '', 0)",
    ],
)
def test_a_planted_connection_is_found(code: str, tmp_path: Path) -> None:
    """A call is found by its name, whatever it is called on."""
    path = tmp_path / "erllama_py" / "_engine" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text(code + "\n")
    assert network_calls(Module("erllama_py._engine.a", path))


def lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter with this project's contracts on a tree."""
    command = [sys.executable, "-c", "import importlinter.cli as c; c.lint_imports_command()"]
    options = ["--no-cache", "--no-logo", "--config", str(ROOT / "pyproject.toml")]
    return subprocess.run(
        [*command, *options], cwd=directory, capture_output=True, text=True, check=False
    )


def test_layers() -> None:
    """The layers of pyproject.toml hold."""
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("erllama_py/_cache/planted.py", "import erllama_py._engine"),
        ("erllama_py/planted.py", ""),
        ("erl_bridge/etf/planted.py", "import erl_bridge.net"),
        ("erl_bridge/net/planted.py", "import erllama_py.errors"),
    ],
)
def test_layers_can_fail(file: str, line: str, tmp_path: Path) -> None:
    """A planted violation breaks exactly the contracts, not the run."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package)
    (tmp_path / file).write_text(line + "\n")
    result = lint_imports(tmp_path)
    assert result.returncode != 0
    assert "BROKEN" in result.stdout
    assert "planted" in result.stdout
