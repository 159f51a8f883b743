"""A reply in a page that trusts it: what could act is shown as text, the rest is as it was."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erllama_py._notebook.asides import Aside, as_markdown
from erllama_py._notebook.harmless import DANGER, harmless
from erllama_py._notebook.reply import bundle
from erllama_py._notebook.text import clean
from tests.harm import PIECES


@pytest.mark.parametrize(
    "text",
    [
        "plain, 1 < 2, a <= b, 5 <- x and <3",
        "**bold** [a link](https://example.org/a_(b)?c=1&d=2) and [one](notes.md)",
        "1. First:\n   ```python\n   print(a[0])\n   ```\n2. `second`\n\n> quoted",
        "$a<0$ and $$\\frac{1}{2}$$ for $5",
        "[1]: https://example.org\n\nsee [this][1]",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "~~~ text\nx\n~~~",
        "```mermaid\ngraph TD\n```",
    ],
)
def test_what_is_only_text_is_left_alone(text: str) -> None:
    assert harmless(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
        ("a <b>c</b>", "a &lt;b>c&lt;/b>"),
        (r"a \<b> and \\<b>", r"a &lt;b> and \\&lt;b>"),
        ("![x](https://example.org/?secret)", "&#33;[x](https://example.org/?secret)"),
        ("[x](javascript:alert(1))", "[x&#93;(javascript:alert(1))"),
        ("[x](java&#115;cript:alert(1))", "[x&#93;(java&#115;cript:alert(1))"),
        ("[x]\n\n[x]: javascript:alert(1)", "[x]\n\n[x&#93;: javascript:alert(1)"),
        ("> [x]:\n> data:text/html,x", "> [x&#93;:\n> data:text/html,x"),
        ('[x](a "$"b="c$")', '[x&#93;(a "$"b="c$")'),
        ('http://x/$"onload="y$', 'http://x/&#36;"onload="y&#36;'),
        ("<https://example.org/> and <b>", "https://example.org/ and &lt;b>"),
        ("`vector<int>` and `x`", "<code>vector&lt;int&gt;</code> and `x`"),
        ("``a ` <b>``, `", "<code>a &#96; &lt;b&gt;</code>, `"),
        ("so $a<b$", r"so $a\lt b$"),
        ("    <div>\n\n    <p>", "&lt;div>\n\n&lt;p>"),
        ("- ``` <b>", "- &#96;&#96;&#96; &lt;b>"),
        ("```html\n<b>*x*</b>", "<pre><code>&lt;b&gt;&#42;x&#42;&lt;&#47;b&gt;\n</code></pre>"),
        (
            "1. So:\n   ```html\n   <b>\n     x\n   ```\n2. y",
            "1. So:\n   <pre><code>&lt;b&gt;\n     x\n   </code></pre>\n2. y",
        ),
        ("> ~~~\n> <b>\n> > c\n> ~~~", "> <pre><code>&lt;b&gt;\n> &gt; c\n> </code></pre>"),
        ("```$\" on='x'$\n1\n```", "<pre><code>1\n</code></pre>"),
        ("<i> www.x/`a`$b$", "&lt;i> www.x/`a`&#36;b&#36;"),
        ("<i>\n```python\nx[0]\n```", "&lt;i>\n```python\nx[0]\n```"),
    ],
)
def test_what_could_act_is_text(text: str, shown: str) -> None:
    assert harmless(text) == shown


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_no_mark_that_could_act_is_left(text: str) -> None:
    shown = harmless(text)
    for ours in ("<pre><code>", "</code></pre>", "<code>", "</code>"):
        shown = shown.replace(ours, "\0")
    assert DANGER.search(shown) is None


@given(st.text().map(clean))
def test_any_text_at_all(text: str) -> None:
    words = re.sub("code|pre", "", text)  # what is left of these is ours
    assert DANGER.search(re.sub("</?(code|pre)>", "", harmless(words))) is None


def test_the_plain_text_stays_what_was_said() -> None:
    assert bundle("<b>x</b>", "markdown") == {
        "text/plain": "<b>x</b>",
        "text/markdown": "&lt;b>x&lt;/b>",
    }


def test_thinking_and_tool_calls_too() -> None:
    thought, call = Aside("thinking", 0), Aside("tool_call", 0)
    thought.text = "a <b>\n```html\n<i>\n```"
    call.text = "~~~~~~~\n<img src=x>"
    shown = as_markdown("<u>", [thought, call])
    assert shown.split("\n\n") == [
        "> a &lt;b>\n> <pre><code>&lt;i&gt;\n> </code></pre>",
        "<pre><code>" + "&#126;" * 7 + "\n&lt;img src&#61;x&gt;\n</code></pre>",
        "&lt;u>",
    ]
