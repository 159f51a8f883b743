"""What a grammar that a caller wrote may be, before the engine sees it.

Its parser recurses by parentheses and by rules that begin with rules, without a limit: a few
hundred kilobytes end the process that the model is in.  What a grammar means is not looked at.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ("too_much",)

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 200
MAX_RULES: Final = 10_000

# Where parentheses are text: literals, classes, comments.
_TEXT: Final = re.compile(rb'"(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\\n])*\]|#[^\n]*', re.DOTALL)
_OTHERS: Final = re.compile(rb"[^()]+")


def too_much(grammar: bytes) -> str:
    """Return what a grammar has too much of; nothing where it may be tried."""
    if len(grammar) > MAX_BYTES:
        return f"{len(grammar)} bytes, {MAX_BYTES} at most"
    bare = _TEXT.sub(b"", grammar)
    if bare.count(b"::=") > MAX_RULES:
        return f"more than {MAX_RULES} rules"
    depth = 0
    for parenthesis in _OTHERS.sub(b"", bare):
        depth += 1 if parenthesis == ord("(") else -1
        if depth > MAX_DEPTH:
            return f"parentheses {MAX_DEPTH + 1} deep, {MAX_DEPTH} at most"
    return ""
