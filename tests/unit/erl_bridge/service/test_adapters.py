"""LoRA adapters for peers: handles are references, files lie under the roots."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from erl_bridge import CallContext, ErlangError
from erl_bridge.etf import Atom, Pid, Reference
from erl_bridge.service import ErllamaNode
from erllama_py import api
from erllama_py.testing import stub_model

CALLER = Pid(Atom("peer@nowhere.invalid"), 9, 0, 1)
STRANGER = Reference(Atom("peer@nowhere.invalid"), 1, (1, 2, 3))
MODEL = b"adapted"
OK, ERROR = Atom("ok"), Atom("error")
HANDLE, SCALE = Atom("handle"), Atom("scale")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "root"
    folder.mkdir()
    (folder / "one.gguf").write_bytes(b"adapter-1")
    (folder.parent / "secret.gguf").write_bytes(b"adapter-2")
    return folder


@pytest.fixture(scope="module")
def node(root: Path) -> Iterator[ErllamaNode]:
    """A node with an epmd of its own, and a stub model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = ErllamaNode("adapters", cookie="c", epmd_port=port, roots=[root])
    with served, stub_model(MODEL.decode()):
        yield served


@pytest.fixture(autouse=True)
def none_attached(node: ErllamaNode) -> Iterator[None]:
    yield
    for one in api.list_adapters(MODEL):
        api.unload_adapter(MODEL, one["handle"])


def call(node: ErllamaNode, function: str, *args: Any) -> Any:
    """Apply a function as a peer would."""
    context = CallContext(node.node, "peer@nowhere.invalid", CALLER, CALLER)

    async def run() -> Any:
        value = node._apply(context, "erllama", function, list(args))
        return await value if inspect.isawaitable(value) else value

    return asyncio.run(run())


def load(node: ErllamaNode, root: Path) -> Reference:
    ok, handle = call(node, "load_adapter", MODEL, str(root / "one.gguf").encode())
    assert ok is OK
    assert isinstance(handle, Reference)
    return handle


def test_a_handle_is_a_reference_of_the_node(node: ErllamaNode, root: Path) -> None:
    handle = load(node, root)
    assert handle.node == Atom(node.name)
    other = load(node, root)
    assert other != handle
    assert call(node, "list_adapters", MODEL) == [
        {HANDLE: handle, SCALE: 1.0},
        {HANDLE: other, SCALE: 1.0},
    ]
    assert call(node, "set_adapter_scale", MODEL, handle, 2) is OK
    (pid,) = call(node, "models")
    assert call(node, "list_adapters", pid) == [
        {HANDLE: other, SCALE: 1.0},
        {HANDLE: handle, SCALE: 2.0},
    ]
    assert call(node, "unload_adapter", MODEL, other) is OK
    assert call(node, "unload_adapter", MODEL, other) is OK
    assert call(node, "list_adapters", MODEL) == [{HANDLE: handle, SCALE: 2.0}]
    refused = call(node, "set_adapter_scale", MODEL, other, 1.0)
    assert refused == (ERROR, Atom("not_found"))


def test_what_is_attached_in_python_has_a_reference_too(node: ErllamaNode, root: Path) -> None:
    handle = api.load_adapter(MODEL, root / "one.gguf")
    (shown,) = call(node, "list_adapters", MODEL)
    assert call(node, "set_adapter_scale", MODEL, shown[HANDLE], -0.5) is OK
    assert api.list_adapters(MODEL) == [
        {"handle": handle, "scale": -0.5, "path": str(root / "one.gguf")}
    ]
    assert call(node, "list_adapters", MODEL) == [{HANDLE: shown[HANDLE], SCALE: -0.5}]


def test_another_model_s_handle_is_left_alone(node: ErllamaNode, root: Path) -> None:
    handle = load(node, root)
    with stub_model("another"):
        assert call(node, "unload_adapter", b"another", handle) is OK
    assert call(node, "set_adapter_scale", MODEL, handle, 0.5) is OK


@pytest.mark.parametrize("term", [STRANGER, Atom("x"), 5, b"x", [1], {}, ()])
def test_any_term_may_be_unloaded(node: ErllamaNode, term: Any) -> None:
    assert call(node, "unload_adapter", MODEL, term) is OK
    assert call(node, "set_adapter_scale", MODEL, term, 1) == (ERROR, Atom("not_found"))


def test_a_path_may_be_any_iodata_under_the_roots(node: ErllamaNode, root: Path) -> None:
    path = str(root / "one.gguf")
    for given in (path.encode(), list(path.encode()), [f"{root}/".encode(), list(b"one.gguf")]):
        ok, _ = call(node, "load_adapter", MODEL, given)
        assert ok is OK


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (b"{root}/none.gguf", "enoent"),
        (b"{root}", "eisdir"),
        (b"{root}/../secret.gguf", "eacces"),
        (b"{root}/link.gguf", "eacces"),
        (b"/etc/passwd", "eacces"),
        (b"/nowhere/at/all", "eacces"),
        (b"", "badarg"),
        ([], "badarg"),
        (b"a\0b", "badarg"),
        (5, "badarg"),
        (Atom("one"), "badarg"),
        ({}, "badarg"),
    ],
)
def test_other_files_are_refused(node: ErllamaNode, root: Path, path: Any, reason: str) -> None:
    link = root / "link.gguf"
    if not link.is_symlink():
        link.symlink_to(root.parent / "secret.gguf")
    if isinstance(path, bytes):
        path = path.replace(b"{root}", str(root).encode())
    assert call(node, "load_adapter", MODEL, path) == (ERROR, Atom(reason))
    assert call(node, "list_adapters", MODEL) == []


def test_an_unknown_model_exits_whatever_the_rest_is(node: ErllamaNode) -> None:
    for function, *args in (
        ("load_adapter", b"/etc/passwd"),
        ("unload_adapter", STRANGER),
        ("set_adapter_scale", STRANGER, 1.0),
        ("list_adapters",),
    ):
        with pytest.raises(ErlangError) as caught:
            call(node, function, b"nobody", *args)
        assert caught.value.class_ == "exit"
        assert caught.value.reason[0] is Atom("noproc")


def test_a_scale_that_is_no_number_has_no_clause(node: ErllamaNode, root: Path) -> None:
    handle = load(node, root)
    for scale in (b"1.0", Atom("true"), [1]):
        with pytest.raises(ErlangError) as caught:
            call(node, "set_adapter_scale", MODEL, handle, scale)
        assert caught.value.reason is Atom("function_clause")
    assert call(node, "set_adapter_scale", MODEL, handle, 1 << 40) == (ERROR, Atom("badarg"))
