"""Regular expressions as JSON Schema has them (ECMA-262), read into a tree.

Read here, and not by a package or Python's own ``re``: what cannot be promised must be
refused with its place, dialects differ, and no package has ECMA-262's rules.  Where dialects
read something in several ways (``[]``, ``a{,3}``), it is refused.  What is captured, and
whether a quantifier is lazy, makes no difference to which texts match.

Lookahead is taken directly behind a ``^`` that all begins with: there it is a pattern of its own
that the text must match, too, or must not.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from erllama_py._grammar.charsets import ANY, CharSet, charset, dot, named, without

__all__ = (
    "AtEnd",
    "AtStart",
    "Chars",
    "Either",
    "Pattern",
    "PatternError",
    "Repeat",
    "Row",
    "Tree",
    "parse",
)

MAX_TIMES: Final = 1000
MAX_DEPTH: Final = 50

_TIMES: Final = re.compile(r"\{(\d+)(?:(,)(\d*))?\}", re.ASCII)
_UP_TO: Final = re.compile(r"\{,\d+\}", re.ASCII)
_NAME: Final = re.compile(r"\?P?<[A-Za-z_$][A-Za-z0-9_$]*>")
_HEX: Final = {"x": re.compile(r"[0-9a-fA-F]{2}"), "u": re.compile(r"[0-9a-fA-F]{4}")}
_CODE: Final = re.compile(r"\{([0-9a-fA-F]{1,8})\}")
_CONTROLS: Final = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}

_LOOKS: Final = {
    "?=": ("a lookahead", "put it behind the ^ at the beginning, or into another pattern in allOf"),
    "?!": ("a lookahead", "put it behind the ^ at the beginning, or name what is allowed"),
    "?<=": ("a lookbehind", "name what is allowed"),
    "?<!": ("a lookbehind", "name what is allowed"),
    "?>": ("an atomic group", "use (?:...)"),
    "?(": ("a condition", "use alternatives"),
    "?#": ("a comment", "leave it out"),
}
_STRANGE: Final = {
    "b": "write what is on both sides",
    "B": "write what is on both sides",
    "A": "use ^",
    "Z": "use $",
    "z": "use $",
    "p": "use a class of ranges",
    "P": "use a class of ranges",
    "k": "repeat the group",
}


class PatternError(Exception):
    """A pattern that cannot be part of a grammar.

    :ivar problem: what is wrong, and where.
    :ivar mend: what can be done about it.
    """

    def __init__(self, problem: str, mend: str = "") -> None:
        self.problem = problem
        self.mend = mend
        super().__init__(problem)


class Chars(NamedTuple):
    """One character of a set."""

    of: CharSet


class AtStart(NamedTuple):
    """What ``^`` is."""


class AtEnd(NamedTuple):
    """What ``$`` is."""


class Row(NamedTuple):
    """One after the other."""

    parts: list[Tree]


class Either(NamedTuple):
    """One of several."""

    choices: list[Tree]


class Repeat(NamedTuple):
    """A number of times; ``most`` may be ``None``."""

    part: Tree
    least: int
    most: int | None


Tree = Chars | AtStart | AtEnd | Row | Either | Repeat


class Pattern(NamedTuple):
    """A pattern, and others that a text must match or must not."""

    tree: Tree
    too: list[Tree]
    never: list[Tree]


def parse(pattern: str, *, never: bool = False) -> Pattern:
    """Return the trees of a pattern.

    :param never: the pattern must not match, so in doubt it is more.
    :raises PatternError: it is none, or has what is not supported.
    """
    return _Parser(pattern, never=never).whole()


class _Parser:
    def __init__(self, text: str, *, never: bool) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._never = never
        """Inside of what must not match: it must be more, and not less."""

    def whole(self) -> Pattern:
        ahead: dict[bool, list[Tree]] = {False: [], True: []}
        at = self._at
        if self._text.startswith(("^(?=", "^(?!")) and not self._never:
            self._at += 1
            while self._text.startswith(("(?=", "(?!"), self._at):
                at, self._never = self._at, self._text[self._at + 2] == "!"
                self._at += 3
                ahead[self._never].append(Row([AtStart(), self._closed(at)]))
            self._never = False
            tree: Tree = Row([AtStart(), self._row()])
            if self._take("|"):
                raise self._refused(at, "a lookahead in one of several", "put them into (?:...)")
        else:
            tree = self._either()
        if self._at < len(self._text):
            raise self._refused(self._at, ") closes nothing", r"write \)")
        return Pattern(tree, ahead[False], ahead[True])

    def _refused(self, at: int, problem: str, mend: str = "") -> PatternError:
        return PatternError(f"{problem}, at character {at + 1}", mend)

    def _take(self, expected: str) -> bool:
        """Pass over a text if it comes next."""
        if self._text.startswith(expected, self._at):
            self._at += len(expected)
            return True
        return False

    def _match(self, form: re.Pattern[str]) -> re.Match[str] | None:
        found = form.match(self._text, self._at)
        if found:
            self._at = found.end()
        return found

    # -- structure --------------------------------------------------------------------------

    def _either(self) -> Tree:
        choices = [self._row()]
        while self._take("|"):
            choices.append(self._row())
        return choices[0] if len(choices) == 1 else Either(choices)

    def _row(self) -> Tree:
        parts: list[Tree] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            bare = self._text[self._at] in "^$"
            parts.append(self._repeated(self._atom(), bare=bare))
        return parts[0] if len(parts) == 1 else Row(parts)

    def _atom(self) -> Tree:
        at = self._at
        char = self._text[at]
        if char in "*+?" or _TIMES.match(self._text, at) or _UP_TO.match(self._text, at):
            raise self._refused(at, f"{char} has nothing to repeat", f"write \\{char}")
        self._at += 1
        match char:
            case "^":
                return AtStart()
            case "$" if self._never:
                # To Python, it is also before a last end of line.
                return Either([AtEnd(), Row([Chars(charset([(10, 10)])), AtEnd()])])
            case "$":
                return AtEnd()
            case ".":
                return Chars(without(charset([(10, 10)])) if self._never else dot())
            case "(":
                return self._group(at)
            case "[":
                return Chars(self._class(at))
            case "\\":
                return Chars(self._escape(at, negated=False))
        return Chars(charset([(ord(char), ord(char))]))

    def _repeated(self, tree: Tree, *, bare: bool) -> Tree:
        at = self._at
        least, most = 1, None
        if self._take("*"):
            least = 0
        elif self._take("?"):
            least, most = 0, 1
        elif _UP_TO.match(self._text, at):
            raise self._refused(at, "a number is missing", "write {0,...}")
        elif found := self._match(_TIMES):
            least, most = self._times(found, at)
        elif not self._take("+"):
            return tree
        if bare:
            raise self._refused(at, f"{self._text[at - 1]} cannot be repeated")
        if self._take("+"):
            raise self._refused(at, "quantifiers that give nothing back are not supported")
        self._take("?")
        return Repeat(tree, least, most)

    def _times(self, found: re.Match[str], at: int) -> tuple[int, int | None]:
        if any(len(part or "") > 9 or int(part or 0) > MAX_TIMES for part in found.group(1, 3)):
            raise self._refused(at, "too many times", f"at most {MAX_TIMES} are possible")
        least = int(found[1])
        most = least if found[2] is None else int(found[3]) if found[3] else None
        if most is not None and most < least:
            raise self._refused(at, "the numbers are in the wrong order")
        return least, most

    def _group(self, at: int) -> Tree:
        if self._text.startswith("?", self._at):
            for start in sorted(_LOOKS, key=len, reverse=True):
                if self._text.startswith(start, self._at):
                    what, mend = _LOOKS[start]
                    raise self._refused(at, f"({start} is {what}, which is not supported", mend)
            if not self._take("?:") and not self._match(_NAME):
                raise self._refused(
                    at, "flags of a group are not supported", "write classes, as in [aA]"
                )
        return self._closed(at)

    def _closed(self, at: int) -> Tree:
        """Return what is in a group that was opened."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._refused(at, f"groups more than {MAX_DEPTH} deep")
        tree = self._either()
        self._depth -= 1
        if not self._take(")"):
            raise self._refused(at, "( is not closed", r"write \(")
        return tree

    # -- characters -------------------------------------------------------------------------

    def _class(self, start: int) -> CharSet:
        negated = self._take("^")
        if self._text.startswith("]", self._at):
            raise self._refused(start, "a class of nothing", r"write \] for the character")
        ranges: list[tuple[int, int]] = []
        while not self._take("]"):
            first_at = self._at
            first = self._member(start, negated=negated)
            if not self._text.startswith("-", self._at) or self._text.startswith("-]", self._at):
                ranges += first
                continue
            self._at += 1
            last = self._member(start, negated=negated)
            # Surrogates are numbers here, and no characters.
            if len(first) != 1 or len(last) != 1 or first[0][0] != first[0][1]:
                raise self._refused(first_at, "a range needs two characters", "put the - last")
            if last[0][0] != last[0][1]:
                raise self._refused(first_at, "a range needs two characters", "put the - last")
            if last[0][0] < first[0][0]:
                raise self._refused(first_at, "a range whose end comes before its start")
            ranges.append((first[0][0], last[0][0]))
        found = charset(ranges)
        return without(found) if negated else found

    def _member(self, start: int, *, negated: bool) -> list[tuple[int, int]]:
        """Return what the next part of a class stands for."""
        at = self._at
        if at == len(self._text):
            raise self._refused(start, "[ is not closed", r"write \[")
        self._at += 1
        if self._text[at] != "\\":
            return [(ord(self._text[at]), ord(self._text[at]))]
        if self._take("b"):
            return [(8, 8)]
        code = self._code(at)
        return list(self._escape(at, negated=negated)) if code is None else [(code, code)]

    def _escape(self, at: int, *, negated: bool) -> CharSet:
        """Return what the letter behind a backslash stands for.

        :param negated: whether it is excluded, so that it must be more and not less.
        """
        code = self._code(at)
        if code is not None:
            return charset([(code, code)])
        letter = self._text[self._at : self._at + 1]
        if letter and letter in "dDwWsS":
            self._at += 1
            return named(letter).possible if negated != self._never else named(letter).certain
        if not letter:
            raise self._refused(at, "a backslash before nothing", "write two")
        if letter in "0123456789":
            raise self._refused(at, f"\\{letter} is a reference", "repeat the group")
        mend = _STRANGE.get(letter, f"write {letter}" if letter.isalpha() else "")
        raise self._refused(at, f"\\{letter} is not supported", mend)

    def _code(self, at: int) -> int | None:
        """Return the character that an escape names, if it names one."""
        letter = self._text[self._at : self._at + 1]
        following = self._text[self._at + 1 : self._at + 2]
        code: int | None = None
        if letter in _CONTROLS:
            code = _CONTROLS[letter]
        elif letter == "0" and not following.isdecimal():
            code = 0
        elif letter == "c" and following.isascii() and following.isalpha():
            self._at += 1
            code = ord(following) % 32
        elif letter and letter in "xu":
            self._at += 1
            return self._coded(letter, at)
        elif letter and not letter.isalnum():
            code = ord(letter)
        if code is not None:
            self._at += 1
        return code

    def _coded(self, letter: str, at: int) -> int:
        """Return the character of hexadecimal digits."""
        if letter == "u" and (found := self._match(_CODE)):
            code = int(found[1], 16)
            if code <= ANY[-1][1]:
                return code
        elif found := self._match(_HEX[letter]):
            code = int(found[0], 16)
            if 0xD800 <= code < 0xDC00 and self._text.startswith("\\u", self._at):
                low = _HEX["u"].match(self._text, self._at + 2)
                if low and 0xDC00 <= int(low[0], 16) < 0xE000:
                    self._at = low.end()
                    return 0x10000 + (code - 0xD800) * 1024 + int(low[0], 16) - 0xDC00
            return code
        raise self._refused(at, f"\\{letter} without its digits, or of no character")
