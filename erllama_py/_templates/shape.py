"""What a template takes, found by trying, and a chat put into that shape.

===================================  ==================================================
the template                         then
===================================  ==================================================
leaves tools out                     they are listed in the system text, as erllama does
leaves system text out, or refuses   it stands before what the user says next
knows only lists of blocks           contents are lists of one block
shows arguments of calls as text     they are JSON; else they are maps
shows ``None``, or fails of it       calls without a content have an empty one
===================================  ==================================================

Each question is asked once for a template, when a chat first depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

__all__ = ("Shape",)

_NEEDLE: Final = "n33dl3"
_USER: Final = {"role": "user", "content": "u"}
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": _NEEDLE,
        "description": "d",
        "parameters": {"type": "object", "properties": {}},
    },
}

Render = Callable[[dict[str, Any]], str]
"""Renders a template with variables; raises whatever the template does."""


class Shape:
    """One template's.

    :param render: renders it.
    :param text: its text.
    """

    def __init__(self, render: Render, text: str) -> None:
        self._render = render
        self._text = text
        self._answers: dict[str, bool] = {}

    def variables(self, chat: dict[str, Any]) -> dict[str, Any]:
        """Return a template's variables for a chat.

        :param chat: ``messages``, ``system``, ``tools`` and ``variables``, as in
            :class:`~erllama_py._templates.request.Chat`.
        """
        common, tools = chat["variables"], chat["tools"]
        in_blocks = self._ask("blocks", self._needs_blocks, common)  # others depend on it
        knows_tools = tools is None or self._ask("tools", self._knows_tools, common)
        system = chat["system"]
        if not knows_tools:
            listed = _listed(tools)
            system, tools = listed if system is None else f"{system}\n\n{listed}", None
        messages = chat["messages"]
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        if any("tool_calls" in message for message in messages):
            messages = self._with_calls(messages, common)
        if any(message["role"] == "system" for message in messages) and not self._ask(
            "system", self._takes_system, common
        ):
            messages = _folded(messages)
        if in_blocks:
            messages = [_in_blocks(message) for message in messages]
        return {**common, "messages": messages} | ({"tools": tools} if tools else {})

    # -- questions ----------------------------------------------------------------------------

    def _ask(self, what: str, question: Callable[[dict[str, Any]], bool], common: Any) -> bool:
        if what not in self._answers:
            self._answers[what] = question(common)
        return self._answers[what]

    def _try(self, common: dict[str, Any], messages: list[Any], **more: Any) -> str:
        if self._answers.get("blocks"):
            messages = [_in_blocks(message) for message in messages]
        try:
            return self._render({**common, "messages": messages, **more})
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - whatever the template does, the answer is no
            return ""

    def _knows_tools(self, common: dict[str, Any]) -> bool:
        return "tools" in self._text and _NEEDLE in self._try(common, [_USER], tools=[_TOOL])

    def _takes_system(self, common: dict[str, Any]) -> bool:
        return _NEEDLE in self._try(common, [{"role": "system", "content": _NEEDLE}, _USER])

    def _needs_blocks(self, common: dict[str, Any]) -> bool:
        message = {"role": "user", "content": _NEEDLE}
        if _NEEDLE in self._try(common, [message]):
            return False
        seen = self._try(common, [_in_blocks(message)])
        return _NEEDLE in seen and "'type'" not in seen

    def _calls(self, common: dict[str, Any], arguments: Any, content: str | None) -> str:
        call = {"name": "f", "arguments": arguments}
        asked = {
            "role": "assistant",
            "content": content,
            "tool_calls": [{"id": "call00000", "type": "function", "function": call}],
        }
        return self._try(common, [_USER, asked])

    def _arguments_are_text(self, common: dict[str, Any]) -> bool:
        seen = self._calls(common, json.dumps({_NEEDLE: "x"}), None)
        seen = seen or self._calls(common, json.dumps({_NEEDLE: "x"}), "")
        return f'"{_NEEDLE}"' in seen

    def _takes_none(self, common: dict[str, Any]) -> bool:
        text = self._ask("arguments", self._arguments_are_text, common)
        seen = self._calls(common, '{"a": 1}' if text else {"a": 1}, None)
        return bool(seen) and "None" not in seen

    # -- shapes -------------------------------------------------------------------------------

    def _with_calls(self, messages: list[Any], common: dict[str, Any]) -> list[Any]:
        as_text = self._ask("arguments", self._arguments_are_text, common)
        takes_none = self._ask("none", self._takes_none, common)
        return [
            {
                **message,
                "content": message["content"] if takes_none else message["content"] or "",
                "tool_calls": [_call(one, as_text=as_text) for one in message["tool_calls"]],
            }
            if "tool_calls" in message
            else message
            for message in messages
        ]


def _call(call: dict[str, Any], *, as_text: bool) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:  # the model's words: a template shows them as they are
            arguments = function["arguments"]
    return {**call, "function": {**function, "arguments": arguments}}


def _listed(tools: list[dict[str, Any]]) -> str:
    """Return the list of tools that erllama writes into the system text."""
    lines = ["Available tools:"]
    for tool in tools:
        function = tool["function"]
        description = function.get("description")
        lines.append(
            f"  - {function['name']}" + ("" if description is None else f": {description}")
        )
    return "\n".join(lines) + "\n"


def _folded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put system texts before what the user says next; a user says them where none does."""
    out: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif not waiting:
            out.append(message)
        elif message["role"] == "user":
            out.append(message | {"content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            out += {"role": "user", "content": "\n\n".join(waiting)}, message
            waiting = []
    return [*out, {"role": "user", "content": "\n\n".join(waiting)}] if waiting else out


def _in_blocks(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    return message | (
        {"content": [{"type": "text", "text": content}]} if isinstance(content, str) else {}
    )
