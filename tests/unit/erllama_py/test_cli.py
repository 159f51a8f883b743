"""The ``erllama`` command, as a user types it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from erllama_py import __version__
from erllama_py.cli import main
from erllama_py.cli.pasting import cookie_source, lines


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(args))
    return result.exit_code, result.output


def test_help_names_every_command() -> None:
    code, output = run("--help")
    assert code == 0
    for command in ("bench", "cache", "chat", "complete", "demo", "doctor", "models", "node"):
        assert f"\n  {command} " in output


def test_version_is_the_packages() -> None:
    assert run("--version") == (0, f"erllama, version {__version__}\n")


def test_models_lists_known_names_and_files_in_the_usual_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("ERLLAMA_MODELS", str(tmp_path))
    code, output = run("models")
    assert code == 0
    assert output.startswith("smollm2\t98 MB\t")
    assert str(tmp_path / "sub" / "tiny.gguf") in output
    assert "\tchat templates: default\n" in output
    assert "tiny.gguf\tchat templates: none\n" in output
    by_name = {one["name"]: one for one in json.loads(run("models", "--json")[1])}
    assert by_name["smollm2"]["chat_templates"] == ["default"]


def test_an_error_is_one_line_and_a_hint_without_a_traceback() -> None:
    code, output = run("complete", "hello", "--model", "/no/such/file.gguf")
    assert code == 1
    assert output.startswith("Error: ")
    assert "/no/such/file.gguf" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("name", "words"),
    [("a@b@c", "a@b@c"), ("", "name"), ("x@", "x@")],
)
def test_a_bad_node_name_is_refused_in_words(name: str, words: str) -> None:
    code, output = run("node", "--name", name, "--cookie", "c")
    assert code != 0
    assert words in output
    assert "Traceback" not in output


def test_two_cookies_are_one_too_many(tmp_path: Path) -> None:
    file = tmp_path / "cookie"
    file.write_text("c")
    code, output = run("node", "--name", "x", "--cookie", "c", "--cookie-file", str(file))
    assert code == 2
    assert "not both" in output


def test_lines_to_paste_follow_the_name_and_the_cookie() -> None:
    short = "\n".join(lines("llm@box", cookie_source("s3cret", None), "smollm2"))
    assert "erl -sname shell -setcookie s3cret" in short
    assert "iex --sname shell --cookie s3cret" in short
    assert "rpc:call('llm@box', erllama, complete, [<<\"smollm2\">>," in short
    long = "\n".join(lines("llm@box.example.org", None, None))
    assert "erl -name shell@" in long
    assert "cookie" not in long.replace("counters", "")
    ipv6 = "\n".join(lines("llm@::1", None, None))
    assert "erl -proto_dist inet6_tcp -name shell@::1" in ipv6
    assert 'iex --erl "-proto_dist inet6_tcp" --name shell@::1' in ipv6


def test_a_cookie_file_is_read_by_the_shell_that_is_pasted_to(tmp_path: Path) -> None:
    file = tmp_path / "my cookie"
    source = cookie_source(None, file)
    assert source is not None
    file.write_text("abc")
    assert subprocess.check_output(["sh", "-c", f"echo {source}"], text=True) == "abc\n"
