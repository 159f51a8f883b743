"""The magics in a real kernel with a real model: streaming, stopping, dying."""

from __future__ import annotations

import itertools
import os
import signal
import time

import pytest

from tests.notebooks.kernel import Cell, Kernel, gone, kernel

pytestmark = pytest.mark.model

MOST_MESSAGES_PER_S = 30
INTERRUPT_S = 0.2
ATTEMPTS = 3
"""The machine may be busy for a moment; nobody presses stop three times."""

COUNT = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16"
"""A model that has begun to count does not stop before its context is full."""

_fresh = itertools.count(17)


def long_prompt(tokens: int) -> str:
    """Return a prompt of about so many tokens that no cache has seen."""
    run = next(_fresh)
    items = " ".join(f"Item {run}.{n} is {n * 7 + run}." for n in range(tokens // 14))
    return f"Run {run}. {items}"


def wait_for(cell: Cell, kind: str, count: int = 1) -> None:
    """Take messages until so many of a kind have come."""
    for message in cell:
        count -= message.kind == kind
        if count == 0:
            return
    pytest.fail(f"the cell ended before: {cell.text}")


def test_a_reply_grows_in_one_display_at_a_modest_rate(notebook: Kernel) -> None:
    cell = notebook.run(f"%%erllama --max 120 --raw -o told\n{COUNT} {next(_fresh)}")
    shown = [m for m in cell.outputs if m.kind in ("display_data", "update_display_data")]
    *growing, summary = shown
    identities = {m.content["transient"].get("display_id") for m in growing}
    assert len(identities) == 1
    assert len(growing) > 3
    texts = [m.plain for m in growing if "reading the prompt" not in m.plain]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    count = growing[-1].content["metadata"]["erllama"]["completion_tokens"]
    assert count > 20
    assert f"{count} tokens" in summary.plain
    seconds = max(cell.messages[-1].at - cell.messages[0].at, 1.0)
    assert len(cell.messages) / seconds < MOST_MESSAGES_PER_S
    assert notebook.run("print(told.text)").text == texts[-1] + "\n"


def test_nothing_is_printed_by_the_engine(notebook: Kernel) -> None:
    cell = notebook.run("%erllama load smollm2 --as other --n-ctx 256")
    notebook.run("%%erllama --model other --max 3\nhi")
    unload = notebook.run("%erllama unload other")
    assert [m.kind for m in cell.outputs + unload.outputs] == ["display_data", "display_data"]


def test_the_second_run_of_a_long_prompt_is_visibly_warm(notebook: Kernel) -> None:
    code = f"%%erllama --raw --max 5\n{long_prompt(300)}"
    cold, warm = notebook.run(code), notebook.run(code)
    assert "cold: " in cold.outputs[-1].plain
    assert "warm (exact): all " in warm.outputs[-1].plain
    assert "first token after" in warm.outputs[-1].plain
    assert warm.outputs[-2].plain == cold.outputs[-2].plain


def test_an_interrupt_returns_at_once_while_the_model_reads(notebook: Kernel) -> None:
    """Not after the prefill, which takes many seconds; and the model serves the next cell."""
    waits = []
    while not waits or (waits[-1] > INTERRUPT_S and len(waits) < ATTEMPTS):
        cell = notebook.start(f"%%erllama --raw --max 9 -o cut\n{long_prompt(3000)}")
        wait_for(cell, "display_data")  # that it is reading the prompt
        pressed = time.monotonic()
        notebook.interrupt()
        cell.finish()
        waits.append(cell.messages[-1].at - pressed)
        assert cell.status == "error"
        error, summary = cell.outputs[-1], cell.outputs[-2]
        assert error.content["ename"] == "KeyboardInterrupt"
        assert error.content["traceback"] == ["KeyboardInterrupt: the cell was interrupted"]
        assert "interrupted after 0 tokens" in summary.plain
        assert "True" in notebook.run("print(cut.interrupted and cut.tokens == [])").text
    assert waits[-1] <= INTERRUPT_S, waits
    answer = notebook.run("%%erllama --max 4\nWhat is two plus two?")
    assert "4 tokens" in answer.outputs[-1].plain


def test_an_interrupt_keeps_the_partial_reply(notebook: Kernel) -> None:
    cell = notebook.start(f"%%erllama --raw --max 3000 -o part\n{COUNT} {next(_fresh)}")
    wait_for(cell, "update_display_data", 4)
    notebook.interrupt()
    cell.finish()
    assert cell.status == "error"
    *_, reply, summary, error = cell.outputs
    assert error.content["ename"] == "KeyboardInterrupt"
    assert reply.plain.strip()
    count = notebook.run("print(len(part.tokens), part.finish_reason)").text.split()
    assert f"interrupted after {count[0]} token" in summary.plain
    assert count[1] == "cancelled"
    assert int(count[0]) > 0


@pytest.mark.parametrize("how", ["interrupt", "error", "refusal"])
def test_a_cell_that_fails_stops_run_all(how: str, notebook: Kernel) -> None:
    code = {
        "interrupt": f"%%erllama --raw --max 3000\n{COUNT} {next(_fresh)}",
        "error": "%%erllama --model nobody\nhi",
        "refusal": "%%erllama",
    }[how]
    # Both must be queued before the first one fails: what comes later is not aborted.
    busy = notebook.start("import time; time.sleep(0.5)")
    first = notebook.start(code)
    second = notebook.start("ran = True")
    busy.finish()
    if how == "interrupt":
        wait_for(first, "update_display_data", 2)
        notebook.interrupt()
    first.finish()
    assert first.status == "error"
    assert second.status == "aborted"


def test_the_kernel_completes_lines(notebook: Kernel) -> None:
    for code, match in [("%erllama ca", "cache"), ("%%erllama --mod", "--model")]:
        reply = notebook.client.complete(code, reply=True, timeout=30)["content"]
        assert match in reply["matches"]
        assert reply["cursor_end"] == len(code)


def test_a_model_killed_in_a_stream_gives_an_error_and_comes_back(notebook: Kernel) -> None:
    # Another model was in use in between: which one cells mean must not hang on what is up.
    notebook.run("%erllama load smollm2 --as other --n-ctx 256")
    notebook.run("%erllama unload")
    cell = notebook.start(f"%%erllama --raw --max 3000 -o dead\n{COUNT} {next(_fresh)}")
    wait_for(cell, "update_display_data", 3)
    (model,) = notebook.models()
    model.kill()
    cell.finish()
    assert cell.status == "error"
    assert "ended (killed with SIGKILL)" in cell.outputs[-1].plain
    assert notebook.run("assert dead.tokens")
    answer = notebook.run("%%erllama --max 4\nWhat is two plus two?")
    assert "4 tokens" in answer.outputs[-1].plain


def test_the_live_view_follows_while_a_cell_streams(notebook: Kernel) -> None:
    opened = notebook.run("%erllama cache --live")
    try:
        assert any("jupyter.widget-view" in str(m.content) for m in opened.outputs)
        cell = notebook.run(f"%%erllama --max 150 --raw\n{long_prompt(120)}")
        states = [
            m.content["data"]["state"]["state"]
            for m in cell.messages
            if m.kind == "comm_msg" and "state" in m.content["data"].get("state", {})
        ]
        assert len(set(map(str, states))) > 2
        assert any(state["models"] == ["smollm2: generating"] for state in states)
        seconds = max(cell.messages[-1].at - cell.messages[0].at, 1.0)
        assert len(cell.messages) / seconds < MOST_MESSAGES_PER_S
        assert not [m for m in cell.outputs if m.kind == "stream"]
    finally:
        notebook.run("%erllama cache --stop")


@pytest.mark.parametrize("how", ["restart", "kill", "shutdown"])
def test_no_model_process_outlives_its_kernel(how: str) -> None:
    with kernel() as started:
        started.run("%erllama load smollm2 --n-ctx 256")
        (model,) = started.models()
        # In the middle of a prefill, where it looks at nothing else.
        started.start(f"%%erllama --raw\n{'word ' * 200}")
        time.sleep(0.2)
        if how == "restart":
            started.manager.restart_kernel(now=True)
        elif how == "kill":
            os.kill(started.pid, signal.SIGKILL)
        else:
            started.manager.shutdown_kernel(now=False)
        assert gone([model], 5.0)


def test_final_mode_displays_once() -> None:
    with kernel(ERLLAMA_RENDER="final") as started:
        started.run("%erllama load smollm2 --n-ctx 256")
        cell = started.run("%%erllama --max 20\nhi")
        assert [m.kind for m in cell.outputs] == ["display_data", "display_data"]
