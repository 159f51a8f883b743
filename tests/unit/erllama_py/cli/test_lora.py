"""``--lora``: replies, conversations and nodes with adapters."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from erllama_py import api
from erllama_py.cli import conversations, loading, node, serving
from erllama_py.cli.serving import id_of, loras_of
from erllama_py.config import parse_loras
from erllama_py.errors import ErllamaError
from tests.adapters import write_lora
from tests.models import smollm2_path


@pytest.fixture
def style(tmp_path: Path) -> Path:
    path = tmp_path / "style.gguf"
    path.write_bytes(b"the stub takes any file")
    return path


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """What was attached, in order."""
    seen: list[tuple[str, float]] = []
    load_adapter = api.load_adapter

    def note(model: Any, path: Any, scale: float = 1.0) -> Any:
        handle = load_adapter(model, path, scale)
        seen.append((path, scale))
        return handle

    monkeypatch.setattr(api, "load_adapter", note)
    return seen


def test_a_reply_is_computed_with_the_adapters(erllama, stub, style: Path, attached) -> None:
    other = style.with_name("other:7b.gguf")
    other.write_bytes(b"two")
    prompt = "long enough to be kept in the cache " * 8
    given = ("--lora", f"{style}:0.5", "--lora", str(other))
    facts = [
        json.loads(erllama("complete", prompt, "--max", "2", "--json", *more).stdout)
        for more in ((), given, given, ())
    ]
    assert attached == [(str(style), 0.5), (str(other), 1.0)] * 2
    told = [{"path": str(style), "scale": 0.5}, {"path": str(other), "scale": 1.0}]
    assert [one.get("lora") for one in facts] == [None, told, told, None]
    # What is cached is kept apart, and found again.
    assert [one["cache_hit_kind"] for one in facts] == ["cold", "cold", "exact", "exact"]
    why = ("cache", "why", prompt, "--json")
    kinds = [json.loads(erllama(*why, *more).stdout)["kind"] for more in ((), given, given[:2])]
    assert kinds == ["exact", "exact", "cold"]


@pytest.mark.parametrize(
    ("lora", "status", "words"),
    [
        ("none.gguf", 1, "none.gguf cannot be read: No such file or directory"),
        ("none.gguf:half", 1, "none.gguf:half cannot be read"),
        ("none.gguf:half", 1, "a scale is a number behind a colon, as in style.gguf:0.5"),
        (".", 1, "cannot be read: Is a directory"),
        (":0.5", 2, "--lora ':0.5': there is no path: --lora FILE.gguf or FILE.gguf:0.5"),
        ("style.gguf:1e99", 1, "between -2^31 and 2^31"),
    ],
)
def test_errors_name_the_file_and_the_mend(
    erllama, stub, style: Path, monkeypatch, lora: str, status: int, words: str
) -> None:
    monkeypatch.chdir(style.parent)
    for command in (("complete", "a"), ("chat", "talk"), ("cache", "why", "a")):
        told = erllama(*command, "--lora", lora, input="hello")
        assert told.exit_code == status, told.output
        assert words in " ".join(told.output.split())
    assert api.list_models() == []
    assert conversations.load("talk") is None


def test_none_is_attached_twice(erllama, stub, style: Path, attached) -> None:
    link = style.with_name("link.gguf")
    link.symlink_to(style)
    told = erllama("complete", "a", "--lora", str(style), "--lora", f"{link}:0.5")
    assert told.exit_code == 2
    assert f"--lora names {link} twice" in told.output
    assert attached == []


def test_a_conversation_keeps_its_adapters(
    erllama, stub, style: Path, attached, monkeypatch
) -> None:
    monkeypatch.chdir(style.parent)
    long = " ".join(["one"] * 40)
    say = ("chat", "a", "--max", "2", "--json")
    first = json.loads(erllama(*say, "--lora", "style.gguf:2", input=long).stdout)
    assert first["lora"] == [{"path": str(style), "scale": 2.0}]
    monkeypatch.chdir("/")  # a path means the same in any folder
    second = json.loads(erllama(*say, input="two").stdout)
    assert second["cache_hit_kind"] == "partial"
    assert attached == [(str(style), 2.0)] * 2
    assert erllama(*say, "--lora", "x", "--no-lora", input="no").exit_code == 2

    changed = json.loads(erllama(*say, "--lora", str(style), input="three").stdout)
    assert (changed["lora"][0]["scale"], changed["cache_hit_kind"]) == (1.0, "cold")
    plain = json.loads(erllama(*say, "--no-lora", input="four").stdout)
    assert "lora" not in plain
    talk = conversations.load("a")
    assert talk is not None
    assert (talk.lora, len(talk.messages)) == ([], 8)
    assert len(attached) == 3


def test_a_node_s_models_have_theirs(tmp_path: Path) -> None:
    def of(entries: list[str], ids: list[str]) -> dict[str, list[tuple[str, float]]]:
        return {
            name: [tuple(one) for one in those] for name, those in loras_of(entries, ids).items()
        }

    a, b = str(tmp_path / "a"), str(tmp_path / "b=c")
    assert of([], []) == of([], ["m", "n"]) == {}
    assert of([f"{a}:2", b], ["m"]) == {"m": [(a, 2.0), (b, 1.0)]}
    assert of([f"n={a}", f"m={b}:0.5", f"n={b}"], ["m", "n"]) == {
        "n": [(a, 1.0), (b, 1.0)],
        "m": [(b, 0.5)],
    }
    for ids in ([], ["m", "n"]):
        with pytest.raises(click.UsageError, match=r"for which model\?"):
            loras_of([b], ids)
    with pytest.raises(ErllamaError, match="twice"):
        loras_of([a, f"m={a}"], ["m"])


def test_a_node_serves_them(erllama, style: Path, monkeypatch) -> None:
    seen: list[dict[str, list[Any]]] = []

    def load(entry: str, *_: int, **__: bool) -> str:
        return api.load_model(id_of(entry), {"backend": "erllama_model_stub", "in_process": True})

    def sleep(_: float) -> None:
        seen.append({info["id"]: api.list_adapters(info["id"]) for info in api.list_models()})
        raise KeyboardInterrupt

    up = contextlib.nullcontext(SimpleNamespace(name="llm@here"))
    monkeypatch.setattr(serving, "running_node", lambda *_, **__: up)
    monkeypatch.setattr(serving, "load_for_node", load)
    monkeypatch.setattr(node, "_end_on_sigterm", lambda: None)
    monkeypatch.setattr(node, "time", SimpleNamespace(sleep=sleep))
    loads = ("node", "--name", "llm", "--load", "a=x.gguf", "--load", "/models/b.gguf")
    told = erllama(*loads, "--lora", f"b={style}:0.5")
    assert told.exit_code == 0, told.output
    ((attached,),) = [[one["b"] for one in seen if not one["a"]]]
    assert [(one["path"], one["scale"]) for one in attached] == [(str(style), 0.5)]
    for lora, status, words in [
        (str(style), 2, "for which model? ID=PATH, with an ID of --load: a, b"),
        (f"a={style}x", 1, f"{style}x cannot be read"),
    ]:
        told = erllama(*loads, "--lora", lora)
        assert told.exit_code == status
        assert words in " ".join(told.output.split())
    assert (len(seen), api.list_models()) == (1, [])


def test_one_that_cannot_be_attached_ends_the_load(stub, style: Path) -> None:
    with (
        pytest.raises(ErllamaError, match=r"/no/such\.gguf"),
        loading.loaded("x", loras=parse_loras([str(style), "/no/such.gguf"])),
    ):
        pytest.fail("it was loaded")
    assert api.list_models() == []


@pytest.mark.model
@pytest.mark.timeout(120)
def test_words_change_with_one(erllama, home: Path) -> None:
    lora = write_lora(home / "one.gguf", 1)
    said = [
        erllama("complete", "Once upon a time", "--max", "8", "--model", smollm2_path(), *more)
        for more in ((), ("--lora", str(lora)), ("--lora", f"{lora}:0"))
    ]
    assert [one.exit_code for one in said] == [0, 0, 0]
    plain, changed, without = (one.stdout for one in said)
    assert plain == without != changed
    wrong = write_lora(home / "wrong.gguf", architecture="gemma3")
    told = erllama("complete", "a", "--model", smollm2_path(), "--lora", str(wrong))
    assert told.exit_code == 1
    assert f"{wrong}: it is for models of gemma3" in told.output
    assert "convert_lora_to_gguf.py" in told.output
