"""Chats through the whole core, on the stub: templates that must be stopped, and are."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from erllama_py import api
from erllama_py._engine import renderer
from erllama_py._engine.process import child_environment
from erllama_py._engine.registry import core
from erllama_py.errors import ErllamaError, ModelGone
from erllama_py.testing import stub_model
from tests.waiting import wait_for

MESSAGES = [{"role": "user", "content": "hello there"}]
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def model() -> Iterator[api.Model]:
    with stub_model(chat_template="chatml") as loaded:
        yield loaded


def refusal(model: str, template: str, **request: object) -> ErllamaError:
    with pytest.raises(ErllamaError) as caught:
        api.apply_chat_template(model, {"messages": MESSAGES, "chat_template": template, **request})
    return caught.value


def renderer_of(model: str) -> int | None:
    return core().host(model).chats.renderer.os_pid


def test_a_configured_template_renders_and_the_process_stays(model: api.Model) -> None:
    expected = model.tokenize("<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n")
    assert model.chat(MESSAGES) == expected
    first = renderer_of(model)
    assert first is not None
    assert model.chat(MESSAGES) == expected
    assert renderer_of(model) == first


HOSTILE = {
    "{{ 'a' * 10 ** 10 }}": "wants more than 512 MiB",
    "{% set n = namespace(a=[1]) %}{% for i in range(99) %}{% set n.a = n.a + n.a %}{% endfor %}": (
        "wants more than 512 MiB"
    ),
    "{{ 'a' | center(10 ** 10) }}": "wants more than 512 MiB",
    "{{ '%10000000000d' % 1 }}": "wants more than 512 MiB",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}": "calls itself without end",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}": "calls itself without end",
    "{% for i in range(10 ** 9) %}{% endfor %}": "range",
    "{{ ''.__class__.__mro__ }}": "unsafe",
}


@pytest.mark.parametrize("template", HOSTILE)
def test_a_hostile_template_is_stopped_and_the_next_chat_renders(
    model: api.Model, template: str
) -> None:
    error = refusal(model, template)
    assert error.reason == "template_failed"
    assert HOSTILE[template] in error.message
    assert model.chat(MESSAGES)


def test_too_much_text_is_too_large(model: api.Model) -> None:
    endless = "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}"
    assert refusal(model, endless).reason == "too_large"
    assert refusal(model, "{{ messages[0].content * 500000 }}").reason == "too_large"


@pytest.mark.parametrize(
    "template", [LOOPS, "{{ 10 ** (10 ** 8) }}", "{{ ('ab ' * 10 ** 7) | wordwrap(3) }}"]
)
def test_streams_go_on_while_a_template_is_being_stopped(template: str) -> None:
    """A number of a billion digits keeps the interpreter's lock, but of no other process."""
    with (
        stub_model(chat_template=template) as bad,
        stub_model(chat_template="chatml", stub_opts={"step_delay_ms": 5}) as good,
    ):
        stream = api.infer(good, [7], {"response_tokens": 4000})
        outcome: list[ErllamaError] = []

        def chat() -> None:
            try:
                api.apply_chat_template(bad, {"messages": MESSAGES})
            except ErllamaError as error:
                outcome.append(error)

        waits = threading.Thread(target=chat)
        waits.start()
        wait_for(lambda: renderer_of(bad) is not None)
        seen = 0
        while waits.is_alive():
            seen += next(stream).token_id is not None
            # Neither the other model's chats nor this one's other calls wait.
            assert good.chat(MESSAGES)
            assert bad.tokenize("a b")
        waits.join()
        stream.cancel()
        assert [error.reason for error in outcome] == ["template_failed"]
        assert "ran for 2 s, and was stopped" in outcome[0].message
        assert seen > 20


def test_an_unload_does_not_wait_for_a_template() -> None:
    outcome: list[ErllamaError] = []
    with stub_model(chat_template=LOOPS) as model:

        def chat() -> None:
            try:
                api.apply_chat_template(model, {"messages": MESSAGES})
            except ErllamaError as error:
                outcome.append(error)

        waits = threading.Thread(target=chat)
        waits.start()
        wait_for(lambda: renderer_of(model) is not None)
        pid = renderer_of(model)
        model.unload()
        waits.join()
    assert isinstance(outcome[0], ModelGone)
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, 0)


def test_no_answer_in_time_is_an_error(model: api.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model.chat(MESSAGES)
    monkeypatch.setattr(renderer, "WALL_S", 0.2)
    assert "no answer within" in refusal(model, LOOPS).message


def test_a_renderer_that_is_killed_is_replaced(model: api.Model) -> None:
    expected = model.chat(MESSAGES)
    pid = renderer_of(model)
    assert pid is not None
    os.kill(pid, 9)
    # The chat that finds it dead is not lost.
    assert model.chat(MESSAGES) == expected
    assert renderer_of(model) != pid


ORPHAN = f"""
import threading, time
from erllama_py import api
from erllama_py._engine.registry import core
config = {{"backend": "stub", "in_process": True, "chat_template": {LOOPS!r}}}
model = api.load_model(config)
ask = threading.Thread(
    target=api.apply_chat_template,
    args=(model, {{"messages": [{{"role": "user", "content": "a"}}]}}),
    daemon=True,
)
ask.start()
while (pid := core().host(model).chats.renderer.os_pid) is None:
    time.sleep(0.01)
print(pid, flush=True)
ask.join()
"""


def test_nothing_is_left_of_a_core_that_is_killed_meanwhile() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, env=child_environment()
    ) as victim:
        assert victim.stdout is not None
        pid = int(victim.stdout.readline())
        victim.kill()
    wait_for(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    """Whether a process runs: what has ended may wait to be reaped by nobody."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_forked_childs_copies_do_not_hold_it(model: api.Model) -> None:
    """What a child does after a fork, done here: then nobody has the other ends."""
    own = renderer.Renderer()
    chat = {"template": "a", "messages": [], "system": None, "tools": None, "variables": {}}
    assert own.render(chat) == b"a"
    process = own._process
    assert process is not None
    own.abandon()
    assert process.wait(10) is not None


def test_names_texts_and_nothing(model: api.Model) -> None:
    request = {"messages": MESSAGES}
    by_name = api.apply_chat_template(model, {**request, "chat_template": "zephyr"})
    assert by_name == model.tokenize("<|user|>\nhello there<|endoftext|>\n<|assistant|>\n")
    by_text = api.apply_chat_template(model, {**request, "chat_template": "{{ messages[0].role }}"})
    assert by_text == model.tokenize("user")
    unknown = refusal(model, "no-such-format")
    assert unknown.reason == "no_template"
    assert "chatml" in unknown.hint


def test_the_callers_variables_reach_the_template(model: api.Model) -> None:
    template = "{{ 'thinks' if enable_thinking else 'answers' }}"
    request = {"messages": MESSAGES, "chat_template": template}
    for wanted, word in ((True, "thinks"), (False, "answers")):
        given = {**request, "chat_template_kwargs": {"enable_thinking": wanted}}
        assert api.apply_chat_template(model, given) == model.tokenize(word)
