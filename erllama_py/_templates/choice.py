"""Which template renders a chat.

What the request names, else what the load config does, else the file's: its template for
tools, where it has one and there are tools, else its own.  A name is that of one of the file's
templates or of a format that is known here; a text is a template itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erllama_py._templates.families import FAMILIES
from erllama_py.errors import ErllamaError

__all__ = ("choose", "is_template")

_FOR_TOOLS = "tool_use"
_DEFAULT = "default"


def is_template(text: str) -> bool:
    """Whether a text is a template, and no name of one."""
    return "{" in text


def choose(
    wanted: str | None,
    default: str | None,
    named: Mapping[str, str],
    tools: Sequence[Any] | None,
) -> str:
    """Return a template's text.

    :param wanted: a name or a text.
    :param default: the file's own; a known name, where the engine knows the model better.
    :param named: others in the file.
    :raises ErllamaError: ``no_template``.
    """
    if wanted is None:
        wanted = named.get(_FOR_TOOLS, default) if tools else default
    elif wanted == _DEFAULT and default:
        wanted = default
    if not wanted:
        raise ErllamaError(
            "no_template",
            "the model's file has no chat template",
            "load with chat_template, such as 'chatml', or render the prompt and use tokenize",
        )
    text = wanted if is_template(wanted) else named.get(wanted) or FAMILIES.get(wanted)
    if text is None:
        known = ", ".join(sorted({*named, *FAMILIES}))
        raise ErllamaError(
            "no_template", f"there is no chat template {wanted!r}", f"known here: {known}"
        )
    return text
