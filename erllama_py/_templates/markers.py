"""The markers of thinking and tool calls that a chat template shows.

Model files do not name them.  A template that was written for them has both in its text,
since it takes thinking out of former turns and writes former calls; one that has only one
of two, or none of these, shows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from erllama_py.types import Markers

__all__ = ("thinking_markers", "tool_call_markers")

_THINKING = (
    Markers(b"<think>", b"</think>"),
    Markers(b"<thinking>", b"</thinking>"),
    Markers(b"<seed:think>", b"</seed:think>"),
    Markers(b"[THINK]", b"[/THINK]"),
    Markers(b"<|START_THINKING|>", b"<|END_THINKING|>"),
)
_TOOL_CALLS = (
    Markers(b"<tool_call>", b"</tool_call>"),
    Markers(b"<|tool_call_start|>", b"<|tool_call_end|>"),
    Markers(b"<|tool_calls_section_begin|>", b"<|tool_calls_section_end|>"),
    Markers(b"<seed:tool_call>", b"</seed:tool_call>"),
    Markers(b"<|START_ACTION|>", b"<|END_ACTION|>"),
)


def thinking_markers(template: str) -> Markers | None:
    """Return what thinking is marked with; ``None`` where the template does not show it."""
    return _first(_THINKING, template)


def tool_call_markers(template: str) -> Markers | None:
    """Return what a tool call is marked with; ``None`` where the template does not show it."""
    return _first(_TOOL_CALLS, template)


def _first(known: Sequence[Markers], template: str) -> Markers | None:
    for markers in known:
        if markers.start.decode() in template and markers.end.decode() in template:
            return markers
    return None
