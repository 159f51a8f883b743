"""Chat requests through a model's own Jinja template, in a sandbox.

Templates come out of model files and are not trusted: they run in Jinja's immutable
sandbox and see the messages, the special tokens and nothing else.  What they raise
themselves (``raise_exception``) is reported as the template's words.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any, NoReturn, TypeGuard

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from erllama_py._backends.base import BackendError, BackendInfo
from erllama_py._backends.stub import render_chat as render_for_stub
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom

__all__ = ("render_chat", "render_request")

MAX_RENDERED_BYTES = 4 << 20
"""The tokenizer's own limit on a text."""


def render_request(info: BackendInfo, request: Mapping[str, Any]) -> bytes:
    """Render a chat request as the loaded model wants it.

    :raises BadCall, ErllamaError: as :func:`render_chat`.
    """
    if info.backend != "erllama_model_stub":
        return render_chat(info.chat_template, request, bos=info.bos, eos=info.eos).encode()
    if not isinstance(request, Mapping):
        raise BadCall("function_clause", "a chat request must be a map")
    try:
        return render_for_stub(request)
    except BackendError as error:
        raise ErllamaError(error.reason, error.detail) from None


def render_chat(template: str | None, request: Mapping[str, Any], *, bos: str, eos: str) -> str:
    """Render a chat request with the assistant's opening at the end.

    :param request: ``messages`` (a list of ``role``/``content`` maps), and optionally
        ``system`` (text) and ``tools`` (maps with ``name`` and ``description``); system
        text and tools become a first message with role ``system``.
    :raises BadCall: the request is not a map.
    :raises ErllamaError: ``badarg`` for messages that are missing, or not maps with a
        role; ``invalid_content``, ``no_template``, ``template_failed``, ``too_large``.
    """
    messages = _messages(request)
    if not template:
        raise ErllamaError("no_template", hint="render the prompt yourself and use tokenize")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_refuse, strftime_now=_strftime_now)
    try:
        text = environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos
        )
    except (jinja2.TemplateError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ErllamaError(
            "template_failed", f"the model's chat template failed: {error}"
        ) from None
    if len(text.encode()) > MAX_RENDERED_BYTES:
        raise ErllamaError("too_large", "the rendered chat is longer than 4 MiB")
    return text


def _messages(request: Mapping[str, Any]) -> list[dict[str, str]]:
    if not isinstance(request, Mapping):
        raise BadCall("function_clause", "a chat request must be a map")
    given = request.get("messages")
    if not isinstance(given, (list, tuple)):
        raise ErllamaError("badarg", "a chat request needs messages, a list of role/content maps")
    messages = [_message(number, item) for number, item in enumerate(given)]
    system = _system_text(request)
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def _message(number: int, item: Any) -> dict[str, str]:
    if not isinstance(item, Mapping) or "role" not in item or "content" not in item:
        raise ErllamaError("badarg", f"message {number} needs a role and a content")
    role, content = item["role"], item["content"]
    if not _is_text(role):
        raise ErllamaError("badarg", f"the role of message {number} must be a text, not {role!r}")
    if not _is_text(content):
        raise ErllamaError(
            "invalid_content", f"the content of message {number} is not a text: {content!r}"
        )
    return {"role": _text(role), "content": _text(content)}


def _system_text(request: Mapping[str, Any]) -> str | None:
    """Join the system text and the list of tools as the original does."""
    system, tools = request.get("system"), request.get("tools")
    parts = [_text(system)] if _is_text(system) else []
    if isinstance(tools, (list, tuple)):
        lines = ["Available tools:"]
        for tool in tools:
            if isinstance(tool, Mapping) and _is_text(tool.get("name")):
                line = f"  - {_text(tool['name'])}"
                if _is_text(tool.get("description")):
                    line += f": {_text(tool['description'])}"
                lines.append(line)
        parts.append("\n".join(lines) + "\n")
    return "\n\n".join(parts) if parts else None


def _is_text(value: Any) -> TypeGuard[str | bytes]:
    """Whether it is a binary in Erlang: an atom's name, such as undefined, is no text."""
    return isinstance(value, (str, bytes)) and not isinstance(value, Atom)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return dt.datetime.now().astimezone().strftime(pattern)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)
