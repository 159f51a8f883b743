"""Plain data out of what callers give: what a template may see, and what JSON carries.

Texts are ``str``; bytes that are not UTF-8 are escaped, and are the same bytes again in the
rendered text.  Erlang's ``undefined`` and Elixir's ``nil`` are ``None``, other atoms texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from erllama_py.errors import ErllamaError
from erllama_py.types import Atom

__all__ = ("is_absent", "is_text", "key_text", "plain", "text_of")

MAX_DEPTH: Final = 64
"""Lists and maps inside each other; schemas of tools have some ten."""

MAX_BITS: Final = 4096
"""Of a whole number; Python writes some 14 000 in decimal, and no more."""


def is_text(value: Any) -> TypeGuard[str | bytes]:
    """Whether it is a binary in Erlang: an atom's name, such as undefined, is no text."""
    return isinstance(value, (str, bytes)) and not isinstance(value, Atom)


def is_absent(value: Any) -> bool:
    """Whether it stands for nothing."""
    return value is None or (isinstance(value, Atom) and value in ("undefined", "nil", "null"))


def text_of(value: str | bytes, where: str) -> str:
    """Return a text.

    :raises ErllamaError: ``invalid_content`` for halves of characters.
    """
    text = value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise ErllamaError(
            "invalid_content", f"{where} has half a character at {error.start}, which is no text"
        ) from None
    return text


def key_text(key: Any) -> str:
    """Return a map's key as a text."""
    return key.decode(errors="surrogateescape") if isinstance(key, bytes) else str(key)


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """Return a value as texts, numbers, truth values, lists and maps.

    :param where: names it in errors.
    :raises ErllamaError: ``badarg`` for anything else in it, ``invalid_content`` for a text
        that is none.
    """
    if depth > MAX_DEPTH:
        raise ErllamaError("badarg", f"{where} has more than {MAX_DEPTH} levels")
    if is_absent(value):
        return None
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ErllamaError("badarg", f"{where} is a number of {value.bit_length()} bits")
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, bytes)):
        return text_of(value, where)
    if isinstance(value, Mapping):
        return {
            text_of(key_text(key), where): plain(item, f"{where}.{key_text(key)}", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{number}]", depth + 1) for number, item in enumerate(value)]
    raise ErllamaError("badarg", f"{where} cannot be of the type {type(value).__name__}")
