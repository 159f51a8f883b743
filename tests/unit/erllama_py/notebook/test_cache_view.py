"""The live view's Python side: what it shows, when it sends, that it ends."""

from __future__ import annotations

import re
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from erllama_py import api
from erllama_py._notebook.report import ROW_HEADS
from erllama_py._notebook.widgets import cache_view
from erllama_py._notebook.widgets.cache_view import PAGE_ROWS, CacheView, view_state
from tests.waiting import wait_for


@pytest.fixture
def view(shell: Any) -> Iterator[CacheView]:
    """An open view."""
    opened = CacheView()
    yield opened
    opened.close()


def prompts(model: str, count: int) -> str:
    """Fill the cache with rows it has never seen; return the last one's key."""
    key = ""
    for number in range(count):
        words = " ".join(f"{uuid.uuid4()}x{number}" for _ in range(20))
        key = api.prefill_only(model, api.tokenize(model, words))["finish_key"].hex()
    return key


def number_of(view: CacheView, name: str) -> int:
    return dict(view.state["counters"])[name]


def test_the_state_follows_the_cache(view: CacheView, stub: Any) -> None:
    before = number_of(view, "misses")
    prompts("stub", 1)
    wait_for(lambda: number_of(view, "misses") == before + 1)
    wait_for(lambda: view.state["models"] == ["stub: idle"])
    assert len(view.state["rows"][0]) == len(ROW_HEADS)
    assert view.state["rows"][0][1] == "stub"
    assert abs(view.state["rows"][0][-1] - time.time()) < 60


def test_nothing_is_sent_while_nothing_changes(view: CacheView, stub: Any) -> None:
    prompts("stub", 3)
    wait_for(lambda: view.state["models"] == ["stub: idle"])
    time.sleep(2 * cache_view.PERIOD_S)
    changes: list[Any] = []
    view.observe(changes.append, "state")
    time.sleep(3 * cache_view.PERIOD_S)
    assert changes == []


def test_rows_come_in_pages(view: CacheView, stub: Any) -> None:
    last = prompts("stub", PAGE_ROWS + 3)
    wait_for(lambda: view.state["pages"] >= 2 and last.startswith(view.state["rows"][0][0]))
    assert len(view.state["rows"]) == PAGE_ROWS
    newest = view.state["rows"][0][0]
    view._handle_custom_msg({"page": 1}, [])
    wait_for(lambda: view.state["page"] == 1)
    assert view.state["first"] == PAGE_ROWS
    assert newest not in [row[0] for row in view.state["rows"]]
    view._handle_custom_msg({"page": 999}, [])
    wait_for(lambda: view.state["page"] == view.state["pages"] - 1)


@pytest.mark.parametrize("page", [-5, 10**9, 10**40])
def test_a_page_that_is_not_there_is_the_nearest(page: int, stub: Any) -> None:
    state = view_state(page)
    assert 0 <= state["page"] < state["pages"]


def test_a_pause_holds_the_numbers(view: CacheView, stub: Any) -> None:
    view._handle_custom_msg({"paused": True}, [])
    wait_for(lambda: view.state["paused"])
    before = number_of(view, "misses")
    prompts("stub", 1)
    time.sleep(2 * cache_view.PERIOD_S)
    assert number_of(view, "misses") == before
    view._handle_custom_msg({"paused": False}, [])
    wait_for(lambda: number_of(view, "misses") > before)


@pytest.mark.parametrize("message", [None, 5, {"page": "1"}, {"page": None}, {"paused": 1}, {}])
def test_other_messages_change_nothing(message: Any, view: CacheView) -> None:
    view._handle_custom_msg(message, [])
    time.sleep(cache_view.PERIOD_S)
    assert view._thread.is_alive()
    assert (view.state["page"], view.state["paused"]) == (0, False)


def test_closing_ends_the_thread(view: CacheView) -> None:
    assert view._thread.is_alive()
    view.close()
    assert view.closed
    assert not view._thread.is_alive()
    view.close()


def test_unloading_the_extension_ends_the_view(
    shell: Any, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erllama_py._notebook.magics.in_kernel", lambda shell: True)
    shell.run("%erllama cache --live")
    view = shell.ip.magics_manager.registry["ErllamaMagics"]._view
    shell.run("%erllama cache --live")
    assert shell.ip.magics_manager.registry["ErllamaMagics"]._view is view
    shell.ip.extension_manager.unload_extension("erllama_py")
    assert view.closed
    assert not view._thread.is_alive()


def test_the_view_is_shown_with_text_beside_it(
    shell: Any, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erllama_py._notebook.magics.in_kernel", lambda shell: True)
    (text,) = shell.run("%erllama cache --live")
    assert "RAM: " in text
    assert shell.shown[0]["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert shell.run("%erllama cache --stop") == ["The live view has ended."]


def test_without_the_widget_library_the_error_says_what_to_install(
    shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erllama_py._notebook.magics.in_kernel", lambda shell: True)
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "erllama_py._notebook.widgets.cache_view", raising=False)
    monkeypatch.delattr("erllama_py._notebook.widgets.cache_view", raising=False)
    assert "pip install 'erllama-py[notebook]'" in str(shell.error("%erllama cache --live"))


def test_the_front_end_asks_nobody_else_and_sets_text_only() -> None:
    script, style = CacheView._esm, CacheView._css
    assert "http" not in script + style
    assert "import " not in script
    assert re.findall("innerHTML|outerHTML|insertAdjacent|document\\.write|eval", script) == []
    colours = re.findall(r"(?:#[0-9a-f]{3,8}\b|rgba?\()", style)
    assert colours == []
    for value in re.findall(r"var\(([^()]*)\)", style):
        name, _, fallback = value.partition(",")
        assert name.startswith("--jp-")
        assert fallback.strip()
