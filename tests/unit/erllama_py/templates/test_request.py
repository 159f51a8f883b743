"""Chat requests: what is taken, and what an error says of what is not."""

from __future__ import annotations

from typing import Any

import pytest

from erllama_py._templates.request import read_chat
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def content_of(content: Any) -> Any:
    return read_chat({"messages": [user(content)]}).messages[0]["content"]


def test_texts_blocks_and_bytes_are_texts() -> None:
    assert content_of("a") == content_of(b"a") == "a"
    assert (
        content_of([{"type": "text", "text": "a"}, {"type": Atom("text"), "text": b"b"}]) == "a\nb"
    )
    assert content_of([]) == ""
    broken = content_of(b"\xff!")
    assert broken.encode(errors="surrogateescape") == b"\xff!"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (5, "the content of message 1 is not a text: 5"),
        (None, "the content of message 1 is not a text: None"),
        (Atom("hello"), "the content of message 1 is not a text"),
        ({"type": "text", "text": "a"}, "the content of message 1 is not a text"),
        (
            [{"type": "text", "text": "a"}, {"type": "image_url"}],
            "block 1 of the content of message 1",
        ),
        ([{"type": b"input_audio"}], "is of the type b'input_audio'"),
        ([{"text": "a"}], "is of the type None"),
        ([{"type": "text"}], "the text of block 0 of the content of message 1 is none"),
        (["a"], "block 0 of the content of message 1 is not a map"),
        ("half \ud800", "the content of message 1 has half a character at 5"),
    ],
)
def test_other_contents_are_refused_by_their_place(content: Any, said: str) -> None:
    with pytest.raises(ErllamaError) as caught:
        read_chat({"messages": [user("fine"), user(content)]})
    assert caught.value.reason == "invalid_content"
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "needs messages"),
        ("hello", "needs messages"),
        (["hello"], "message 0 needs a role and a content"),
        ([{"content": "a"}], "message 0 needs a role and a content"),
        ([{"role": "assistant"}], "message 0 needs a role and a content"),
        ([{"role": Atom("user"), "content": "a"}], "the role of message 0 must be a text"),
        ([{"role": 5, "content": "a"}], "the role of message 0 must be a text, not 5"),
        ([user("a", seen=1 << 99_999)], "seen of message 0 is a number of 100000 bits"),
        ([user("a", seen=object())], "seen of message 0 cannot be of the type object"),
    ],
)
def test_messages_are_checked(messages: Any, said: str) -> None:
    with pytest.raises(ErllamaError) as caught:
        read_chat({"messages": messages})
    assert caught.value.reason == "badarg"
    assert said in caught.value.message


def test_a_request_is_a_map() -> None:
    with pytest.raises(BadCall):
        read_chat([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chat_template_kwargs", 5),
        ("chat_template", ""),
        ("chat_template", 5),
        ("add_generation_prompt", "yes"),
        ("parse_special", 1),
    ],
)
def test_keys_that_erllama_lacks_are_checked(key: str, value: Any) -> None:
    with pytest.raises(ErllamaError) as caught:
        read_chat({"messages": [], key: value})
    assert caught.value.reason == ("invalid", key, value)


def test_absent_is_absent_in_erlang_and_elixir_too() -> None:
    keys = ("system", "tools", "chat_template", "chat_template_kwargs", "parse_special")
    plain = read_chat({"messages": []})
    assert plain.system is plain.tools is plain.template is None
    assert plain.variables == {"add_generation_prompt": True}
    for nothing in (None, Atom("undefined"), Atom("nil")):
        assert read_chat({"messages": [], **dict.fromkeys(keys, nothing)}) == plain


def test_tools_have_two_shapes_and_become_one() -> None:
    schema = {"type": "object", "properties": {"city": {"type": b"string"}}}
    erlang = {"name": b"weather", "description": b"now", "schema": schema}
    openai = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    tools = read_chat(
        {"messages": [], "tools": [erlang, openai, "odd", {"description": "x"}]}
    ).tools
    assert tools is not None
    assert [one["function"]["name"] for one in tools] == ["weather", "weather"]
    assert tools[0]["function"] == {
        "name": "weather",
        "description": "now",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
    assert "description" not in tools[1]["function"]
    assert read_chat({"messages": [], "tools": 5}).tools is None


def test_calls_and_their_results_keep_their_fields() -> None:
    called = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    chat = read_chat(
        {
            "messages": [
                {"role": "assistant", "tool_calls": [called, {"name": "g", "id": "c2"}]},
                {"role": "tool", "content": "42", "tool_call_id": b"c1", "name": "f"},
            ]
        }
    )
    asked, told = chat.messages
    assert asked["content"] is None
    assert asked["tool_calls"] == [
        called,
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": {}}},
    ]
    assert told == {"role": "tool", "content": "42", "tool_call_id": "c1", "name": "f"}
    with pytest.raises(ErllamaError) as caught:
        read_chat({"messages": [{"role": "assistant", "tool_calls": [called, {"id": "x"}]}]})
    assert "tool call 1 of message 0 needs a function with a name" in caught.value.message
    assert caught.value.reason == "invalid_content"


def test_what_is_nested_without_end_is_refused() -> None:
    knot: list[Any] = []
    knot.append(knot)
    with pytest.raises(ErllamaError) as caught:
        read_chat({"messages": [], "chat_template_kwargs": {"knot": knot}})
    assert caught.value.reason == "badarg"
    assert "levels" in caught.value.message
