"""``%%erllama --session`` and ``%erllama session``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from erllama_py import api, testing
from erllama_py.errors import ErllamaError
from erllama_py.types import Ref
from tests.models import smollm2_path
from tests.waiting import wait_for


@pytest.fixture
def stub() -> Iterator[api.Model]:
    """The stub with room for several sessions."""
    with testing.stub_model("stub", context_opts={"n_ctx": 4096, "n_seq_max": 6}) as model:
        yield model


@pytest.fixture
def chats(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The chat requests that were made."""
    seen: list[dict[str, Any]] = []
    chat = api.apply_chat_template

    def note(model: Any, request: Any) -> Any:
        seen.append(request)
        return chat(model, request)

    monkeypatch.setattr(api, "apply_chat_template", note)
    return seen


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of the streams that were started."""
    seen: list[dict[str, Any]] = []
    infer = api.infer

    def note(model: Any, tokens: Any, params: Any) -> Any:
        seen.append(params)
        return infer(model, tokens, params)

    monkeypatch.setattr(api, "infer", note)
    return seen


def held(model: str = "stub") -> list[Any]:
    return [one["session_id"] for one in api.list_sessions(model)]


def said(shell: Any) -> str:
    text: str = shell.ip.user_ns["_erllama"].text
    return text


def test_a_cell_goes_on_in_what_was_said(
    shell: Any, stub: Any, chats: list[dict[str, Any]], options: list[dict[str, Any]]
) -> None:
    shell.run("%%erllama --max 2 --session trip --system Briefly.\nWhere to?")
    first = said(shell)
    shell.run("%%erllama --max 2 --session trip\nAnd then?")
    shell.run("%%erllama --max 2\nAnother thing.")
    shell.run("%%erllama --max 2 --session other\nHello.")
    told = {"role": "user", "content": "Where to?"}, {"role": "assistant", "content": first}
    assert chats[:2] == [
        {"messages": [told[0]], "system": "Briefly."},
        {"messages": [*told, {"role": "user", "content": "And then?"}], "system": "Briefly."},
    ]
    assert chats[2:] == [
        {"messages": [{"role": "user", "content": text}]} for text in ("Another thing.", "Hello.")
    ]
    assert [one.get("session_id") for one in options] == ["trip", "trip", None, "other"]


def test_what_was_said_is_shown_and_listed(shell: Any, stub: Any) -> None:
    shell.run("%%erllama --max 2 --session trip --system Briefly.\nWhere to?")
    shown = shell.run("%erllama session trip")
    assert shown == [f"(Briefly.)\n> Where to?\n{said(shell)}"]
    api.complete(stub, "a b", {"response_tokens": 1, "session_id": 7})
    wait_for(lambda: all(one["tokens"] for one in api.list_sessions(stub)))
    (table,) = shell.run("%erllama session")
    rows = [line.split() for line in table.splitlines()]
    waiting = {str(one["session_id"]): str(one["tokens"]) for one in api.list_sessions(stub)}
    assert ["trip", "2", "stub", waiting["trip"]] in rows
    assert ["7", "-", "stub", waiting["7"]] in rows
    assert "text/markdown" in shell.shown[0]["data"]


def test_one_is_ended_here_and_in_the_model(shell: Any, stub: Any, chats: Any) -> None:
    for name in ("a", "b", "c"):
        shell.run(f"%%erllama --max 1 --session {name}\nhi")
    api.complete(stub, "x", {"response_tokens": 1, "session_id": "python's"})
    assert set(held()) == {"a", "b", "c", "python's"}
    assert shell.run("%erllama session a --end") == ["Ended: a."]
    assert set(held()) == {"b", "c", "python's"}
    shell.run("%%erllama --max 1 --session a\nhi again")
    assert len(chats[-1]["messages"]) == 1, "it begins anew"
    assert shell.run("%erllama session --end") == ["Ended: b, c, a."]
    assert held() == ["python's"], "what others began is theirs"
    assert shell.run('%erllama session "python\'s" --end') == ["Ended: python's."]
    assert held() == []
    assert shell.run("%erllama session --end") == ["There is no session."]
    assert shell.run("%erllama session")[0].startswith("There is no session")


def test_a_conversation_may_go_on_with_another_model(
    shell: Any, stub: Any, chats: Any, options: Any
) -> None:
    long = " ".join(f"talk{number}" for number in range(80))
    with testing.stub_model("other"):
        shell.run(f"%%erllama --max 2 --session a --model stub\n{long}")
        wait_for(lambda: api.list_sessions("stub")[0]["tokens"])
        shell.run("%%erllama --max 2 --session a --model stub\nmore")
        shell.run("%%erllama --max 2 --session a --model other\nand more")
        assert [len(one["messages"]) for one in chats] == [1, 3, 5]
        assert ["parent_key" in one for one in options] == [False, True, False]
        assert held("other") == held("stub") == ["a"]
        shell.run("%erllama session a --end")
        assert held("other") == held("stub") == []


@pytest.mark.parametrize(
    ("line", "words", "hint"),
    [
        ("%%erllama --session trip --raw\nx", "--raw and --session exclude each other", ""),
        ("%%erllama --session ' '\nx", "a session needs a NAME", ""),
        (
            "%%erllama --session trip --system Other\nx",
            "has begun with another system message",
            "%erllama session trip --end",
        ),
        ("%erllama session tripp", "no session 'tripp'", "did you mean trip?"),
        ("%erllama session nobody --end", "no session 'nobody'", "there are: trip"),
        (
            "%%erllama --session trip\n" + "word " * 5000,
            "",
            "the conversation is too long: %erllama session trip --end",
        ),
    ],
)
def test_errors_say_how_to_go_on_and_nothing_is_lost(
    shell: Any, stub: Any, line: str, words: str, hint: str
) -> None:
    shell.run("%%erllama --max 2 --session trip --system One\nhello")
    before = shell.run("%erllama session trip")
    error = shell.error(line)
    assert isinstance(error, ErllamaError)
    assert words in error.message
    assert hint in error.hint
    assert shell.run("%erllama session trip") == before
    shell.run("%%erllama --max 2 --session trip --system One\nstill there?")


class Interrupts:
    """Interrupts a stream's consumer once ``after`` events have come."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.after = 0
        get = api.Stream.get
        seen = 0

        def interrupted(stream: Any, timeout: float | None = None) -> Any:
            nonlocal seen
            if self.after:
                seen += 1
                if seen > self.after:
                    self.after = seen = 0
                    raise KeyboardInterrupt
            return get(stream, None if self.after else timeout)

        monkeypatch.setattr(api.Stream, "get", interrupted)


