r"""Markdown that shows a model's words and does nothing else.  Pure.

A front end trusts the outputs of cells that were run in it: JupyterLab puts the HTML of
their Markdown into the page as it is, and runs the scripts in it.  A reply is nobody's to
trust.  It may repeat what stood in a prompt, in a web page or in a mail, and a script in
the page can do what the user can: run cells.  A picture that is fetched tells its server
what the address holds.

So a reply is passed on as it is only where nothing in it could be more than text:

* no ``<`` that may begin a tag;
* no picture, and no link but to ``http``, ``https``, ``mailto`` or a relative path,
  without a title;
* no odd word behind the marks of a code fence, since it becomes an attribute;
* no ``$`` or ``\`` in an address: JupyterLab takes formulas out before it reads the
  Markdown, and puts them back into what has become an attribute.

Elsewhere such marks are written as character references.  In code these would be shown
as they are, so code that holds one becomes HTML of ours, ``<code>`` or ``<pre>``, of which
all but letters and digits is references.  Where two readers of Markdown disagree on what is
code, a reference may be seen as written; none of the marks is there in either case.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from typing import Final

from erllama_py._notebook.text import close_fence

__all__ = ("DANGER", "harmless")

_IN_ADDRESS: Final = r"[^\s()<>\\$\"'{}`]"
_ABSOLUTE: Final = rf"(?:https?://|mailto:){_IN_ADDRESS}*(?:\({_IN_ADDRESS}*\){_IN_ADDRESS}*)*"
_RELATIVE: Final = r"[^\s()<>:&\\$\"'{}`]+"
_ADDRESS: Final = rf"(?:{_ABSOLUTE}|{_RELATIVE})"

_TAG: Final = r"<(?=[A-Za-z/!?])"
_LINK: Final = (
    rf"\](?=\((?!(?:{_ADDRESS})?\)))"  # [text](address)
    rf"|\](?=:(?![ \t]+{_ADDRESS}[ \t]*(?:\n|\Z)))"  # [text]: address
)
_PICTURE: Final = r"!(?=\[)"
_INFO: Final = r"(?:`{3,}|~{3,})(?![`~])(?![ \t]*[\w+#.-]*[ \t]*(?:\n|\Z))"
_FORMULA: Final = r"(?:://|www\.)\S*[$\\]"

DANGER: Final = re.compile(f"{_TAG}|{_LINK}|{_PICTURE}|{_INFO}|{_FORMULA}", re.IGNORECASE)
"""What is in no output but for our own tags."""

_MARK: Final = re.compile(rf"(\\*)({_TAG}|{_LINK}|{_PICTURE}|[`~]{{3,}})")
_AUTOLINK: Final = re.compile(rf"<((?:https?://|mailto:){_IN_ADDRESS}+)>", re.IGNORECASE)
_WITH_FORMULA: Final = re.compile(_FORMULA, re.IGNORECASE)
_MATH: Final = re.compile(
    r"\$\$(?:(?!\n\s*\n).)+?\$\$|\$[^$\n]+\$|\\\((?:(?!\n\s*\n).)+?\\\)|\\\[(?:(?!\n\s*\n).)+?\\\]",
    re.DOTALL,
)
_RUN: Final = re.compile(r"(?<![\\`])`+")
_PARAGRAPHS: Final = re.compile(r"(\n[ \t]*\n)")
_FENCE: Final = re.compile(r"([ \t>]*)(`{3,}(?=[^`]*$)|~{3,})(.*)")
_LIST: Final = re.compile(r"^[ \t>]*(?:[-*+]|\d+[.)])[ \t]", re.MULTILINE)
_OPEN, _SHUT = "\0", "\1"
"""Stand for our tags while marks are looked for."""

_SIGN: Final = re.compile(r"[^\w\s]|_")


def harmless(text: str) -> str:
    """Return Markdown without anything that a trusting front end would act upon.

    A code block that is open at the end is closed.  What needs nothing else is returned as
    it is.

    :param text: without control characters.
    """
    text = close_fence(text)
    if not DANGER.search(text):
        return text
    in_list = _LIST.search(text) is not None
    return "\n".join(
        _block(lines) if is_code else _prose("\n".join(lines), in_list=in_list)
        for is_code, lines in _parts(text.split("\n"))
    )


def _parts(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Tell fenced code, with its fences, from the lines between."""
    prose: list[str] = []
    block: list[str] = []
    fence = ""
    for line in lines:
        if block:
            block.append(line)
            end = line.lstrip(" \t>").rstrip()
            if end.startswith(fence) and not end.strip(fence[0]):
                yield True, block
                block = []
        elif found := _FENCE.fullmatch(line):
            if prose:
                yield False, prose
                prose = []
            block, fence = [line], found[2]
        else:
            prose.append(line)
    if block:
        yield True, block
    if prose:
        yield False, prose


