"""``%erllama lora`` and ``%erllama load --lora`` on the stub, which takes any file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from erllama_py import api, testing
from erllama_py._notebook.args import BadUsage
from erllama_py.errors import ErllamaError


@pytest.fixture
def style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "style.gguf"
    path.write_bytes(b"one")
    return path


def attached(model: str = "stub") -> list[tuple[str, float]]:
    return [(one["path"], one["scale"]) for one in api.list_adapters(model)]


def test_a_file_is_attached_changed_and_detached(shell: Any, stub: Any, style: Path) -> None:
    assert shell.run("%erllama lora") == ["stub has no LoRA adapters."]
    told = shell.run("%erllama lora style.gguf --scale 0.5")
    assert told == ["style.gguf is attached to stub, with scale 0.5."]
    assert attached() == [(str(style), 0.5)]
    (table,) = shell.run("%erllama lora")
    assert "style.gguf" in table
    assert "0.5" in table
    assert "|" in shell.shown[0]["data"]["text/markdown"]
    told = shell.run("%erllama lora style.gguf --scale -2")
    assert told == ["style.gguf has scale -2 on stub now."]
    assert attached() == [(str(style), -2.0)]
    assert shell.run("%erllama lora style.gguf --unload") == ["Detached from stub: style.gguf."]
    assert attached() == []
    assert shell.run("%erllama lora --unload") == ["stub has no LoRA adapters."]


def test_a_cell_that_is_run_again_attaches_nothing_twice(
    shell: Any, stub: Any, style: Path
) -> None:
    shell.run("%erllama lora style.gguf --scale 0.5")
    (handle,) = [one["handle"] for one in api.list_adapters("stub")]
    style.with_name("link.gguf").symlink_to(style)
    for same in ("style.gguf", f"'{style}'", "./style.gguf", "link.gguf", "style", "style.gguf"):
        told = shell.run(f"%erllama lora {same} --scale 0.5")
        assert told == ["style.gguf is attached to stub already, with scale 0.5."]
    assert api.list_adapters("stub")[0]["handle"] == handle
    assert attached() == [(str(style), 0.5)]
    # Without a scale it is 1, whatever was before.
    assert shell.run("%erllama lora style") == ["style.gguf has scale 1 on stub now."]


def test_several_are_told_apart_by_name(shell: Any, stub: Any, style: Path) -> None:
    other = style.with_name("two words.gguf")
    other.write_bytes(b"two")
    shell.run("%erllama lora style.gguf\n%erllama lora 'two words.gguf' --scale 2")
    assert attached() == [(str(style), 1.0), (str(other), 2.0)]
    style.unlink()  # what is attached has its name yet
    shell.run("%erllama lora style --unload")
    assert attached() == [(str(other), 2.0)]
    api.load_adapter("stub", other)
    error = shell.error("%erllama lora 'two words' --scale 3")
    assert "attached to stub 2 times" in str(error)
    assert shell.run("%erllama lora --unload") == ["Detached from stub: two words.gguf."]
    assert attached() == []


def test_it_is_of_the_model_in_use_or_the_one_named(shell: Any, stub: Any, style: Path) -> None:
    with testing.stub_model("other"):
        shell.run("%erllama lora style.gguf --model stub\n%erllama use other")
        assert (attached("stub"), attached("other")) == ([(str(style), 1.0)], [])
        shell.run("%erllama lora style.gguf --scale 3")
        assert attached("other") == [(str(style), 3.0)]
    assert isinstance(shell.error("%erllama lora style.gguf --model nobody"), ErllamaError)


def test_requests_to_come_compute_with_it(shell: Any, stub: Any, style: Path) -> None:
    cell = "%%erllama --max 2 -o answer\n" + " ".join(f"lora{number}" for number in range(80))
    hits = []
    for line in ("lora", "lora style.gguf", "lora", "lora --unload"):
        shell.run(f"%erllama {line}")
        shell.run(cell)
        hits.append(shell.ip.user_ns["answer"].hit)
    assert hits == ["cold", "cold", "exact", "exact"]


@pytest.mark.parametrize(
    ("line", "words", "hint"),
    [
        ("none.gguf", "none.gguf cannot be read: No such file", "attached to stub: style.gguf"),
        ("none --unload", "'none' is not attached to stub", "attached: style.gguf"),
        ("style --scale x", "must be a number such as 0.5, not 'x'", ""),
        ("style --scale nan", "must be a number", ""),
        ("style --scale 1e10", "between -2^31 and 2^31", ""),
        ("--scale 2", "--scale with no PATH means nothing", "%erllama lora PATH"),
        ("style --scale 2 --unload", "--scale with --unload means nothing", ""),
        ("''", "'' is no path", "FILE.gguf"),
        ("a b", "has no use for 'b'", "usage"),
    ],
)
def test_errors_name_the_mend_and_change_nothing(
    shell: Any, stub: Any, style: Path, line: str, words: str, hint: str
) -> None:
    shell.run("%erllama lora style.gguf --scale 0.25")
    error = shell.error(f"%erllama lora {line}")
    assert isinstance(error, ErllamaError)
    assert words in error.message
    assert hint in error.hint
    assert attached() == [(str(style), 0.25)]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whatever is loaded by a magic is the stub; the ids that were."""
    seen: list[str] = []
    load_model = api.load_model

    def load(model_id: str, config: Any) -> Any:
        seen.append(model_id)
        return load_model(model_id, {"backend": "erllama_model_stub", "in_process": True})

    monkeypatch.setattr(api, "load_model", load)
    return seen


def test_a_model_is_loaded_with_adapters(shell: Any, style: Path, loads: list[str]) -> None:
    other = style.with_name("a:b.gguf")
    other.write_bytes(b"two")
    line = "%erllama load m --lora style.gguf:0.5 --lora a:b.gguf"
    try:
        ready, *told = shell.run(line)
        assert ready.startswith("m is ready")
        assert told == [
            "style.gguf is attached to m, with scale 0.5.",
            "a:b.gguf is attached to m, with scale 1.",
        ]
        both = [(str(style), 0.5), (str(other), 1.0)]
        assert attached("m") == both
        again = shell.run(line)
        assert again[0] == "m is loaded already."
        assert all("already" in one for one in again)
        shell.run("%erllama load m --lora style.gguf:2")
        assert sorted(attached("m")) == [(str(other), 1.0), (str(style), 2.0)]
        assert loads == ["m"]
        shell.error("%erllama load m --lora none.gguf")
        assert len(attached("m")) == 2, "a model that was there stays, with what it had"
    finally:
        api.unload("m")


def test_a_load_whose_adapter_fails_leaves_nothing(
    shell: Any, style: Path, loads: list[str]
) -> None:
    error = shell.error("%erllama load m --lora style.gguf --lora none.gguf")
    assert isinstance(error, ErllamaError)
    assert "none.gguf cannot be read" in error.message
    assert (loads, api.list_models()) == (["m"], [])
    assert isinstance(shell.error("%erllama load m --lora :2"), ErllamaError)
    assert loads == ["m"], "nothing was loaded for it"
    assert not isinstance(error, BadUsage)
