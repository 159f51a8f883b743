"""Terms as Erlang source, for messages and logs.

Bounded and total: a term of any depth and size gives at most ``limit`` characters, and a
value that is no term gives its Python form instead of an error, for this is what error
messages are made with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from erl_bridge.etf.terms import (
    Atom,
    BitString,
    Encoded,
    Export,
    Fun,
    ImproperList,
    Map,
    Pid,
    Port,
    Reference,
)

__all__ = ("term_to_text",)

_PLAIN_ATOM: Final = re.compile(r"[a-z][a-zA-Z0-9_@]*")
_RESERVED: Final = re.compile(
    "after|and|andalso|band|begin|bnot|bor|bsl|bsr|bxor|case|catch|cond|div|else|end|fun|if|let|"
    "maybe|not|of|or|orelse|receive|rem|try|when|xor"
)
_MAX_DIGITS_BITS: Final = 4096  # decimal digits cost quadratic time, and Python refuses too many
_ELLIPSIS: Final = "..."


def term_to_text(term: Any, *, limit: int = 400) -> str:
    """Render ``term`` as Erlang would write it, cut off with ``...`` at ``limit`` characters."""
    out: list[str] = []
    length = 0
    pieces = _pieces(term, limit)
    for piece in pieces:
        out.append(piece)
        length += len(piece)
        if length > limit:
            return "".join(out)[: max(0, limit - len(_ELLIPSIS))] + _ELLIPSIS
    return "".join(out)


def _pieces(term: Any, limit: int) -> Iterator[str]:
    """Yield the text in pieces, from a stack of iterators over the open containers' parts."""
    stack: list[Iterator[tuple[bool, Any]]] = [iter(((False, term),))]
    while stack:
        for literal, part in stack[-1]:
            if literal:
                yield part
                continue
            parts = _parts(part)
            if parts is None:
                yield _leaf(part, limit)
                continue
            stack.append(parts)
            break
        else:
            stack.pop()


def _parts(term: Any) -> Iterator[tuple[bool, Any]] | None:
    """Return a container's parts, as (is literal text, text or term); None for a leaf."""
    if isinstance(term, tuple):
        return _joined("{", term, "}")
    if isinstance(term, list):
        return _joined("[", term, "]")
    if isinstance(term, dict):
        return _pairs(iter(term.items()))
    if isinstance(term, Map):
        return _pairs(iter(term.pairs))
    if isinstance(term, ImproperList):
        return _improper(term)
    return None


def _joined(start: str, items: Any, stop: str) -> Iterator[tuple[bool, Any]]:
    yield True, start
    for index, item in enumerate(items):
        if index:
            yield True, ","
        yield False, item
    yield True, stop


def _pairs(pairs: Iterator[tuple[Any, Any]]) -> Iterator[tuple[bool, Any]]:
    yield True, "#{"
    for index, (key, value) in enumerate(pairs):
        if index:
            yield True, ","
        yield False, key
        yield True, " => "
        yield False, value
    yield True, "}"


def _improper(term: ImproperList) -> Iterator[tuple[bool, Any]]:
    yield from _joined("[", term.items, "|")
    yield False, term.tail
    yield True, "]"


def _leaf(term: Any, limit: int) -> str:
    if isinstance(term, Atom):
        return _atom(term)
    if term is None:
        return "undefined"
    if isinstance(term, bool):
        return "true" if term else "false"
    if isinstance(term, int):
        if term.bit_length() > _MAX_DIGITS_BITS:
            return f"<integer of {term.bit_length()} bits>"
        return str(int(term))
    if isinstance(term, (bytes, bytearray, memoryview)):
        return _binary(term, limit)
    if isinstance(term, BitString):
        octets = [*map(str, term.data[:-1][:limit]), f"{term.data[-1] >> (8 - term.bits)}"]
        return f"<<{','.join(octets)}:{term.bits}>>"
    if isinstance(term, Pid):
        return f"<{_atom(term.node)}.{term.id}.{term.serial}>"
    if isinstance(term, Reference):
        return f"#Ref<{_atom(term.node)}.{'.'.join(map(str, term.ids))}>"
    if isinstance(term, Port):
        return f"#Port<{_atom(term.node)}.{term.id}>"
    if isinstance(term, Fun):
        arity = "" if term.arity is None else f"/{term.arity}"
        return f"#Fun<{_atom(term.module) if term.module else '?'}{arity}>"
    if isinstance(term, Export):
        return f"fun {_atom(term.module)}:{_atom(term.function)}/{term.arity}"
    if isinstance(term, Encoded):
        return f"<{len(term.data)} bytes encoded>"
    if isinstance(term, float):
        return repr(float(term))
    if isinstance(term, str):
        return f'"{_escaped(term[: limit + 1], chr(34))}"'
    return f"<{type(term).__name__}>"


def _atom(atom: Any) -> str:
    name = atom.name if isinstance(atom, Atom) else str(atom)
    if _PLAIN_ATOM.fullmatch(name) and not _RESERVED.fullmatch(name):
        return name
    return f"'{_escaped(name, chr(39))}'"


def _binary(data: bytes | bytearray | memoryview, limit: int) -> str:
    # A character has four bytes at most: what lies beyond is not looked at.
    most = 4 * (limit + 1)
    head = bytes((data.tobytes() if isinstance(data, memoryview) else data)[:most])
    cut = len(head) == most
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        # A character that only the cut has split is no reason to print numbers.
        text = head[: error.start].decode() if cut and error.start > most - 4 else "\0"
    if not all(char.isprintable() or char in _LAYOUT for char in text):
        return f"<<{','.join(map(str, head))}>>"
    if not text:
        return "<<>>"
    return f'<<"{_escaped(text, chr(34))}"{"" if text.isascii() else "/utf8"}>>'


_LAYOUT: Final = "\n\r\t"
_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def _escaped(text: str, quote: str) -> str:
    out = []
    for char in text:
        if char == quote:
            out.append("\\" + char)
        elif char in _ESCAPES:
            out.append(_ESCAPES[char])
        elif char.isprintable():
            out.append(char)
        else:
            out.append(f"\\x{{{ord(char):x}}}")
    return "".join(out)
