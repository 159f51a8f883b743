"""What Tab offers on the lines of the magics."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter

from erllama_py import api


def offers(shell: Any, text: str) -> list[str]:
    """Return the completed texts of the last line, as IPython would insert them."""
    shell.ip.Completer.use_jedi = False
    with provisionalcompleter():  # as the kernel does: IPython warns of its own API
        found = list(shell.ip.Completer.completions(text, len(text)))
    return sorted(text[: item.start] + item.text for item in found)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("%erllama lo", ["%erllama load", "%erllama lora"]),
        ("%erllama u", ["%erllama unload", "%erllama use"]),
        ("%erllama cache --l", ["%erllama cache --live"]),
        ("%erllama load x --exactness ", ["%erllama load x --exactness bit",
                                          "%erllama load x --exactness token"]),
        ("%erllama help ca", ["%erllama help cache"]),
        ("%erllama use ", ["%erllama use stub"]),
        ("%erllama w", ["%erllama why"]),
        ("%erllama why docu", ["%erllama why document"]),
        ("%%erllama --top-", ["%%erllama --top-k", "%%erllama --top-p"]),
        ("%%erllama --max 3 --m", ["%%erllama --min-p", "%%erllama --model"]),
        ("%%erllama --model ", ["%%erllama --model stub"]),
        ("%%erllama -f j", ["%%erllama -f json"]),
        ("%%erllama --stop a --st", ["%%erllama --stop a --stop"]),
        ("%%erllama --json-schema docu", ["%%erllama --json-schema document"]),
        ("%%erllama --lo", ["%%erllama --logprobs"]),
        ("%%erllama -i docu", ["%%erllama -i document"]),
    ],
)  # fmt: skip
def test_the_word_is_completed(typed: str, found: list[str], shell: Any, stub: Any) -> None:
    shell.ip.user_ns["document"] = "text"
    whole = sorted(typed[: typed.rfind(" ") + 1] + item.rpartition(" ")[2] for item in found)
    assert offers(shell, typed) == whole


def test_adapters_that_are_attached_are_offered(
    shell: Any, stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "style.gguf").write_bytes(b"the stub takes any file")
    api.load_adapter(stub, tmp_path / "style.gguf")
    assert offers(shell, "%erllama lora st") == ["%erllama lora style.gguf"]
    assert offers(shell, "%erllama lora style.gguf --sc") == ["%erllama lora style.gguf --scale"]
    (tmp_path / "other.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert offers(shell, "%erllama lora oth") == ["%erllama lora other.gguf"], "files, as ever"


def test_models_on_this_machine_are_offered_to_load(
    shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        api, "find_models", lambda: [{"name": "smollm2"}, {"name": "/models/other.gguf"}]
    )
    assert offers(shell, "%erllama load smo") == ["%erllama load smollm2"]
    assert offers(shell, "%erllama load ") == [
        "%erllama load /models/other.gguf",
        "%erllama load smollm2",
    ]


def test_the_body_of_a_cell_is_not_ours(shell: Any, stub: Any) -> None:
    assert offers(shell, "%%erllama --max 3\n--mo") == []


def test_a_failure_while_typing_is_logged_not_shown(
    shell: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any, capsys: Any
) -> None:
    def fail() -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(api, "find_models", fail)
    with caplog.at_level(logging.ERROR):
        offers(shell, "%erllama load zz")
    assert "completion failed" in caplog.text
    assert capsys.readouterr().out == ""
