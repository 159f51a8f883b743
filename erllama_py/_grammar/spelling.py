"""Texts of an automaton as the JSON that they are written in.

Each state becomes a rule: a character, and the rule of the state behind it; or the quote that
ends the text.  States that are entered at one place and left in one way are written where they
are entered.

A character is written in one way: as itself where JSON allows it, else as an escape.  Where only
what is not ASCII can come next it may be an escape, too: some vocabularies lack the bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from erllama_py._grammar.automaton import Automaton
from erllama_py._grammar.charsets import ANY, CharSet, charset, common, without
from erllama_py._grammar.text import plain

__all__ = ("string_rules",)

_SHORT: Final = {0x22: r"\"", 0x5C: r"\\", 8: "b", 9: "t", 10: "n", 12: "f", 13: "r"}
"""What is written as a backslash and a letter, and the letter as it is in a class."""
_ASCII: Final = charset([(0, 0x7F)])
_BARE: Final = without(charset([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F)]))
_CODED: Final = without(charset((code, code) for code in _SHORT), without(_BARE))
_BEYOND: Final = without(_ASCII)
_ESCAPES: Final = 32
"""Ranges beyond ASCII of which escapes are offered: one would do to go on."""
_NIBBLES: Final = "0123456789abcdef"
_TIMES: Final = 1000
_LONG: Final = 16


def string_rules(name: str, automaton: Automaton) -> tuple[dict[str, str], int]:
    """Return the rules of the texts of an automaton, between quotes, and how many ways they have.

    :param name: of the rule of all of it; others begin with it.
    :returns: rules by name, and the most alternatives that begin at one place.
    """
    writer = _Writer(name, automaton)
    return writer.rules, writer.most


class _Writer:
    def __init__(self, name: str, automaton: Automaton) -> None:
        self._name = name
        self._ways, self._ends = automaton.ways, automaton.ends
        self._entered = Counter(target for ways in self._ways for _, target in ways)
        self._entered[0] += 1
        self._classes: dict[tuple[CharSet, bool], str] = {}
        self._wanted: list[int] = []
        self._known: set[int] = set()
        self.rules: dict[str, str] = {}
        self.most = 1
        self.rules[name] = rf'"\"" {self._from(0)}'
        for state in self._wanted:
            self.rules[f"{name}s{state}"] = self._state(state)

    def _from(self, state: int) -> str:
        """Return the expression of what may follow in a state."""
        items: list[str] = []
        while len(self._ways[state]) + self._ends[state] == 1:
            if self._ends[state]:
                items.append(r'"\""')
                return _sequence(items)
            if self._entered[state] > 1:
                break
            ((chars, target),) = self._ways[state]
            items.append(self._class(chars, rare=chars[0][0] > 0x7F))
            state = target
        if state not in self._known:
            self._known.add(state)
            self._wanted.append(state)
        return _sequence([*items, f"{self._name}s{state}"])

    def _state(self, state: int) -> str:
        ways = self._ways[state]
        rare = not self._ends[state] and all(chars[0][0] > 0x7F for chars, _ in ways)
        parts = [f"{self._class(chars, rare=rare)} {self._from(target)}" for chars, target in ways]
        if self._ends[state]:
            parts.append(r'"\""')
        count = sum(len(_spelled(chars, rare=rare)) for chars, _ in ways) + self._ends[state]
        self.most = max(self.most, count)
        return " | ".join(parts)

    def _class(self, chars: CharSet, *, rare: bool) -> str:
        """Return the expression of one of some characters.

        :param rare: whether those beyond ASCII may be escapes.
        """
        if chars == ANY:
            return "char"
        found = self._classes.get((chars, rare))
        if found is None:
            parts = _spelled(chars, rare=rare)
            self.most = max(self.most, len(parts))
            found = " | ".join(parts)
            if len(parts) > 1 or len(found) > _LONG:
                name = f"{self._name}c{len(self._classes)}"
                self.rules[name] = found
                found = name
            self._classes[chars, rare] = found
        return found


def _sequence(items: Sequence[str]) -> str:
    """Return one after the other; the same several times is written once."""
    parts: list[str] = []
    at = 0
    while at < len(items):
        end = at + 1
        while end < len(items) and items[end] == items[at] and end - at < _TIMES:
            end += 1
        parts.append(items[at] if end == at + 1 else f"{items[at]}{{{end - at}}}")
        at = end
    return " ".join(parts)


def _spelled(chars: CharSet, *, rare: bool) -> list[str]:
    """Return the alternatives in which the characters of a set are written."""
    parts = []
    bare = common(chars, _BARE)
    if len(bare) == 1 and bare[0][0] == bare[0][1]:
        parts.append(plain(chr(bare[0][0])))
    elif bare:
        parts.append(f"[{''.join(_range(first, last) for first, last in bare)}]")
    if short := [letter for code, letter in _SHORT.items() if _holds(chars, code)]:
        parts.append(rf'"\\" [{"".join(short)}]')
    coded = list(common(chars, _CODED))
    if rare:
        coded += common(chars, _BEYOND)[:_ESCAPES]
    if escapes := _escapes(coded):
        parts.append(rf'"\\u" {_either(escapes)}')
    return parts


def _either(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"


def _holds(chars: CharSet, code: int) -> bool:
    return any(first <= code <= last for first, last in chars)


def _range(first: int, last: int) -> str:
    return _char(first) if first == last else f"{_char(first)}-{_char(last)}"


def _char(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\U{code:08X}"


def _escapes(ranges: Iterable[tuple[int, int]]) -> list[str]:
    r"""Return what follows ``\u`` in the escapes of ranges that are all in one plane or another."""
    found = []
    for first, last in ranges:
        if first <= 0xFFFF:
            found.append(_hex(f"{first:04x}", f"{min(last, 0xFFFF):04x}"))
        if last > 0xFFFF:
            found += _pairs(max(first, 0x10000) - 0x10000, last - 0x10000)
    return found


def _pairs(first: int, last: int) -> list[str]:
    """Return the surrogate pairs of a range beyond the first plane."""
    found = []
    while first <= last:
        high = first >> 10
        end = min(last, (high << 10) + 0x3FF)
        if first & 0x3FF == 0 and (last + 1) >> 10 > high:
            end = ((last + 1) >> 10 << 10) - 1
        highs = _hex(f"{0xD800 + high:04x}", f"{0xD800 + (end >> 10):04x}")
        lows = _hex(f"{0xDC00 + (first & 0x3FF):04x}", f"{0xDC00 + (end & 0x3FF):04x}")
        found.append(rf'{highs} "\\u" {lows}')
        first = end + 1
    return found


def _hex(low: str, high: str) -> str:
    """Return the expression of the hexadecimal numbers between two of the same length."""
    if low == high:
        return f'"{low}"' if low else ""
    rest = len(low) - 1
    if low[0] == high[0]:
        return f'"{low[0]}" {_hex(low[1:], high[1:])}'
    if low == "0" * len(low) and high == "f" * len(high):
        return _any_nibbles(len(low))
    first, last = _NIBBLES.index(low[0]), _NIBBLES.index(high[0])
    parts = []
    if low[1:] != "0" * rest:
        parts.append(f'"{low[0]}" {_hex(low[1:], "f" * rest)}')
        first += 1
    if high[1:] != "f" * rest:
        parts.append(f'"{high[0]}" {_hex("0" * rest, high[1:])}')
        last -= 1
    if first <= last:
        parts.append(f"[{_NIBBLES[first : last + 1]}] {_any_nibbles(rest)}".rstrip())
    return _either(parts)


def _any_nibbles(count: int) -> str:
    return "" if not count else "[0-9a-f]" if count == 1 else f"[0-9a-f]{{{count}}}"
