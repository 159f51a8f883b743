r"""Sets of characters, as ranges of code points.

Surrogates are no characters: no set has them.

Dialects of regular expressions do not agree on what ``\w`` and its kin are: ECMA-262 takes
ASCII for letters and digits, Python and Rust take all of Unicode.  So each has two sets: what is
in it for all of them, and what is for any.  A reply has the first only, and is valid whoever
looks at it: ``jsonschema``, pydantic, or JavaScript.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ("ANY", "CharSet", "Named", "charset", "common", "dot", "named", "without")

CharSet = tuple[tuple[int, int], ...]
"""First and last code points, ascending, with gaps between."""

LAST: Final = 0x10FFFF
ANY: Final[CharSet] = ((0, 0xD7FF), (0xE000, LAST))


def charset(ranges: Iterable[tuple[int, int]]) -> CharSet:
    """Return the set of all that are in some ranges."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return common(tuple(found), ANY)


def common(one: CharSet, other: CharSet) -> CharSet:
    """Return what is in both."""
    found = []
    left, right = 0, 0
    while left < len(one) and right < len(other):
        first = max(one[left][0], other[right][0])
        last = min(one[left][1], other[right][1])
        if first <= last:
            found.append((first, last))
        if one[left][1] < other[right][1]:
            left += 1
        else:
            right += 1
    return tuple(found)


def without(excluded: CharSet, among: CharSet = ANY) -> CharSet:
    """Return what is not in a set."""
    gaps, start = [], 0
    for first, last in excluded:
        if start < first:
            gaps.append((start, first - 1))
        start = last + 1
    if start <= LAST:
        gaps.append((start, LAST))
    return common(tuple(gaps), among)


class Named(NamedTuple):
    r"""What ``\d`` and its kin stand for: to all dialects, and to any of them."""

    certain: CharSet
    possible: CharSet

    @property
    def others(self) -> Named:
        """What the capital letter stands for."""
        return Named(without(self.possible), without(self.certain))


_DIGITS: Final = charset([(0x30, 0x39)])
_WORD: Final = charset([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
_NO_WORD: Final = charset(
    [
        # Beyond ASCII, signs that are part of a word to nobody: punctuation, currencies,
        # arrows, mathematics, box drawing, emoji.
        *((0xA1, 0xA9), (0xAB, 0xB1), (0xB4, 0xB4), (0xB6, 0xB8), (0xBB, 0xBB), (0xBF, 0xBF)),
        *((0xA0, 0xA0), (0xD7, 0xD7), (0xF7, 0xF7), (0x2000, 0x200B), (0x2010, 0x203E)),
        *((0x20A0, 0x20C0), (0x2190, 0x2426), (0x2500, 0x2775), (0x3000, 0x3003)),
        *((0x3008, 0x3020), (0x1F300, 0x1F64F), (0x1F680, 0x1F6D7), (0x1F900, 0x1F9FF)),
    ]
)
_SPACE: Final = charset(
    [
        *((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)),
        *((0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000)),
    ]
)
_MAYBE_SPACE: Final = [(0x1C, 0x1F), (0x85, 0x85), (0x180E, 0x180E), (0xFEFF, 0xFEFF)]


@functools.cache
def named(letter: str) -> Named:
    r"""Return what ``\d``, ``\w``, ``\s`` or a capital of theirs stands for."""
    if letter.isupper():
        return named(letter.lower()).others
    if letter == "d":
        return Named(_DIGITS, _digits())
    if letter == "w":
        beyond = without(_NO_WORD, without(((0, 0x7F),)))
        return Named(_WORD, charset([*_WORD, *beyond]))
    return Named(_SPACE, charset([*_SPACE, *_MAYBE_SPACE]))


def dot() -> CharSet:
    """Return what a dot is: all but the ends of lines."""
    return without(charset([(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)]))


def _digits() -> CharSet:
    """Return the decimal digits of all scripts; none is beyond plane 1."""
    codes = (code for code in range(0x20000) if unicodedata.category(chr(code)) == "Nd")
    return charset((code, code) for code in codes)
