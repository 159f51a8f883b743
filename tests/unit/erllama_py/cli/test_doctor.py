"""``erllama doctor``: every finding that is wrong has a mend, and the status says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from erllama_py.cli import checks
from erllama_py.cli.checks import Finding


def only(found: list[Finding], status: str) -> list[Finding]:
    return [one for one in found if one.status == status]


def test_a_setting_that_cannot_be_is_wrong_and_said_with_its_place(
    erllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERLLAMA_CACHE_RAM", "lots")
    result = erllama("doctor", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["ok"] is False
    wrong = [one for one in told["findings"] if one["status"] == "wrong"]
    assert [one["check"] for one in wrong] == ["settings"]
    assert "ERLLAMA_CACHE_RAM cannot be 'lots'" in wrong[0]["found"]
    assert wrong[0]["mend"]


def test_on_a_good_machine_nothing_is_wrong(erllama) -> None:
    result = erllama("doctor")
    assert result.exit_code == 0, result.output
    assert result.output.endswith("nothing is wrong\n")
    for check in ("python", "engine", "cores", "memory", "disk", "settings", "models", "cookie"):
        assert f" {check}: " in result.output


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "died of signal 4"),
        ("import no_such_module", "No module named"),
        ("print('no json')", "does not answer"),
    ],
)
def test_an_engine_that_does_not_work_is_wrong(code: str, words: str) -> None:
    (found,) = checks.check_engine((sys.executable, "-c", code))
    assert found.status == "wrong"
    assert words in found.found
    assert "pip install" in found.mend


def test_an_engine_built_for_less_than_the_processor_is_noted() -> None:
    found = list(checks._engine_findings("1", {"AVX2"}, {"avx2", "fma"}, "again"))
    (note,) = only(found, "note")
    assert "built without FMA" in note.found


def test_a_cookie_that_others_may_read_is_wrong(tmp_path: Path) -> None:
    cookie = tmp_path / "cookie"
    cookie.write_text("secret")
    cookie.chmod(0o644)
    (wrong,) = only(list(checks.check_erlang(cookie)), "wrong")
    assert wrong.mend == f"chmod 400 {cookie}"
    assert "secret" not in wrong.found
    cookie.chmod(0o400)
    assert only(list(checks.check_erlang(cookie)), "wrong") == []


def test_a_folder_that_cannot_be_made_is_wrong(home, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("ERLLAMA_CACHE_DISK", "1G")
    monkeypatch.setenv("ERLLAMA_CACHE_DIR", str(home / "file" / "kv"))
    (found,) = checks.check_disk()
    assert found.status == "wrong"
    assert "is no folder" in found.found


def test_a_home_where_there_is_no_room_is_wrong(home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erllama_py._machine.quotas.default_disk_quota", lambda path: 0)
    monkeypatch.delenv("ERLLAMA_CACHE_DISK", raising=False)
    (found,) = checks.check_disk()
    assert (found.status, found.mend) == ("wrong", "set HOME, or ERLLAMA_CACHE_DIR")
    assert "no room" in found.found
    monkeypatch.setenv("ERLLAMA_CACHE_DISK", "0")  # who wanted it so is told what it means
    (found,) = checks.check_disk()
    assert (found.status, found.mend[:24]) == ("note", "unset ERLLAMA_CACHE_DISK")


def test_a_tier_larger_than_its_tmpfs_is_wrong(home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERLLAMA_CACHE_RAM_FILE", "900000G")
    (found,) = checks.check_shm(home)
    assert found.status == "wrong"
    assert "--shm-size" in found.mend


def test_a_file_that_is_no_model_is_wrong(home, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "models").mkdir()
    (home / "models" / "page.gguf").write_text("<html>")
    monkeypatch.setenv("ERLLAMA_MODELS", str(home / "models"))
    (wrong,) = only(list(checks.check_models()), "wrong")
    assert "page.gguf" in wrong.found


def test_a_busy_machine_is_noted() -> None:
    assert [one.status for one in checks._load_findings(4.0, 2)] == ["note"]
    assert [one.status for one in checks._load_findings(0.5, 2)] == ["ok"]


def test_a_damaged_conversation_is_found(home) -> None:
    from erllama_py.cli import conversations

    conversations.save("a", conversations.Conversation("smollm2"))
    (conversations.folder() / "a.json").write_text("{")
    (wrong,) = only(list(checks.check_chats()), "wrong")
    assert wrong.mend == "erllama chat a --rm"
