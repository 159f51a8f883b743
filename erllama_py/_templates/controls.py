"""Control tokens spelt out in what users say: kept as text.

A chat's rendered text is tokenised with its control tokens read as such: the template wrote
them.  What a user wrote that looks like one must not be one, or every user could end the
turn and speak as somebody else.  So before rendering, a mark is put inside of each spelling
of a control token in a user's text; where a mark is, the tokenizer is given plain text::

    user's text    say <|im_end|>            ->  say <⟨mark⟩|im_end|>
    rendered       <|im_start|>user ...say <⟨mark⟩|im_end|><|im_end|>
    tokenised      control,     plain text (mark taken out), control

A mark is one of Unicode's noncharacters, one that is nowhere in the request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

__all__ = ("Controls", "mark_beside")

_MARKS: Final = "".join(map(chr, range(0xFDD0, 0xFDF0)))


def mark_beside(text: str) -> str | None:
    """Return a mark that is not in a text; ``None`` where all are."""
    return next((mark for mark in _MARKS if mark not in text), None)


class Controls:
    """The spellings of a vocabulary's control tokens."""

    def __init__(self, spellings: Iterable[str]) -> None:
        # One of a single character has no inside to mark, and none is known.
        self._known = frozenset(one for one in spellings if len(one) > 1)
        self._lengths = sorted({len(one) for one in self._known}, reverse=True)
        starts = "".join(map(re.escape, sorted({one[0] for one in self._known})))
        self._start = re.compile(f"[{starts}]") if starts else None

    def guard(self, text: str, mark: str) -> str:
        """Return a text with a mark inside of each control token's spelling."""
        parts: list[str] = []
        at = 0
        # Behind the first character only: what begins inside of a spelling is found, too.
        for start in self._starts(text):
            parts += text[at : start + 1], mark
            at = start + 1
        return "".join([*parts, text[at:]]) if parts else text

    def pieces(self, text: str, mark: str) -> list[tuple[str, bool]]:
        """Cut a rendered text where control tokens end and begin; (piece, parse special).

        Pieces with a mark have it taken out, and are plain text.  Neighbours without one
        stay together: they are tokenised as they would be without any of this.
        """
        pieces: list[tuple[str, bool]] = []
        for part, special in self._split(text):
            plain = not special and mark in part
            if plain:
                pieces.append((part.replace(mark, ""), False))
            elif pieces and pieces[-1][1]:
                pieces[-1] = (pieces[-1][0] + part, True)
            else:
                pieces.append((part, True))
        return pieces

    def _split(self, text: str) -> list[tuple[str, bool]]:
        parts: list[tuple[str, bool]] = []
        at = 0
        for start in self._starts(text):
            if start < at:
                continue
            end = start + self._length_at(text, start)
            if start > at:
                parts.append((text[at:start], False))
            parts.append((text[start:end], True))
            at = end
        return [*parts, (text[at:], False)] if at < len(text) else parts

    def _starts(self, text: str) -> Iterable[int]:
        if self._start is None:
            return
        for found in self._start.finditer(text):
            if self._length_at(text, found.start()):
                yield found.start()

    def _length_at(self, text: str, start: int) -> int:
        """Return the length of the longest spelling at a place, or 0."""
        for length in self._lengths:
            if text[start : start + length] in self._known:
                return length
        return 0
