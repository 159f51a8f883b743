"""Pieces of grammar text: quoting, choices between literals, and the rules of JSON itself.

White space is one blank, or a new line with at most 20 blanks: a model that may write more
sometimes writes nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final

__all__ = ("JSON_RULES", "characters", "literals", "other_names", "plain", "quoted")

JSON_RULES: Final = {
    "ws": r'(" " | "\n" [ \t]{0,20})?',
    "gap": '" "?',
    "hex": "[0-9a-fA-F]",
    # No half of a surrogate pair: that is no character.
    "escape": r'"\\" (["\\/bfnrt] | "u" ([0-9a-cA-Ce-fE-F] hex | [dD] [0-7]) hex hex)',
    "char": r'[^"\\\x00-\x1F\x7F] | escape',
    "string": r'"\"" char* "\""',
    "number": '"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "word": '"true" | "false" | "null"',
    "value": "object | array | string | number | word",
    "object": '"{" ws (pair ("," ws pair)* ws)? "}"',
    "pair": 'string ":" gap value',
    "array": '"[" ws (value ("," ws value)* ws)? "]"',
}
"""By name; each uses the others freely."""

_DEEP: Final = 40
_SIMPLE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_ .,:/")


def plain(text: str) -> str:
    """Return the literal of a text."""
    out = "".join(char if char in _SIMPLE else _escaped(char) for char in text)
    return f'"{out}"'


def quoted(text: str) -> str:
    """Return the literal of a part of JSON text.

    What is not ASCII may be written as an escape, too: some vocabularies lack bytes that it
    is made of.
    """
    parts = []
    for part in re.split(r"([^\x00-\x7f])", text):
        if part.isascii():
            parts += [plain(part)] if part else []
        else:
            parts.append(f"({plain(part)} | {plain(json.dumps(part)[1:-1])})")
    return " ".join(parts) or '""'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if 0x20 < ord(char) < 0x7F:
        return char
    return f"\\U{ord(char):08X}"


def literals(texts: Iterable[str], depth: int = 0) -> str:
    """Return the expression of one of several different texts.

    What they have in common at the front is written once, so that the engine follows one way
    for each letter that can come next, and not one for each text.
    """
    texts = list(texts)
    if len(texts) == 1:
        return quoted(texts[0])
    if depth > _DEEP:
        return "(" + " | ".join(map(quoted, texts)) + ")"
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(text[:1], []).append(text)
    ends = groups.pop("", None) is not None
    parts = []
    for group in groups.values():
        size = _common(group)
        rest = [text[size:] for text in group]
        head = quoted(group[0][:size])
        parts.append(head if rest == [""] else f"{head} {literals(rest, depth + 1)}")
    return "(" + " | ".join(parts) + ")" + ("?" if ends else "")


def _common(texts: list[str]) -> int:
    """Return how many characters all of them begin with."""
    low, high = min(texts), max(texts)
    for at, char in enumerate(low):
        if char != high[at]:
            return at
    return len(low)


def characters(excluded: Iterable[str] = ()) -> str:
    """Return the class of a text's characters that need no escape, less some of them."""
    return r'[^"\\\x00-\x1F\x7F' + "".join(f"\\U{ord(char):08X}" for char in excluded) + "]"


def other_names(names: Iterable[str]) -> str:
    """Return the expression of a property's name, with its quotes, that is none of these.

    It is written without escapes, by which one of them could be written after all.
    """
    return r'"\"" ' + _other(set(names), 0) + r' "\""'


def _other(names: set[str], depth: int) -> str:
    groups: dict[str, set[str]] = {}
    for name in names:
        if name:
            groups.setdefault(name[0], set()).add(name[1:])
    parts = [f"{characters(groups)} {characters()}*"]
    if depth < _DEEP:
        parts += [f"{plain(char)} {_other(rest, depth + 1)}" for char, rest in groups.items()]
    # Deeper down, names that begin alike are left out altogether.
    return "(" + " | ".join(parts) + ")" + ("" if "" in names else "?")
