"""The Jinja that chat templates are written for, in a sandbox.

It runs in a process of its own (:mod:`erllama_py._templates.child`): the sandbox keeps a
template from Python's attributes, and from changing what it is given; no sandbox keeps it
from computing for ever, or from asking for all memory.

Templates are written for the environment of Hugging Face's ``transformers``, so it is as
there: blocks take their line's whitespace with them, ``break`` and ``continue``,
``generation``, ``raise_exception``, ``strftime_now``, a ``tojson`` that does not escape.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ("Refused", "TooLong", "make_environment", "render")


class Refused(Exception):
    """The template's own words: ``raise_exception``."""


class TooLong(Exception):
    """More came out than may."""


def make_environment() -> jinja2.Environment:
    """Return the environment."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[LoopControlExtension, _Generation],
    )
    environment.filters["tojson"] = _to_json
    environment.globals.pop("lipsum")
    environment.globals.update(raise_exception=_refuse, strftime_now=_strftime_now)
    return environment


def render(template: jinja2.Template, variables: dict[str, Any], limit: int) -> str:
    """Render, piece after piece.

    :param limit: most characters.
    :raises TooLong: there are more.
    """
    parts: list[str] = []
    size = 0
    for part in template.generate(variables):
        size += len(part)
        if size > limit:
            raise TooLong
        parts.append(part)
    return "".join(parts)


class _Generation(Extension):
    """``generation``: marks what the model said, for those who train it; here a scope."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse up to ``endgeneration``."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _refuse(message: object) -> NoReturn:
    raise Refused(str(message))


def _strftime_now(pattern: str) -> str:
    return dt.datetime.now().astimezone().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on, and sorts keys.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
