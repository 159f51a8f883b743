"""Chats: what each begins with is in the cache for the next, whatever came between."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from erllama_py import api
from erllama_py._backends.base import BLOCK
from erllama_py._cache.store import Cache
from erllama_py._cache.trie import common_tokens
from erllama_py._engine.heads import ChatHeads
from erllama_py._engine.registry import core
from erllama_py._templates.openings import opening_of, openings
from erllama_py.api._asking import token_array
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.errors import ErllamaError
from erllama_py.testing import stub_model
from tests.models import smollm2_path
from tests.waiting import wait_for

SYSTEM = " ".join(f"rule{number}" for number in range(300))
HEAD = 301
"""What the stub makes of it, with the first role's name: "system:", and 300 words."""


def small_cache(monkeypatch: pytest.MonkeyPatch, quota: int) -> Iterator[Cache]:
    """A cache in memory alone, for the models of one test."""
    cache = Cache(quota)
    monkeypatch.setattr(core(), "_cache", cache)
    yield cache
    monkeypatch.undo()
    cache.close()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
    """Memory for 128 of the stub's blocks."""
    yield from small_cache(monkeypatch, 128 * BLOCK * 4)


def chat(question: str, **more: object) -> dict[str, object]:
    return {"system": SYSTEM, "messages": [{"role": "user", "content": question}], **more}


def flood(model: api.Model, count: int = 200) -> None:
    for number in range(count):
        api.prefill_only(model, range(10_000 + 200 * number, 10_100 + 200 * number))


def test_a_fresh_session_finds_the_system_text_after_a_flood(cache: Cache) -> None:
    with stub_model() as model:
        api.prefill_only(model, model.chat(**chat("what is this")))
        fresh = model.chat(**chat("and who are you"))
        # What a reply leaves behind is stored after it: here, to the token.
        wait_for(lambda: api.list_cached_prefixes(model, fresh) == HEAD)
        flood(model)
        assert api.list_cached_prefixes(model, fresh) >= HEAD - (BLOCK - 1)
        api.prefill_only(model, fresh)
        assert api.last_cache_hit(model) == {"kind": "partial", "prefix_len": HEAD // BLOCK * BLOCK}
        assert cache.snapshot()["heads"] == [
            {"model": cache.snapshot()["rows"][0]["model"], "tokens": HEAD, "pinned": 256}
        ]


def test_without_the_pin_it_finds_nothing(cache: Cache) -> None:
    """The same text, tokenised by the caller: nobody can tell what of it is a head."""
    text = f"system: {SYSTEM}\nuser: "
    with stub_model() as model:
        api.prefill_only(model, model.tokenize(f"{text}what is this\n"))
        flood(model)
        fresh = model.tokenize(f"{text}and who are you\n")
        assert fresh == model.chat(**chat("and who are you"))
        assert api.list_cached_prefixes(model, fresh) == 0
        assert not any(row["tokens"] == HEAD for row in cache.snapshot()["rows"])


def test_a_head_makes_no_row_and_cuts_no_prefill(cache: Cache) -> None:
    with stub_model() as model:
        prompt = model.chat(**chat("what is this"))
        api.prefill_only(model, prompt)
    assert [row["tokens"] for row in cache.snapshot()["rows"]] == [len(prompt)]


def test_an_unloaded_model_lets_its_heads_go_but_not_their_blocks(cache: Cache) -> None:
    with stub_model() as model:
        api.prefill_only(model, model.chat(**chat("what is this")))
        assert len(cache.snapshot()["heads"]) == 1
    assert cache.snapshot()["heads"] == []
    with stub_model() as model:
        assert api.list_cached_prefixes(model, model.chat(**chat("again"))) == HEAD
        assert cache.snapshot()["heads"][0]["pinned"] == 256


def test_what_is_shorter_than_a_hit_is_no_head(cache: Cache) -> None:
    with stub_model(policy={"min_tokens": 512}) as model:
        model.chat(**chat("what is this"))
    with stub_model() as model:
        model.chat([{"role": "user", "content": SYSTEM}])
        model.chat([{"role": "user", "content": "hi"}], system="be brief")
    with stub_model(stub_opts={"whole_rows": True}) as model:
        model.chat(**chat("what is this"))
        assert cache.snapshot()["heads"] == []


def test_tools_and_leading_system_messages_make_a_head_too(cache: Cache) -> None:
    tools = [{"name": f"tool{number}", "description": "does it"} for number in range(60)]
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "hi"}]
    with stub_model() as model:
        model.chat([{"role": "user", "content": "hi"}], tools=tools)
        model.chat(messages)
        assert [head["tokens"] for head in cache.snapshot()["heads"]] == [1 + 60 * 4, HEAD]


