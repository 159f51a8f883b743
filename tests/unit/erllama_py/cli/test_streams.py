"""What is read and written: other encodings, full disks, and warnings."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from erllama_py import api
from erllama_py.cli.reading import read_input


def run(*args: str, stdout: Any = subprocess.PIPE, **env: str) -> subprocess.CompletedProcess[Any]:
    return subprocess.run(
        [sys.executable, "-m", "erllama_py.cli", *args],
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )


def test_a_full_disk_is_said_in_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        ended = run("models", stdout=full)
    assert ended.returncode == 1
    assert ended.stderr == b"Error: the output cannot be written: No space left on device\n"


def test_what_an_encoding_lacks_ends_no_command_and_spoils_no_json(home: Path) -> None:
    home.joinpath("модель.gguf").write_bytes(b"GGUF")
    env = {"PYTHONIOENCODING": "latin-1", "ERLLAMA_MODELS": str(home)}
    shown = run("models", **env)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"??????.gguf" in shown.stdout
    found = json.loads(run("models", "--json", **env).stdout)
    assert str(home / "модель.gguf") in [one["path"] for one in found]


def test_the_newline_that_ends_a_pipe_is_not_part_of_the_prompt(erllama, stub) -> None:
    prompt = "a prompt that is long enough to be kept in the cache " * 4 + "\n\nand its end"
    facts = [
        json.loads(erllama("complete", *given, "--max", "4", "--json", input=piped).stdout)
        for given, piped in (((prompt,), None), (("-",), f"{prompt}\n"))
    ]
    assert facts[0]["prompt_tokens"] == facts[1]["prompt_tokens"]
    assert facts[1]["cache_hit_kind"] == "exact"


@pytest.mark.parametrize("command", [("complete", "-"), ("cache", "why", "-"), ("chat", "trip")])
def test_a_pipe_that_holds_no_text_is_refused(erllama, command: tuple[str, ...]) -> None:
    ended = erllama(*command, input=b"abc\xff")
    assert ended.exit_code == 2
    assert "standard input is no utf-8 text: byte 0xff at 3" in ended.stderr


def test_an_argument_that_is_no_text_is_refused(erllama) -> None:
    ended = erllama("complete", "abc\udcff")
    assert ended.exit_code == 2
    assert "PROMPT is no text" in ended.stderr


def test_a_standard_input_that_is_closed_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert read_input() == ""


def test_warnings_are_said_but_for_the_engines(erllama, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_models() -> list[dict[str, Any]]:
        logging.getLogger("erllama_py._engine.tiers").warning("nothing is cached in %s", "x")
        logging.getLogger("erllama_py.native").warning("of no use")
        return []

    before = list(logging.getLogger("erllama_py").handlers)
    monkeypatch.setattr(api, "find_models", find_models)
    assert erllama("models").stderr == "warning: nothing is cached in x\n"
    assert logging.getLogger("erllama_py").handlers == before


def test_a_model_that_is_nearly_named_is_suggested(erllama) -> None:
    ended = erllama("complete", "--model", "smolm2", "x")
    assert ended.exit_code == 1
    assert ended.stderr.splitlines()[-1] == "  hint: did you mean smollm2?"
    assert "check the path" in erllama("complete", "--model", "other.gguf", "x").stderr
