"""The live view's script in an empty page: no server, no JupyterLab, no theme."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from erllama_py._notebook.report import ROW_HEADS
from erllama_py._notebook.widgets.cache_view import CacheView
from tests.browser.lab import SCREENSHOTS

pytestmark = pytest.mark.browser

HARNESS = """async ([script, style, state]) => {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(style);
  document.adoptedStyleSheets = [sheet];
  const url = URL.createObjectURL(new Blob([script], { type: 'text/javascript' }));
  const module = await import(url);
  const listeners = new Map();
  window.sent = [];
  window.listeners = listeners;
  window.model = {
    state,
    get: name => window.model[name],
    on: (name, call) => listeners.set(call, name),
    off: (name, call) => listeners.delete(call),
    send: message => window.sent.push(message),
  };
  window.tell = event => listeners.forEach((name, call) => { if (name === event) call(); });
  window.update = state => { window.model.state = state; window.tell("change:state"); };
  window.cleanup = await module.default.render({ model: window.model, el: document.body });
}"""


def state(**changes: Any) -> dict[str, Any]:
    """Return a state as the kernel sends it."""
    rows = [[f"row{n:05}", "m", 10 * n, "1 MB", n, "after the prompt", 0.0] for n in range(3)]
    return {
        "words": ["1 hit.", "2 rows."],
        "models": ["m: idle"],
        "counters": [["exact hits", 1], ["misses", 2], ["blocks", 30]],
        "tiers": [{"name": "RAM", "share": 0.25, "text": "1 GB of 4 GB"}],
        "heads": list(ROW_HEADS),
        "rows": rows,
        "first": 0,
        "row_count": 3,
        "page": 0,
        "pages": 1,
        "paused": False,
        **changes,
    }


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that shows the view."""
    opened = browser.new_page()
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda message: complaints.append(message.text))
    opened.evaluate(HARNESS, [CacheView._esm, CacheView._css, state()])
    yield opened
    opened.close()
    assert complaints == []


def update(page: Page, /, **changes: Any) -> None:
    page.evaluate("state => window.update(state)", state(**changes))


def test_it_shows_the_state_and_follows_it(page: Page) -> None:
    table = page.get_by_role("table", name="Rows, last used first")
    assert table.get_by_role("row").count() == 4
    expect(page.get_by_text("1 GB of 4 GB")).to_be_visible()
    expect(page.get_by_role("meter", name="RAM in use")).to_have_attribute("aria-valuenow", "25")
    update(page, counters=[["exact hits", 7]], rows=[], row_count=0, tiers=[])
    assert page.locator("dd").all_text_contents() == ["7"]
    expect(page.locator("caption")).to_have_text("No rows yet: what is computed appears here")
    assert page.get_by_role("meter").count() == 0
    assert page.get_by_role("row").count() == 1


def test_the_counters_stand_side_by_side(page: Page) -> None:
    tops = page.locator(".erllama-counters > div").evaluate_all(
        "nodes => nodes.map(node => node.getBoundingClientRect().top)"
    )
    assert len(tops) == 3
    assert len(set(tops)) == 1
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "alone.png")


def test_names_are_text_and_never_markup(page: Page) -> None:
    evil = "<img src=x onerror='window.bad = 1'><b>m</b>"
    row = [evil, evil, 1, evil, 1, evil, 0.0]
    update(page, models=[evil], rows=[row], words=[evil], counters=[[evil, 1]], heads=[evil] * 7)
    expect(page.locator("tbody td").first).to_have_text(evil)
    assert page.locator("img, b").count() == 0
    assert page.evaluate("window.bad") is None


def test_buttons_ask_and_keep_the_focus(page: Page) -> None:
    update(page, pages=3, page=1, first=25, row_count=60)
    expect(page.get_by_text("26 to 28 of 60")).to_be_visible()
    older = page.get_by_role("button", name="Older")
    older.focus()
    older.press("Enter")
    page.get_by_role("button", name="Newer").press("Space")
    page.get_by_role("button", name="Pause").click()
    assert page.evaluate("window.sent") == [{"page": 2}, {"page": 0}, {"paused": True}]
    older.focus()
    update(page, pages=3, page=2, first=50, row_count=60)
    expect(older).to_be_focused()
    expect(older).to_have_attribute("aria-disabled", "true")
    older.press("Enter")
    assert len(page.evaluate("window.sent")) == 3


def test_it_says_when_there_is_no_kernel_any_more(page: Page) -> None:
    pause = page.get_by_role("button", name="Pause")
    expect(pause).to_be_visible()
    page.evaluate("window.tell('comm_live_update')")
    expect(page.get_by_text("the kernel has ended; run the cell again")).to_be_visible()
    expect(pause).to_be_hidden()
    update(page)  # it was not the end
    expect(page.get_by_text("m: idle")).to_be_visible()
    expect(pause).to_be_visible()


def test_one_page_needs_no_pager(page: Page) -> None:
    expect(page.get_by_role("button", name="Older")).to_be_hidden()


def test_it_speaks_seldom(page: Page) -> None:
    page.evaluate(
        """() => { window.spoken = 0;
        new MutationObserver(() => { window.spoken += 1; })
          .observe(document.querySelector('[role=status]'), { childList: true }); }"""
    )
    for number in range(20):
        update(page, words=[f"{number} hits."])
    assert page.evaluate("window.spoken") == 0  # the first words were spoken just now
    expect(page.get_by_role("status")).to_have_text("19 hits.", timeout=10_000)
    assert page.evaluate("window.spoken") == 1


def test_unchanged_text_is_not_touched(page: Page) -> None:
    page.evaluate(
        """() => { window.touched = 0;
        new MutationObserver(found => { window.touched += found.length; })
          .observe(document.body, { childList: true, subtree: true, characterData: true }); }"""
    )
    update(page)
    assert page.evaluate("window.touched") == 0


def test_a_closed_view_listens_no_more(page: Page) -> None:
    page.evaluate("window.cleanup()")
    assert page.evaluate("window.listeners.size") == 0


def test_the_state_of_these_tests_is_the_kernels() -> None:
    """Were a key renamed, the page would be tested with what is never sent."""
    view = CacheView()
    try:
        assert set(json.loads(json.dumps(view.state))) == set(state())
    finally:
        view.close()
