"""What a hostile text is made of, for the tests that show such texts."""

from __future__ import annotations

from typing import Final

__all__ = ("PIECES",)

PIECES: Final = (
    *("<script>window.harmed = 1</script>", "<img src=x onerror='window.harmed = 1'>", "<b>"),
    *("<", ">", "&", "&lt;", "</b>", "<!--", "-->", "<a href='javascript:harm()'>x</a>"),
    *("[x](javascript:harm())", "[x](", "](", "]: ", "[x]: javascript:harm()", "[x]", ")", "x"),
    *("![x](http://127.0.0.1:9/p.png)", "![", "!", "<javascript:harm()>", "&#58;"),
    *("`", "``", "```", "~~~", "````", "```html", "``` a=b", "`<b>`", "~"),
    *("$", "$$", r"\(", r"\)", r"\[", r"\]", "\\", r"\begin{x}", r"\end{x}", "@@0@@", "{", "}"),
    *('"', "'", "=", '$" onmouseover="window.harmed = 1" $', "http://x.org/", "www.x.org/"),
    *("\n", "\n", "\n\n", "\n> ", "\n- ", "\n1. ", "\n    ", "\n   ", "  ", " ", "\t", "# ", "| "),
    *("word", "*", "**", "_", "mailto:x@y.org", "https:", "javascript:harm()", ":"),
)