def _block(lines: list[str]) -> str:
    """Return fenced code: as it is, or as HTML where it holds what it must not."""
    if not DANGER.search("\n".join(lines)):
        return "\n".join(lines)
    before = re.match(r"[ \t>]*", lines[0])
    assert before is not None
    margin = before[0]
    # A line may lack a part of what stands before the fence, and hold such signs itself.
    stripped = re.compile(rf"(?:[ \t]*>){{0,{margin.count('>')}}}[ \t]{{0,{_room(margin)}}}")
    closed = len(lines) > 1 and not lines[-1].lstrip(" \t>").strip("`~ \t")
    inner = lines[1:-1] if closed else lines[1:]
    body = [_references(stripped.sub("", line, count=1)) for line in inner]
    first, *rest = body or [""]
    return f"\n{margin}".join([f"{margin}<pre><code>{first}", *rest, "</code></pre>"])


def _room(margin: str) -> int:
    return len(margin) - margin.rfind(">") - 1


def _prose(text: str, *, in_list: bool) -> str:
    if not in_list:  # four spaces would make code of it, and show references as written
        text = "\n".join(
            line.lstrip(" \t") if DANGER.search(line) else line for line in text.split("\n")
        )
    parts = _PARAGRAPHS.split(text)
    return "".join(part if number % 2 else _paragraph(part) for number, part in enumerate(parts))


def _paragraph(text: str) -> str:
    """Rewrite what stands between empty lines, which no code span goes beyond."""
    out, at = [], 0
    for start, end, width in _spans(text):
        out.append(_words(text[at:start]))
        code = text[start + width : end - width]
        if width > 2 or DANGER.search(code):
            out.append(f"{_OPEN}{_references(code.strip())}{_SHUT}")
        else:
            out.append(text[start:end])
        at = end
    out.append(_words(text[at:]))
    shown = "".join(out)
    if DANGER.search(shown):  # what words and code make together, such as an address
        shown = _WITH_FORMULA.sub(_formula, _MARK.sub(_marked, shown))
    return shown.replace(_OPEN, "<code>").replace(_SHUT, "</code>")


def _spans(text: str) -> Iterator[tuple[int, int, int]]:
    """Return where code spans begin and end, and how many backticks are at either side."""
    places: dict[int, list[int]] = {}
    runs = [(run.start(), len(run[0])) for run in _RUN.finditer(text)]
    for start, width in runs:
        places.setdefault(width, []).append(start)
    at = 0
    for start, width in runs:
        alike = places[width]
        following = bisect.bisect_right(alike, start)
        if start >= at and following < len(alike):
            at = alike[following] + width
            yield start, at, width


def _words(text: str) -> str:
    text = _AUTOLINK.sub(r"\1", text)
    # HTML's reference for < would be wrong in a formula.
    text = _MATH.sub(lambda found: re.sub(_TAG, r"\\lt ", found[0]), text)
    return _WITH_FORMULA.sub(_formula, _MARK.sub(_marked, text))


def _marked(found: re.Match[str]) -> str:
    # One of an odd number of backslashes escaped the mark, and would escape the reference.
    backslashes = found[1][: len(found[1]) // 2 * 2]
    return backslashes + _references(found[2])


def _references(text: str) -> str:
    return _SIGN.sub(_reference, text)


def _reference(found: re.Match[str]) -> str:
    return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(found[0]) or f"&#{ord(found[0])};"


def _formula(found: re.Match[str]) -> str:
    return re.sub(r"[$\\]", _reference, found[0])
