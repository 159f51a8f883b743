"""Remote callers open model files below the roots, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from erl_bridge.service.roots import Roots
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "secret.gguf").write_bytes(b"GGUF")
    return folder


def refused(roots: Roots, config: dict[Any, Any]) -> Any:
    with pytest.raises(ErllamaError) as caught:
        roots.check(config)
    return caught.value.reason


def test_a_file_below_a_root_may_be_opened(root: Path) -> None:
    path = root / "a.gguf"
    for given in (
        str(path),
        str(path).encode(),
        list(str(path).encode()),
        [f"{root}/".encode(), list(b"a.gguf")],
    ):
        checked = Roots([root]).check({"model_path": given, "tier": Atom("ram")})
        assert checked == {"model_path": str(path), "tier": "ram"}


@pytest.mark.parametrize(
    "path", ["{root}/../secret.gguf", "/etc/passwd", "{root}x/a.gguf", "~/a.gguf", "/"]
)
def test_a_file_elsewhere_may_not(root: Path, path: str) -> None:
    assert refused(Roots([root]), {"model_path": path.format(root=root)}) == "eacces"


def test_a_link_does_not_lead_out(root: Path) -> None:
    (root / "link.gguf").symlink_to(root.parent / "secret.gguf")
    assert refused(Roots([root]), {"model_path": str(root / "link.gguf")}) == "eacces"
    (root / "inner.gguf").symlink_to(root / "a.gguf")
    checked = Roots([root]).check({"model_path": str(root / "inner.gguf")})
    assert checked["model_path"] == str(root / "a.gguf")


@pytest.mark.parametrize("key", [b"model_path", "model_path"])
def test_the_key_may_be_a_binary_and_is_checked_all_the_same(root: Path, key: Any) -> None:
    secret = str(root.parent / "secret.gguf").encode()
    assert refused(Roots([root]), {key: secret}) == "eacces"
    path = str(root / "a.gguf")
    assert Roots([root]).check({key: path.encode()}) == {"model_path": path}


def test_of_two_spellings_of_the_key_one_is_left(root: Path) -> None:
    """What is checked is what is opened."""
    secret = str(root.parent / "secret.gguf").encode()
    inside = str(root / "a.gguf").encode()
    for config in (
        {"model_path": inside, b"model_path": secret},
        {b"model_path": inside, "model_path": secret},
    ):
        assert refused(Roots([root]), config) == "eacces"


@pytest.mark.parametrize(
    "path", [b"", b"a\0b", 5, {}, Atom(""), ["x"], [1 << 21], [0xD800], [-1], b"a" * 5000]
)
def test_what_is_no_path_is_badarg(root: Path, path: Any) -> None:
    assert refused(Roots([root]), {"model_path": path}) == "badarg"


def test_a_charlist_is_characters_as_in_erlang_or_else_bytes(root: Path) -> None:
    """``"modèle.gguf"`` as it is written, and what ``binary_to_list/1`` makes of a binary."""
    named = root / "modèle_м.gguf"
    named.write_bytes(b"GGUF")
    path = str(named)
    deep: list[Any] = list(map(ord, path))
    for _ in range(200):  # terms of peers are less than 256 deep
        deep = [deep]
    for given in (
        list(map(ord, path)),
        list(path.encode()),
        [f"{root}/".encode(), list(map(ord, named.name))],
        deep,
    ):
        assert Roots([root]).check({"model_path": given}) == {"model_path": path}
        assert Roots([root]).check_adapter(given) == path
    missing = str(root / "é.gguf")
    assert Roots([root]).check_adapter(list(missing.encode())) == missing


@pytest.mark.parametrize("absent", [None, Atom("undefined"), Atom("nil")])
def test_no_path_is_no_business_of_the_roots(root: Path, absent: Any) -> None:
    config = {"backend": Atom("erllama_model_stub"), "model_path": absent}
    assert Roots([root]).check(config) == config
    assert Roots([root]).check({}) == {}


def test_known_models_may_always_be_named(root: Path) -> None:
    assert Roots([root]).check({"model_path": Atom("smollm2")})["model_path"].endswith(".gguf")


def test_by_default_the_working_directory_and_the_caches(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "cache"))
    cached = root.parent / "cache" / "erllama" / "models" / "c.gguf"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"GGUF")
    other = cached.with_name("c.txt")
    other.write_bytes(b"")
    roots = Roots()
    assert roots.check({"model_path": b"a.gguf"})["model_path"] == str(root / "a.gguf")
    assert roots.check({"model_path": str(cached)})["model_path"] == str(cached)
    assert refused(roots, {"model_path": str(root.parent / "secret.gguf")}) == "eacces"
    assert refused(roots, {"model_path": str(other)}) == "eacces"
    assert refused(Roots([root]), {"model_path": str(cached)}) == "eacces"
