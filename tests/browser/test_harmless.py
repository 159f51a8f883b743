"""What JupyterLab makes of a hostile reply in a cell that was run, and so is trusted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from erllama_py._notebook.harmless import harmless
from tests.browser.lab import Lab, Notebook
from tests.harm import PIECES

pytestmark = pytest.mark.browser

RENDER = """async texts => {
  const mime = window.jupyterapp.shell.currentWidget.content.rendermime;
  const known = new Set(('P PRE CODE BLOCKQUOTE UL OL LI H1 H2 H3 H4 H5 H6 EM STRONG A BR HR '
    + 'TABLE THEAD TBODY TR TH TD DEL SPAN INPUT').split(' '));
  const acts = node => !known.has(node.tagName)
    || [...node.attributes].some(one => one.name.startsWith('on'))
    || node.tagName === 'A' && !['http:', 'https:', 'mailto:'].includes(node.protocol);
  const found = [];
  for (const text of texts) {
    const shown = mime.createRenderer('text/markdown');
    document.body.append(shown.node);
    const data = { 'text/markdown': text };
    await shown.renderModel({ data, metadata: {}, trusted: true, setData() {} });
    const bad = [...shown.node.querySelectorAll('*')]
      .filter(node => !node.closest('mjx-container') && acts(node));
    if (bad.length) found.push([text, bad[0].outerHTML]);
    shown.node.remove();
    shown.dispose();
  }
  return found;
}"""


@pytest.fixture
def page(browser: Browser, server: Lab) -> Iterator[Any]:
    """JupyterLab with an empty notebook."""
    server.write("harmless.ipynb", [""])
    opened = Notebook(browser, server, "harmless.ipynb")
    opened.complaints.clear()
    yield opened.page
    opened.command("kernelmenu:shutdown")
    opened.page.close()


def test_no_hostile_reply_puts_more_than_text_into_the_page(page: Any) -> None:
    draw = random.Random(20)
    texts = ["".join(draw.choices(PIECES, k=draw.randint(1, 25))) for _ in range(600)]
    assert page.evaluate(RENDER, list(map(harmless, texts))) == []
    quoted = ["> " + harmless(text).replace("\n", "\n> ") for text in texts[:200]]
    assert page.evaluate(RENDER, quoted) == []
    assert page.evaluate("window.harmed") is None
    # The same texts do harm where nobody rewrites them: the check sees it.
    assert len(page.evaluate(RENDER, texts[:50])) > 10


def test_code_of_a_reply_is_shown_to_the_letter(page: Any) -> None:
    code = '<div class="a">\n  *x* & `y` $z$ &lt; \\n [q](r:s)\n\n</div>'
    text = f"See `map<K, *V>`, <b>:\n\n1. one\n   ```html\n   <p>\n   ```\n\n```html\n{code}\n```"
    shown = page.evaluate(
        """async text => {
          const mime = window.jupyterapp.shell.currentWidget.content.rendermime;
          const shown = mime.createRenderer('text/markdown');
          const data = { 'text/markdown': text };
          await shown.renderModel({ data, metadata: {}, trusted: true, setData() {} });
          const texts = [...shown.node.querySelectorAll('code')].map(node => node.textContent);
          return [shown.node.querySelector('p').textContent, ...texts];
        }""",
        harmless(text),
    )
    assert shown == ["See map<K, *V>, <b>:", "map<K, *V>", "<p>\n", f"{code}\n"]
