"""How replies appear: growing in place, at the end, or on a terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

from erllama_py._notebook import render
from erllama_py._notebook.args import BadUsage
from erllama_py._notebook.reply import Reply


class Clock:
    """Stands for the time module."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(render, "time", self)

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still until told otherwise."""
    return Clock(monkeypatch)


def grow(surface: render.Surface, clock: Clock, count: int, step: float, form: str) -> Reply:
    """Feed tokens to a surface, ``step`` seconds apart."""
    reply = Reply("m", "00", 10, 512)
    reply.format = form
    for number in range(count):
        clock.now += step
        reply.text += f"word{number} "
        reply.tokens.append(number)
        surface.grown(reply, complete=False)
    surface.grown(reply, complete=True)
    return reply


def live(shell: Any) -> render.Surface:
    return render.surface(shell.ip, "live")


def test_a_live_reply_is_one_display_that_is_updated(shell: Any, clock: Clock) -> None:
    reply = grow(live(shell), clock, 50, 0.02, "markdown")
    first, *rest = shell.shown
    assert not first["update"]
    assert rest
    assert all(item["update"] for item in rest)
    assert len({item["transient"]["display_id"] for item in shell.shown}) == 1
    assert rest[-1]["data"]["text/plain"] == reply.text


def test_five_thousand_tokens_stay_below_30_messages_and_a_megabyte_a_second(
    shell: Any, clock: Clock
) -> None:
    started = clock.now
    grow(live(shell), clock, 5000, 0.001, "markdown")
    seconds = clock.now - started
    size = sum(len(str(item["data"])) for item in shell.shown)
    assert len(shell.shown) / seconds < 30
    assert size / seconds < 1_000_000


def test_long_replies_are_drawn_less_often(shell: Any, clock: Clock) -> None:
    reply = Reply("m", "00", 10, 512)
    surface = live(shell)
    reply.text = "x" * 200_000
    surface.grown(reply, complete=False)
    for _ in range(100):
        clock.now += 0.02
        reply.text += "y"
        surface.grown(reply, complete=False)
    assert len(shell.shown) == 1
    surface.grown(reply, complete=True)
    assert len(shell.shown) == 2


@pytest.mark.parametrize("form", ["markdown", "text", "json"])
def test_live_and_final_leave_the_same_output(form: str, shell: Any, clock: Clock) -> None:
    grow(live(shell), clock, 20, 0.05, form)
    lively = shell.shown[-1]
    shell.shown.clear()
    grow(render.surface(shell.ip, "final"), clock, 20, 0.05, form)
    (final,) = shell.shown
    assert (final["data"], final["metadata"]) == (lively["data"], lively["metadata"])


def test_an_open_code_block_is_closed_while_it_grows(shell: Any, clock: Clock) -> None:
    reply = Reply("m", "00", 10, 512)
    reply.text = "```python\nx = 1"
    live(shell).grown(reply, complete=False)
    assert shell.shown[0]["data"]["text/markdown"] == "```python\nx = 1\n```"
    assert shell.shown[0]["data"]["text/plain"] == "```python\nx = 1"


def test_a_long_wait_is_told_and_its_words_replaced(shell: Any, clock: Clock) -> None:
    reply = Reply("m", "00", 3000, 512)
    surface = live(shell)
    surface.waiting(reply)
    assert shell.shown == []
    for _ in range(5):
        clock.now += 1.0
        surface.waiting(reply)
    (item,) = shell.shown
    assert item["data"]["text/plain"] == "reading the prompt, 3000 tokens …"
    surface.grown(reply, complete=True)  # interrupted: no text came
    assert shell.shown[-1]["data"]["text/plain"] == ""
    assert shell.shown[-1]["update"]


def test_an_empty_reply_displays_nothing(shell: Any) -> None:
    for mode in ("live", "final"):
        render.surface(shell.ip, mode).grown(Reply("m", "00", 1, 1), complete=True)
    assert shell.shown == []


def test_a_terminal_gets_text_in_pieces(
    shell: Any, clock: Clock, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "__stdout__", sys.stdout)
    reply = grow(render.surface(shell.ip, "auto"), clock, 20, 0.02, "markdown")
    assert capsys.readouterr().out == reply.text + "\n"
    assert shell.shown == []


def test_a_terminal_gets_json_at_the_end(
    shell: Any, clock: Clock, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "__stdout__", sys.stdout)
    surface = render.surface(shell.ip, "auto")
    reply = Reply("m", "00", 1, 9)
    reply.format, reply.text = "json", '{"a":'
    surface.grown(reply, complete=False)
    assert capsys.readouterr().out == ""
    reply.text += "1}"
    surface.grown(reply, complete=True)
    assert capsys.readouterr().out == '{\n  "a": 1\n}\n'


def test_the_environment_chooses(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERLLAMA_RENDER", "live")
    chosen = render.surface(shell.ip, "auto")
    assert type(chosen) is type(render.surface(shell.ip, "live"))
    assert type(render.surface(shell.ip, "final")) is not type(chosen)
    monkeypatch.setenv("ERLLAMA_RENDER", "sometimes")
    with pytest.raises(BadUsage, match="ERLLAMA_RENDER cannot be 'sometimes'"):
        render.surface(shell.ip, "auto")


def test_the_configuration_chooses(shell: Any, stub: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("ERLLAMA_RENDER", "final")
    shell.run("%config ErllamaMagics.render = 'live'")
    shell.run("%%erllama --max 2\nhi")
    assert "display_id" in (shell.shown[0]["transient"] or {})


def test_a_captured_cell_holds_one_output(shell: Any, stub: Any) -> None:
    shell.run("%config ErllamaMagics.render = 'live'")
    shell.run("%%capture kept\nget_ipython().run_cell_magic('erllama', '--max 30', 'hi')")
    assert len(shell.ip.user_ns["kept"].outputs) == 2  # the reply and the line under it


def test_a_summary_names_what_happened() -> None:
    reply = Reply("m", "00", 100, 512)
    reply.stats = {"cache_hit_kind": "partial", "prefix_len": 90, "finish_reason": "stop",
                   "generation_ms": 100}  # fmt: skip
    reply.tokens = list(range(11))
    reply.first_token_ms = 12.3
    assert reply.summary == (
        "warm (partial): 90 of 100 prompt tokens from the cache · first token after 12 ms · "
        "11 tokens at 100/s · stop"
    )
    reply.interrupted = True
    assert reply.summary.endswith("first token after 12 ms · interrupted after 11 tokens")


def test_the_real_clock_is_used() -> None:
    assert render.time is time


# -- thinking and tool calls ------------------------------------------------------------------


def with_asides(*said: tuple[str, str]) -> Reply:
    reply = Reply("m", "00", 10, 512)
    for kind, text in said:
        if kind:
            reply.aside(kind, fresh=True).text = text
        else:
            reply.text += text
    return reply


def test_thinking_and_calls_are_set_apart_where_they_were_said() -> None:
    said = with_asides(
        ("thinking", "\nFirst.\n```\ncode"),
        ("", "\n\nYes,"),
        ("tool_call", '{"a": 1}'),
        ("", " so."),
    )
    assert said.text == "\n\nYes, so."
    assert said.thinking == "\nFirst.\n```\ncode"
    assert said.tool_calls == ['{"a": 1}']
    plain = '| First.\n| ```\n| code\n\nYes,\n\ntool call: {"a": 1}\n\n so.'
    assert said.bundle("text") == {"text/plain": plain}
    assert said.bundle("markdown")["text/markdown"] == (
        '> First.\n> ```\n> code\n> ```\n\nYes,\n\n~~~~~~ text\n{"a": 1}\n~~~~~~\n\n so.'
    )
    said.shows_thinking = False
    assert said.bundle("text")["text/plain"] == '\n\nYes,\n\ntool call: {"a": 1}\n\n so.'
    assert said.bundle("json") == {"text/plain": "\n\nYes, so."}


def test_what_is_shown_only_grows_at_its_end() -> None:
    reply = Reply("m", "00", 10, 512)
    before = ""
    for fresh, text in ((True, "\n"), (False, "one\n"), (False, "\ntwo")):
        reply.aside("thinking", fresh=fresh).text += text
        assert reply.shown.startswith(before)
        before = reply.shown
    for text in ("\n", "\nYes", ".\n"):
        reply.text += text
        assert reply.shown.startswith(before)
        before = reply.shown
    assert before == "| one\n| \n| two\n\nYes.\n"


def test_a_live_reply_grows_while_it_thinks(shell: Any, clock: Clock) -> None:
    surface, reply = live(shell), Reply("m", "00", 10, 512)
    reply.aside("thinking", fresh=True).text = "hm"
    surface.grown(reply, complete=False)
    clock.now += 1
    reply.text = "Yes."
    surface.grown(reply, complete=True)
    shown = [item["data"]["text/plain"] for item in shell.shown]
    assert shown == ["| hm", "| hm\n\nYes."]


def test_hidden_thinking_is_only_said_to_happen(shell: Any, clock: Clock) -> None:
    surface, reply = live(shell), Reply("m", "00", 10, 512)
    reply.shows_thinking = False
    reply.aside("thinking", fresh=True).text = "hm"
    clock.now += 1
    surface.waiting(reply)
    reply.text = "Yes."
    surface.grown(reply, complete=True)
    assert [item["data"]["text/plain"] for item in shell.shown] == ["thinking …", "Yes."]
