"""Models that think, at the command: set apart, hidden, left in, and in conversations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from erllama_py import api
from erllama_py.cli import conversations
from tests.unit.erllama_py.cli.conftest import load_the_stub


@pytest.fixture
def thinker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever model is named, a stub is loaded that thinks."""
    load_the_stub(monkeypatch, thinking_capable=True)


def test_thinking_goes_to_standard_error(erllama, thinker) -> None:
    shown = erllama("complete", "hi there", "--max", "2")
    assert shown.exit_code == 0, shown.output
    assert shown.stderr == "12\n\n"
    assert "<think>" not in shown.stdout
    hidden = erllama("complete", "hi there", "--max", "2", "--thinking", "hide")
    assert hidden.stderr == ""
    assert len(hidden.stdout) == len(shown.stdout)


def test_off_leaves_it_in_the_reply_and_a_budget_ends_it(erllama, thinker) -> None:
    left = erllama("complete", "hi", "--max", "3", "--thinking", "off")
    assert left.stdout == "<think>12</think>\n"
    held = erllama("complete", "hi", "--max", "1", "--thinking-budget", "1")
    assert (held.stdout, held.stderr) == ("2\n", "1\n\n")
    assert erllama("complete", "hi", "--thinking-budget", "0").exit_code == 2


def test_json_has_it_apart(erllama, thinker) -> None:
    facts = json.loads(erllama("complete", "hi", "--max", "2", "--json").stdout)
    assert facts["thinking"] == "12"
    assert facts["tokens"] == 2
    half = len(facts["reply"]) // 2
    assert facts["reply"] == 2 * facts["reply"][:half], "the stub's token, twice"
    off = json.loads(erllama("complete", "hi", "--thinking", "off", "--json").stdout)
    assert off["thinking"] is None


def test_a_conversation_keeps_thinking_apart_and_leaves_it_to_the_template(
    erllama, thinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[Any] = []
    render = api.apply_chat_template

    def spy(model: Any, request: Any) -> Any:
        rendered.append(request["messages"])
        return render(model, request)

    monkeypatch.setattr(api, "apply_chat_template", spy)
    first = erllama("chat", "a", "--max", "2", "--thinking", "hide", input="hello\n")
    assert first.exit_code == 0, first.output
    talk = conversations.load("a")
    assert talk is not None
    assert talk.messages[1].thinking == "12"
    assert first.stdout == f"{talk.messages[1].content}\n"
    assert talk.options == {"max": 2, "thinking": "hide"}
    second = erllama("chat", "a", input="and?")
    assert "12\n" not in second.stderr, "options are kept"
    assert "thought for 3" in second.stderr
    assert rendered[1][1] == {
        "role": "assistant",
        "content": talk.messages[1].content,
        "reasoning_content": "12",
    }
