"""Markers of thinking and tool calls, as chat templates show them."""

from __future__ import annotations

import pytest

from erllama_py._templates.markers import thinking_markers, tool_call_markers
from erllama_py.types import Markers

QWEN3 = """
{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
{{- '<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
{{- '\\n<tool_call>\\n{"name": "' }}{{- '"}\\n</tool_call>' }}
"""


def test_a_template_with_both_texts_shows_the_markers() -> None:
    assert thinking_markers(QWEN3) == Markers(b"<think>", b"</think>")
    assert tool_call_markers(QWEN3) == Markers(b"<tool_call>", b"</tool_call>")
    assert thinking_markers("[THINK] x [/THINK]") == Markers(b"[THINK]", b"[/THINK]")


@pytest.mark.parametrize("template", ["", "{{ messages }}", "<think>", "</tool_call> only"])
def test_half_a_pair_shows_nothing(template: str) -> None:
    assert thinking_markers(template) is None
    assert tool_call_markers(template) is None
