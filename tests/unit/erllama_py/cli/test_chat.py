"""``erllama chat``: conversations that outlive the process."""

from __future__ import annotations

import json
import os
import pty
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from erllama_py.cli import chat as chat_module
from erllama_py.cli import conversations
from erllama_py.cli.conversations import Conversation, Message
from erllama_py.errors import ErllamaError


def test_a_message_from_a_pipe_and_its_reply_are_kept(erllama, stub, home: Path) -> None:
    first = erllama("chat", "trip", "--max", "5", input="hello there\n")
    assert first.exit_code == 0, first.output
    talk = conversations.load("trip")
    assert talk is not None
    assert [message.role for message in talk.messages] == ["user", "assistant"]
    assert talk.messages[0].content == "hello there"
    assert talk.messages[1].content
    assert first.stdout == f"{talk.messages[1].content}\n"
    assert talk.options == {"max": 5}
    path = home / "data" / "erllama" / "chats" / "trip.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_next_message_finds_the_conversation_warm(erllama, stub) -> None:
    long = " ".join(["one"] * 40)  # what is shorter than min_tokens is not kept
    erllama("chat", "a", "--max", "5", input=long)
    second = erllama("chat", "a", "--json", input="two")
    facts = json.loads(second.stdout)
    assert facts["cache_hit_kind"] == "partial"
    assert 0 < facts["prefix_len"] < facts["prompt_tokens"]
    talk = conversations.load("a")
    assert talk is not None
    assert [message.content for message in talk.messages[::2]] == [long, "two"]
    assert facts["tokens"] == 5, "options are kept"


def test_a_template_by_name_is_kept_with_the_conversation(erllama, stub) -> None:
    with_own = json.loads(erllama("chat", "own", "--max", "2", "--json", input="hi").stdout)
    named = ("chat", "a", "--max", "2", "--json")
    first = json.loads(erllama(*named, "--chat-template", "chatml", input="hi").stdout)
    # The stub's words are what stands between spaces: "user: hi\n", and all of ChatML's lines.
    assert (with_own["prompt_tokens"], first["prompt_tokens"]) == (2, 1)
    talk = conversations.load("a")
    assert talk is not None
    assert talk.chat_template == "chatml"
    assert erllama(*named, input="hi").exit_code == 0
    wrong = erllama("chat", "b", "--chat-template", "none-such", input="hi")
    assert wrong.exit_code == 1
    assert "there is no chat template 'none-such'" in wrong.output
    assert conversations.load("b") is None
    once = erllama("complete", "a b", "--chat-template", "zephyr", "--max", "2", "--json")
    assert json.loads(once.stdout)["prompt_tokens"] == 2


def test_what_is_refused_leaves_the_conversation_as_it_was(erllama, stub) -> None:
    erllama("chat", "a", "--max", "5", input="one")
    before = conversations.load("a")
    long = erllama("chat", "a", input="word " * 9000)
    assert long.exit_code == 1
    assert "the conversation is too long" in long.output
    assert conversations.load("a") == before


def test_conversations_are_listed_latest_first_and_removed(erllama, home: Path) -> None:
    conversations.save("old", Conversation("smollm2", messages=[Message("user", "x")]))
    path = home / "data" / "erllama" / "chats" / "old.json"
    old = json.loads(path.read_text())
    path.write_text(json.dumps(old | {"updated": 1_000_000_000}))
    conversations.save("new", Conversation("smollm2"))
    path.with_name("broken.json").write_text("{")
    lines = erllama("chat", "--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["new", "old", "broken"]
    listed = json.loads(erllama("chat", "--list", "--json").stdout)
    assert listed[1]["messages"] == 1
    assert listed[2] == {"name": "broken", "damaged": True}
    assert erllama("chat", "old", "--rm").exit_code == 0
    assert not path.exists()
    again = erllama("chat", "old", "--rm")
    assert again.exit_code == 1
    assert "there is no conversation 'old'" in again.output


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a" * 101, "-x\n"])
def test_a_name_that_leads_elsewhere_is_refused(name: str, home: Path) -> None:
    with pytest.raises(ErllamaError, match="cannot be called"):
        conversations.load(name)


def test_a_damaged_file_is_an_error_that_names_it_and_is_not_overwritten(erllama, home) -> None:
    conversations.save("a", Conversation("smollm2"))
    path = home / "data" / "erllama" / "chats" / "a.json"
    path.write_text('{"model": 7}')
    result = erllama("chat", "a", input="hello")
    assert result.exit_code == 1
    assert str(path) in result.output
    assert path.read_text() == '{"model": 7}'


def test_what_cannot_be_written_is_said_and_leaves_no_draft(home, monkeypatch) -> None:
    conversations.save("a", Conversation("smollm2"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ErllamaError, match="No space left"):
        conversations.save("a", Conversation("other"))
    kept = conversations.load("a")
    assert kept is not None
    assert kept.model == "smollm2"
    assert [path.name for path in conversations.folder().iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "NAME"), (["a"], "empty"), (["a", "--system", "other"], "from its start")],
)
def test_bad_usage_is_2(erllama, home, arguments: list[str], words: str) -> None:
    conversations.save("a", Conversation("smollm2", messages=[Message("user", "x")]))
    result = erllama("chat", *arguments, input=" \n")
    assert result.exit_code == 2
    assert words in result.output