@pytest.mark.parametrize(("after", "messages"), [(4, 4), (0, 2)])
def test_what_an_interrupted_reply_said_stays(
    shell: Any, stub: Any, monkeypatch: pytest.MonkeyPatch, after: int, messages: int
) -> None:
    shell.run("%%erllama --max 2 --session a\nhello")
    wait_for(lambda: api.list_sessions(stub)[0]["tokens"])
    interrupts = Interrupts(monkeypatch)
    if after:
        interrupts.after = after
    else:
        monkeypatch.setattr(
            api.Stream, "get", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt())
        )
    with pytest.raises(KeyboardInterrupt):
        shell.run("%%erllama --max 2000 --session a\ntell me all")
    assert (
        len(shell.ip.magics_manager.registry["ErllamaMagics"].talks.get("a").messages) == messages
    )


def test_the_next_cell_waits_for_what_an_interrupt_stopped(
    shell: Any, stub: Any, options: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may take long; until it is over the session has a request."""
    shell.run("%%erllama --max 2 --session a\nhello")
    talks = shell.ip.magics_manager.registry["ErllamaMagics"].talks
    refused = threading.Event()
    infer = api.infer

    def busy_at_first(*args: Any) -> Any:
        if not refused.is_set():
            refused.set()
            raise ErllamaError("sticky_busy", "it has a request that is not over")
        return infer(*args)

    monkeypatch.setattr(api, "infer", busy_at_first)
    assert isinstance(shell.error("%%erllama --max 2 --session a\nbusy"), ErllamaError)
    refused.clear()
    talks.get("a").unsettled = True
    shell.run("%%erllama --max 2 --session a\ngoes on")
    assert refused.is_set()
    assert not talks.get("a").unsettled


@pytest.fixture
def smollm2() -> Iterator[api.Model]:
    config = {
        "model_path": smollm2_path(),
        "context_opts": {"n_ctx": 1024, "n_seq_max": 2, "n_threads": 1, "n_threads_batch": 2},
    }
    with api.load_model("small", config) as model:
        yield model


@pytest.mark.model
@pytest.mark.timeout(120)
def test_a_conversation_goes_on_in_the_context(shell: Any, smollm2: api.Model) -> None:
    """A reply that ends by itself is what the template makes of it the next time."""
    shell.run("%%erllama --max 60 --session trip\nWhat is 2+2?")
    reply = shell.ip.user_ns["_erllama"]
    assert reply.finish_reason == "stop"
    wait_for(lambda: smollm2.sessions[0]["tokens"])
    waiting = smollm2.sessions[0]["tokens"]
    *_, summary = shell.run("%%erllama --max 4 --session trip\nAnd once more.")
    second = shell.ip.user_ns["_erllama"]
    assert (second.hit, second.prefix_len) == ("sticky", waiting)
    assert f"warm (sticky): {waiting} of {second.prompt_tokens} prompt tokens from the context" in (
        summary
    )
    assert isinstance(second.ref, Ref)
    shell.run("%erllama why")
