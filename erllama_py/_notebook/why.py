"""What ``%erllama why`` says: what a prompt hit, and what kept it from hitting more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from erllama_py._notebook.report import Report
from erllama_py._notebook.text import escape, markdown_table, plain_table

__all__ = ("why_report",)

_VALUE_CHARS: Final = 24
"""Of a value of the key: digests are told apart by less."""

_TIERS: Final = {"ram": "RAM", "ram_file": "RAM files", "disk": "disk"}


def why_report(answer: Mapping[str, Any], model: str) -> Report:
    """Describe what ``api.explain`` answered: a line for the hit, one for why, and a table."""
    lines = [_hit(answer, model), _sentence(answer["why"])]
    rows = list(_rows(answer))
    plain, markdown = "\n".join(lines), "  \n".join(map(escape, lines))
    if not rows:
        return Report(plain, markdown)
    heads = ("", "this prompt", "the cache")
    return Report(
        f"{plain}\n\n{plain_table(heads, rows)}", f"{markdown}\n\n{markdown_table(heads, rows)}"
    )


def _hit(answer: Mapping[str, Any], model: str) -> str:
    total, found = answer["prompt_tokens"], answer["prefix_len"]
    line = f"{answer['kind']} on {model}: {found} of {total} tokens"
    if found:
        kinds = [kind for kind in _TIERS if answer["tiers"].get(kind)]
        place = "the context" if answer["kind"] == "sticky" else "the cache"
        line += f" from {' and '.join(_TIERS[kind] for kind in kinds) or place}"
    times = [
        f"{what} {answer[key]:.1f} ms"
        for what, key in (("lookup", "lookup_ms"), ("restore", "restore_ms"))
        if answer[key] is not None and (found or key == "lookup_ms")
    ]
    return f"{line}{' · ' if times else ''}{', '.join(times)}."


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _rows(answer: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    fork = answer["first_difference"]
    if fork is not None:
        if fork["before"]:
            before = _text(fork["before"])
            yield "before it", before, before
        theirs = fork["cached_text"]
        end = "ends" if fork["index"] else "-"
        yield (
            f"token {fork['index']}",
            f"{_text(fork['prompt_text'])} ({fork['prompt_token']})",
            end if theirs is None else f"{_text(theirs)} ({fork['cached_token']})",
        )
    row = answer["nearest_row"]
    if row is not None:
        yield f"row {row['key'].hex()[:8]}", f"{row['shared']} shared", f"{row['tokens']} tokens"
    row = answer["evicted_row"]
    if row is not None:
        yield f"row {row['key'].hex()[:8]}", f"{row['tokens']} tokens of it", "evicted"
    for other in (answer["other_keys"] or ())[:1]:
        for name, (here, there) in other["differs"].items():
            yield name, _value(here), _value(there)


def _text(text: str | bytes) -> str:
    return repr(text.decode(errors="replace") if isinstance(text, bytes) else text)


def _value(value: str) -> str:
    if len(value) > _VALUE_CHARS:
        return f"{value[: _VALUE_CHARS - 1]}…"
    return value or "not set"