# -- how a head is found ------------------------------------------------------------------


class Renderings:
    """Renders chats as bytes of a letter each, as templates might."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.count = 0

    def __call__(self, request: object) -> bytes:
        self.count += 1
        assert isinstance(request, dict)
        words = [message["content"] for message in request["messages"]]
        if self.form == "refuse" and self.count > 1:
            raise ErllamaError("template_failed")
        text = self.form.format(system=request["system"], words="|".join(words))
        return b"".join(ord(letter).to_bytes(4, "little") for letter in text)


def kept_of(renderings: Renderings, *requests: dict[str, object]) -> list[str]:
    kept: list[bytes] = []
    heads = ChatHeads(renderings, kept.append)
    for request in requests:
        heads.note(request, renderings(request))
    return [head[::4].decode() for head in kept]


def test_a_known_head_is_not_looked_for_again() -> None:
    renderings = Renderings("<{system}>{words}")
    requests = [chat(question, system="s") for question in ("one", "two", "three")]
    assert kept_of(renderings, *requests) == ["<s>"] * 3
    assert renderings.count == 3 + len(openings(requests[0]))


def test_a_template_that_puts_something_else_in_front_gets_another_head() -> None:
    renderings = Renderings("monday <{system}>{words}")
    kept: list[bytes] = []
    heads = ChatHeads(renderings, kept.append)
    request = chat("one", system="s")
    heads.note(request, renderings(request))
    renderings.form = "tuesday <{system}>{words}"
    heads.note(request, renderings(request))
    assert [head[::4].decode() for head in kept] == ["monday <s>", "tuesday <s>"]


def test_a_template_that_refuses_the_trial_has_no_head() -> None:
    assert kept_of(Renderings("refuse"), chat("one", system="s")) == []


@pytest.mark.parametrize(
    ("request_", "has"),
    [
        ({"messages": []}, False),
        ({"messages": [], "system": b""}, False),
        ({"messages": [], "system": None, "tools": []}, False),
        ({"messages": [5, {"role": "system", "content": "s"}]}, False),
        ({"messages": "odd"}, False),
        ({"messages": [], "system": b"s"}, True),
        ({"messages": [], "tools": [{"name": "t"}]}, True),
        ({"messages": [{"role": b"system", "content": "s"}, 5]}, True),
    ],
)
def test_only_what_stands_in_front_of_a_conversation_counts(request_, has: bool) -> None:
    assert bool(opening_of(request_)) == has


@pytest.mark.model
@pytest.mark.timeout(180)
def test_a_real_models_system_text_outlives_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    system = "You answer in one short sentence. " * 25
    config = {
        "model_path": smollm2_path(),
        "policy": EVERYDAY_POLICY,
        "context_opts": {"n_ctx": 1024, "n_batch": 128, "n_threads": 1, "n_threads_batch": 2},
    }
    for _ in small_cache(monkeypatch, 24 << 20):  # sixteen blocks of 1.5 MB
        with api.load_model(config) as model:
            first, fresh = (
                model.chat([{"role": "user", "content": words}], system=system)
                for words in ("Where does the sun rise?", "Name a colour.")
            )
            first_bytes, fresh_bytes = (token_array(one).tobytes() for one in (first, fresh))
            head = common_tokens(first_bytes, fresh_bytes)
            assert head > 2 * BLOCK
            cold = api.infer(model, first, {"response_tokens": 1})
            assert list(cold)[-1].kind == "done"
            for number in range(12):
                api.prefill_only(model, [100 + (number * 131 + at * 7) % 9000 for at in range(128)])
            found = api.list_cached_prefixes(model, fresh)
            assert head - (BLOCK - 1) <= found <= head
            api.prefill_only(model, fresh)
            assert api.last_cache_hit(model) == {"kind": "partial", "prefix_len": found}
