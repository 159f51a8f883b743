"""Chat requests, checked: what a caller asks to have rendered, as plain data.

Nothing here knows a template.  What depends on one, such as whether it lists tools itself,
is found out where it runs (:mod:`erllama_py._templates.shape`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from erllama_py._templates.plain import is_absent, is_text, key_text, plain, text_of
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom

__all__ = ("Chat", "read_chat")

_OURS: Final = ("role", "content", "tool_calls")
"""Keys of a message that are looked at; others are handed on."""


class Chat(NamedTuple):
    """A checked request."""

    messages: list[dict[str, Any]]
    """With ``role`` and ``content`` each; content is a text, or None beside ``tool_calls``."""
    system: str | None
    """System text of the request, which is said before the messages."""
    tools: list[dict[str, Any]] | None
    """As OpenAI has them: ``{type: function, function: {name, description, parameters}}``."""
    variables: dict[str, Any]
    """What the template sees besides."""
    template: str | None
    """A template's name, or its text; ``None``: the model's."""
    parse_special: bool
    """Control tokens spelt out in what users say are control tokens."""


def read_chat(request: Mapping[str, Any]) -> Chat:
    """Check a chat request.

    :raises BadCall: not a map.
    :raises ErllamaError: ``badarg`` for messages that are missing, or not maps with a role;
        ``invalid_content``; ``{invalid, Key, Value}`` for the keys that erllama lacks.
    """
    if not isinstance(request, Mapping):
        raise BadCall("function_clause", "a chat request must be a map")
    given = request.get("messages")
    if not isinstance(given, (list, tuple)):
        raise ErllamaError("badarg", "a chat request needs messages, a list of role/content maps")
    variables = _variables(request)
    template = request.get("chat_template")
    if is_absent(template):
        template = None
    elif not (isinstance(template, (str, bytes)) and template):
        raise _invalid("chat_template", template, "a template's name, or its text")
    system = request.get("system")
    return Chat(
        messages=[_message(number, item) for number, item in enumerate(given)],
        system=text_of(system, "the system text") if is_text(system) else None,
        tools=_tools(request.get("tools")),
        variables=variables,
        template=None if template is None else text_of(template, "chat_template"),
        parse_special=_flag(request, "parse_special", default=False),
    )


def _variables(request: Mapping[str, Any]) -> dict[str, Any]:
    given = request.get("chat_template_kwargs")
    if not is_absent(given) and not isinstance(given, Mapping):
        raise _invalid("chat_template_kwargs", given, "a map of the template's variables")
    variables: dict[str, Any] = {} if is_absent(given) else plain(given, "chat_template_kwargs")
    opening = _flag(request, "add_generation_prompt", default=True)
    return variables | {"add_generation_prompt": opening}


def _message(number: int, item: Any) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise ErllamaError("badarg", f"message {number} needs a role and a content")
    fields = {key_text(key): value for key, value in item.items()}
    calls = fields.get("tool_calls")
    calls = calls if isinstance(calls, (list, tuple)) else ()
    has_calls = bool(calls)
    if "role" not in fields or ("content" not in fields and not has_calls):
        raise ErllamaError("badarg", f"message {number} needs a role and a content")
    role, content = fields["role"], fields.get("content")
    if not is_text(role):
        raise ErllamaError("badarg", f"the role of message {number} must be a text, not {role!r}")
    message: dict[str, Any] = {
        "role": text_of(role, f"the role of message {number}"),
        "content": None if has_calls and is_absent(content) else _content(number, content),
    }
    if has_calls:
        message["tool_calls"] = [
            _tool_call(f"tool call {which} of message {number}", call)
            for which, call in enumerate(calls)
        ]
    rest = {key: value for key, value in fields.items() if key not in _OURS}
    return message | {
        text_of(key, f"a key of message {number}"): plain(value, f"{key} of message {number}")
        for key, value in rest.items()
        if not is_absent(value)
    }


def _content(number: int, content: Any) -> str:
    """Return a content as one text; blocks are lines of it."""
    where = f"the content of message {number}"
    if is_text(content):
        return text_of(content, where)
    if not isinstance(content, (list, tuple)):
        raise ErllamaError("invalid_content", f"{where} is not a text: {_shown(content)}")
    return "\n".join(_block(f"block {index} of {where}", one) for index, one in enumerate(content))


def _block(where: str, block: Any) -> str:
    if not isinstance(block, Mapping):
        raise ErllamaError(
            "invalid_content", f"{where} is not a map with type and text: {_shown(block)}"
        )
    fields = {key_text(key): value for key, value in block.items()}
    kind, text = fields.get("type"), fields.get("text")
    if kind not in ("text", b"text"):
        raise ErllamaError(
            "invalid_content",
            f"{where} is of the type {_shown(kind)}",
            "models here read texts only: blocks of the type text",
        )
    if not is_text(text):
        raise ErllamaError("invalid_content", f"the text of {where} is none: {_shown(text)}")
    return text_of(text, where)


def _tool_call(where: str, call: Any) -> dict[str, Any]:
    """Return a call as OpenAI has it; its function's fields may stand in the call itself."""
    fields = plain(call, where)
    function = fields.get("function", fields) if isinstance(fields, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ErllamaError("invalid_content", f"{where} needs a function with a name")
    outer = {} if function is fields else fields
    if function is fields:
        outer = {key: fields[key] for key in ("id",) if key in fields}
        function = {key: value for key, value in fields.items() if key not in ("id", "type")}
    return {"type": "function", **outer, "function": {"arguments": {}, **function}}


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    """Return the tools that have a name; what is no list counts as absent, as in erllama."""
    if not isinstance(tools, (list, tuple)):
        return None
    found = []
    for number, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            continue
        fields = {key_text(key): value for key, value in tool.items()}
        inner = fields.get("function")
        if isinstance(inner, Mapping):
            fields = {key_text(key): value for key, value in inner.items()}
        if is_text(fields.get("name")):
            found.append(_tool(f"tool {number}", fields))
    return found


def _tool(where: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    schema = fields.get("parameters", fields.get("schema"))
    description = fields.get("description")
    function: dict[str, Any] = {"name": text_of(fields["name"], f"the name of {where}")}
    if is_text(description):
        function["description"] = text_of(description, f"the description of {where}")
    function["parameters"] = (
        {"type": "object", "properties": {}}
        if is_absent(schema)
        else plain(schema, f"the schema of {where}")
    )
    return {"type": "function", "function": function}


def _flag(request: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = request.get(key)
    if is_absent(value):
        return default
    if not isinstance(value, bool):
        raise _invalid(key, value, "true or false")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _invalid(key: str, value: Any, expected: str) -> ErllamaError:
    return ErllamaError(
        (Atom("invalid"), Atom(key), value), f"{key} cannot be {_shown(value)}", f"give {expected}"
    )
