"""Which template a chat is rendered with."""

from __future__ import annotations

import pytest

from erllama_py._templates.choice import choose
from erllama_py._templates.families import FAMILIES
from erllama_py.errors import ErllamaError

OWN, TOOLS, SHORT = "{{ 'own' }}", "{{ 'tools' }}", "{{ 'short' }}"
NAMED = {"tool_use": TOOLS, "short": SHORT}


def test_the_files_own_or_that_for_tools() -> None:
    assert choose(None, OWN, NAMED, None) == choose(None, OWN, NAMED, []) == OWN
    assert choose(None, OWN, NAMED, [{}]) == TOOLS
    assert choose(None, OWN, {}, [{}]) == OWN
    assert choose("default", OWN, NAMED, [{}]) == OWN


def test_a_name_or_a_text() -> None:
    assert choose("short", OWN, NAMED, [{}]) == SHORT
    assert choose("chatml", None, {}, None) == FAMILIES["chatml"]
    assert choose("chatml", OWN, {"chatml": SHORT}, None) == SHORT
    assert choose("{{ 1 }}", OWN, NAMED, None) == "{{ 1 }}"
    # The engine names a format for files that are known to have a wrong template, or none.
    assert choose(None, "mistral-v7-tekken", {}, None) == FAMILIES["mistral-v7-tekken"]


@pytest.mark.parametrize(("wanted", "default"), [(None, None), (None, ""), ("none-such", OWN)])
def test_no_template(wanted: str | None, default: str | None) -> None:
    with pytest.raises(ErllamaError) as caught:
        choose(wanted, default, {}, None)
    assert caught.value.reason == "no_template"
    assert "chatml" in caught.value.hint