def test_at_a_terminal_it_shows_where_it_stood_and_goes_on(stub, home, monkeypatch, capsys) -> None:
    said = [Message("user", "the question"), Message("assistant", "the answer")]
    talk = Conversation("smollm2", messages=said, options={"max": 3})
    conversations.save("a", talk)
    typed = iter(["", "more"])

    def ask(_: str) -> str:
        for line in typed:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", ask)
    chat_module._at_terminal("a", talk)
    shown = capsys.readouterr()
    assert "2 messages" in shown.err
    assert "> the question\nthe answer\n" in shown.out
    assert "3 tokens" in shown.err
    kept = conversations.load("a")
    assert kept is not None
    assert len(kept.messages) == 4


def environment(home: Path) -> dict[str, str]:
    """A user's environment, with the disk tier that tests go without."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ERLLAMA_")}
    return kept | {"HOME": str(home)}


def command(home: Path, *args: str, said: str = "") -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "erllama_py.cli", *args, "--json"],
        input=said,
        capture_output=True,
        text=True,
        env=environment(home),
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.model
def test_a_conversation_goes_on_warm_from_disk_in_another_process(home: Path) -> None:
    talk = ("chat", "trip", "--max", "12")
    cold = command(home, *talk, "--system", "Be brief.", said="Name a colour and say why.")
    assert cold["cache_hit_kind"] == "cold"
    warm = command(home, *talk, said="Another one?")
    assert warm["cache_hit_kind"] == "partial"
    assert warm["tier"] == "disk"
    assert warm["prefix_len"] >= cold["prompt_tokens"]

    # What both left can be seen, and removed, without a model.
    stored = command(home, "cache", "ls")
    assert [one["model"] for one in stored["models"]] == ["smollm2"]
    keys = [row["key"] for row in stored["rows"]]
    assert warm["finish_key"] in keys
    assert all(row["complete"] and row["bytes"] for row in stored["rows"])
    gone = command(home, "cache", "rm", warm["finish_key"][:12])
    assert (gone["rows"], gone["busy"]) == (1, 0)
    left = [row["key"] for row in command(home, "cache", "ls")["rows"]]
    assert sorted(left) == sorted(set(keys) - {warm["finish_key"]})
    command(home, "cache", "rm", "--model", "smollm2")
    assert command(home, "cache", "ls")["rows"] == []


def test_ctrl_c_without_a_reply_asks_again(stub, home: Path, monkeypatch, capsys) -> None:
    typed = iter([KeyboardInterrupt(), "hello", EOFError()])

    def ask(_: str) -> str:
        one = next(typed)
        if isinstance(one, BaseException):
            raise one
        return one

    monkeypatch.setattr("builtins.input", ask)
    talk = Conversation(model="any", options={"max": 3})
    chat_module._at_terminal("trip", talk)
    assert [message.role for message in talk.messages] == ["user", "assistant"]
    assert "Ctrl-D ends it." in capsys.readouterr().err.splitlines()


@pytest.mark.model
def test_ctrl_c_keeps_what_was_said_and_the_conversation_goes_on(home: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "erllama_py.cli", "chat", "trip", "--max", "2000"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(home),
    )
    os.close(theirs)
    assert process.stdout is not None
    try:
        os.write(ours, b"Tell me a very long story about a lighthouse.\n")
        heard = b""
        while len(heard) < 20:
            heard += process.stdout.read1(64)
        process.send_signal(signal.SIGINT)
        os.write(ours, b"\x04")
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert process.returncode == 0
    saved = json.loads((home / "data" / "erllama" / "chats" / "trip.json").read_text())
    reply = saved["messages"][1]["content"]
    assert reply
    assert reply in (heard + rest).decode()
