"""``complete``, ``models``, ``bench`` and ``cache``, for people and for scripts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def test_complete_as_json_has_the_reply_and_its_hit(erllama, stub) -> None:
    prompt = "a prompt that is long enough to be kept in the cache " * 4
    facts = [
        json.loads(erllama("complete", prompt, "--max", "4", "--json").stdout) for _ in range(2)
    ]
    assert facts[0]["tokens"] == 4
    assert facts[1]["cache_hit_kind"] == "exact"
    assert facts[0]["reply"] == facts[1]["reply"]
    streamed = erllama("complete", "-", "--max", "4", input=prompt)
    assert streamed.stdout == facts[0]["reply"] + "\n"


def test_complete_may_draft_from_the_text(erllama, stub) -> None:
    reply = json.loads(erllama("complete", "a b", "--max", "2", "--speculate", "--json").stdout)
    assert reply["speculation"]["plain"] == "not_supported"
    assert "speculation" not in json.loads(erllama("complete", "a b", "--json").stdout)


def test_models_as_json(erllama) -> None:
    found = json.loads(erllama("models", "--json").stdout)
    assert found[0]["name"] == "smollm2"
    assert found[0]["size"] > 1 << 20


def test_bench_measures_cold_and_exact(erllama, stub, monkeypatch) -> None:
    monkeypatch.setenv("ERLLAMA_CACHE_DISK", "0")
    told = erllama("bench", "--rounds", "2", "--prompt", "128", "--reply", "8", "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["rounds"] == 2
    assert found["exact"]["ram"]["first_token_ms"] > 0
    assert found["decode_tokens_per_s"] > 0
    assert erllama("bench", "--rounds", "0").exit_code == 2


def test_why_says_what_a_prompt_would_find(erllama, stub) -> None:
    prompt = "why is this prompt not cached at all, whatever was asked before"
    answer = json.loads(erllama("cache", "why", prompt, "--json").stdout)
    assert answer["kind"] == "cold"
    shown = erllama("cache", "why", prompt).stdout.splitlines()
    assert shown == [f"cold: 0 of {answer['prompt_tokens']}", answer["why"]]


def test_an_empty_disk_tier_is_no_error(erllama, home) -> None:
    shown = erllama("cache", "ls")
    assert shown.exit_code == 0
    assert "0 rows" in shown.stdout
    assert json.loads(erllama("cache", "gc", "--json").stdout)["rows"] == 0
    assert not (home / "cache" / "erllama" / "kv").exists(), "looking makes nothing"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 2, "give either"),
        (("abc",), 2, "too short"),
        (("abcdef", "--all"), 2, "give either"),
        (("abcdef12",), 1, "is no key"),
        (("--model", "/no/such.gguf"), 1, "/no/such.gguf"),
    ],
)
def test_rm_of_what_is_not_there_is_said(erllama, arguments, status: int, words: str) -> None:
    result = erllama("cache", "rm", *arguments)
    assert result.exit_code == status
    assert words in result.output


def test_help_brings_in_no_engine_and_no_arrays() -> None:
    code = (
        "import sys; from erllama_py.cli import main; main(['--help'], standalone_mode=False);"
        "print([m for m in ('numpy', 'llama_cpp', 'jinja2', 'psutil', 'erllama_py.api',"
        " 'erl_bridge') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
