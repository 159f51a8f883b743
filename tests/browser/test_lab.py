"""The notebook door in JupyterLab, in a real browser."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.lab import Lab, Notebook

pytestmark = [pytest.mark.browser, pytest.mark.model]

LOAD, VIEW, PROMPT, CODE = 1, 2, 3, 4

NUMBERS = """() => Object.fromEntries(
    [...document.querySelectorAll('.erllama-counters div')].map(pair =>
        [pair.querySelector('dt').textContent, Number(pair.querySelector('dd').textContent)]))"""


@pytest.fixture
def notebook(browser: Browser, server: Lab) -> Any:
    """A notebook with the model loaded and the live view open."""
    prompt = " ".join(f"Ship {n} came in with {n * 7} crates." for n in range(25))
    server.write(
        "live.ipynb",
        [
            "%load_ext erllama_py",
            "%erllama load smollm2",
            "%erllama cache --live",
            f"%%erllama --max 120\n{prompt}\nWrite a short story about these ships.",
            "%%erllama --raw --max 40\nA loop in Python:\n```python\nfor",
        ],
    )
    opened = Notebook(browser, server, "live.ipynb")
    for cell in (0, LOAD, VIEW):
        opened.run(cell)
    yield opened
    opened.command("kernelmenu:shutdown")
    opened.page.close()


def test_the_live_view_follows_a_streaming_cell(notebook: Notebook) -> None:
    page = notebook.page
    view = notebook.output(VIEW).locator(".erllama-cache")
    expect(view).to_be_visible()
    before = page.evaluate(NUMBERS)
    notebook.start(PROMPT)
    expect(view.locator(".erllama-models")).to_have_text("smollm2: generating", timeout=60_000)
    reply = notebook.output(PROMPT).locator(".jp-RenderedMarkdown").first
    expect(reply).not_to_be_empty()
    # Still streaming, and the numbers are others already.
    page.wait_for_function(f"before => ({NUMBERS})().misses > before", arg=before["misses"])
    assert (
        page.evaluate(
            "i => window.jupyterapp.shell.currentWidget.content.widgets[i].model.executionState",
            PROMPT,
        )
        == "running"
    )
    during = page.evaluate(NUMBERS)
    assert during["blocks"] > before["blocks"]
    expect(reply).to_contain_text("crates")
    notebook.picture("streaming")
    notebook.wait_idle(PROMPT)
    page.wait_for_function(f"before => ({NUMBERS})().rows > before", arg=during["rows"])
    after = page.evaluate(NUMBERS)

    notebook.run(PROMPT)
    page.wait_for_function(
        f"before => ({NUMBERS})()['exact hits'] > before", arg=after["exact hits"]
    )
    expect(notebook.output(PROMPT)).to_contain_text("warm (exact)")
    notebook.run(CODE)
    expect(notebook.output(CODE)).to_contain_text("cold: ")

    _check_markup(view)
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        notebook.theme(theme)
        notebook.picture(theme.rpartition(" ")[2].lower())
        _check_contrast(notebook)
    assert notebook.complaints == []
    assert notebook.foreign == []
    notebook.page.evaluate(
        "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"
    )
    expect(view.locator(".erllama-models")).to_contain_text("the kernel has ended")


def _check_markup(view: Any) -> None:
    """A table that a screen reader can walk, buttons that are buttons, a polite voice."""
    table = view.get_by_role("table", name="Rows, last used first")
    expect(table).to_be_visible()
    headers = table.get_by_role("columnheader")
    assert headers.all_text_contents()[:3] == ["row", "model", "tokens"]
    assert all(each.get_attribute("scope") == "col" for each in headers.all())
    expect(table.get_by_role("rowheader").first).to_have_attribute("scope", "row")
    expect(view.get_by_role("status")).to_contain_text("hit")
    expect(view.get_by_role("meter", name="RAM in use")).to_be_visible()
    tops = view.locator("dd").evaluate_all("all => all.map(n => n.getBoundingClientRect().top)")
    assert len(set(tops)) == 1, "the counters do not stand side by side"
    pause = view.get_by_role("button", name="Pause")
    pause.focus()
    pause.press("Enter")
    resume = view.get_by_role("button", name="Resume")
    expect(resume).to_be_focused()
    resume.press("Enter")
    expect(view.get_by_role("button", name="Pause")).to_be_focused()


def _check_contrast(notebook: Notebook) -> None:
    """Text stands out from what is behind it, by the rule of WCAG AA."""
    ratios = notebook.page.evaluate(
        """() => {
          const channels = text => text.match(/[\\d.]+/g).map(Number);
          const light = rgb => rgb.slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
          const behind = node => {
            for (; node; node = node.parentElement) {
              const color = channels(getComputedStyle(node).backgroundColor);
              if (color.length < 4 || color[3] > 0.99) return color;
            }
            return [255, 255, 255];
          };
          return [...document.querySelectorAll(
              '.erllama-cache :is(strong, dt, dd, td, th, caption, button, span)')]
            .filter(node => node.textContent && node.checkVisibility())
            .map(node => {
              const back = behind(node);
              const [r, g, b, alpha = 1] = channels(getComputedStyle(node).color);
              const front = [r, g, b].map((v, at) => v * alpha + back[at] * (1 - alpha));
              const [a, c] = [light(front), light(back)].sort((x, y) => y - x);
              return [node.textContent, (a + 0.05) / (c + 0.05)];
            });
        }"""
    )
    assert len(ratios) > 20
    assert [item for item in ratios if item[1] < 4.5] == []
