"""Regular expressions whose meaning Python's ``re`` shares, but for ``.`` and ``$``."""

from __future__ import annotations

import re

from hypothesis import strategies as st

ATOMS = st.sampled_from(
    [
        *("a", "b", "ab", "-", "é", "😀", r"\n", r"\"", r"\\", r"\.", r"\u00e9", r"\x41", "0"),
        *(r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", ".", "[ab]", "[^ab]", "[a-c0-2]", r"[^\"\\]"),
        *(r"[\d_]", r"[^\w]", r"[^\s\d]", r"[\D]", "[-a]", "[à-ü]", r"[\x00-\x1f]", "[^😀]"),
        *("", "^", "$", "()"),
    ]
)
TIMES = st.sampled_from(["*", "+", "?", "{2}", "{0}", "{1,}", "{0,2}", "{1,3}", "*?", "{2,3}?"])


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    groups = st.one_of(inner.map("(?:{})".format), inner.map("({})".format))
    return st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.builds("{}{}".format, groups, TIMES),
    )


patterns = st.recursive(ATOMS, _grown, max_leaves=7)
texts = st.text(st.sampled_from('ab-c01A_é😀\n"\\. \t\x01٣'), max_size=7)


def judge(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """Return what a pattern is to Python: its ``$`` is not only the end, its ``.`` is more."""
    parts = re.split(r"(\\.|\[(?:\\.|[^\]])*\])", pattern, flags=re.DOTALL)
    plain = [
        part if at % 2 else part.replace("$", r"\Z").replace(".", r"[^\n\r\u2028\u2029]")
        for at, part in enumerate(parts)
    ]
    return re.compile("".join(plain), flags)
