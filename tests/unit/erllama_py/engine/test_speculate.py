"""The ``speculate`` option on real models: it never changes what a greedy request says.

Nor what it leaves behind: the same rows, with the same bits of KV.

Whether a draft is worth its time is the clock's affair, and what a context has found out
about that its requests share.  So models run in this process, by a clock of the tests' own:
there drafts are always worth it.
"""

from __future__ import annotations

import functools
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from erllama_py import api
from erllama_py._engine import exchange, host, worker
from erllama_py._engine.draftmodel import DraftModel
from erllama_py._engine.frames import Drafted, WantDraft
from erllama_py._engine.process import start_in_process
from erllama_py._engine.registry import core
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.testing import record
from erllama_py.types import Event
from tests.adapters import write_lora
from tests.models import (
    gemma3_path,
    hybrid_path,
    mamba_path,
    shallow_smollm2_path,
    smollm2_path,
)
from tests.talker import Clocked
from tests.waiting import wait_for

pytestmark = [pytest.mark.model, pytest.mark.timeout(180)]

CODE = (
    "def area(width, height):\n    return width * height\n\n\n"
    "def volume(width, height, depth):\n    return width * height * depth\n\n\n"
)
EDIT = CODE + "# The same once more, with types:\n\n" + CODE[:30]
SUBJECTS = (
    "the sea", "a lighthouse", "seven red apples", "Erlang processes", "the number pi",
    "rain in Paris", "an old clock", "sorting a list", "the moon", "green tea",
    "a lost key", "the year 1969", "my neighbour's cat",
)  # fmt: skip
SHAPES = (
    "Write about {0}. Write about {0}. Write about",
    "1. {0}\n2. {0}\n3.",
    "def f(x):\n    # {0}\n    return x\n\ndef g(x):\n    # {0}\n",
    "Question: What is {0}?\nAnswer:",
)
PROMPTS = [shape.format(subject) for subject in SUBJECTS for shape in SHAPES]


def config(path: str, **context: Any) -> dict[str, Any]:
    opts = {"n_ctx": 1024, "n_threads": 1, "n_threads_batch": 2, **context}
    return {"model_path": path, "policy": EVERYDAY_POLICY, "context_opts": opts}


def clocked(*args: Any) -> api.Model:
    """Load a model by the tests' clock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "start_process", start_in_process)
        patch.setattr(worker, "Scheduler", Clocked)
        return api.load_model(*args)


@pytest.fixture(scope="module")
def smollm2() -> Iterator[api.Model]:
    with clocked("speculating", config(smollm2_path(), n_seq_max=3)) as model:
        yield model


def quiet(model: str) -> None:
    """Wait until what follows the last reply is stored, and drop it all."""
    wait_for(lambda: not core().host(model)._requests)
    core().cache.gc()


def said(model: api.Model, prompt: str, count: int, **options: Any) -> dict[str, Any]:
    """Answer a prompt of which nothing is cached."""
    quiet(model)
    return model.complete(prompt, response_tokens=count, **options)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    keys = ("generated", "reply", "finish_reason", "finish_key", "committed_tokens")
    return all(one[key] == other[key] for key in keys)


def test_more_than_fifty_prompts_say_the_same(smollm2: api.Model) -> None:
    assert len(PROMPTS) > 50
    checked = accepted = 0
    for number, prompt in enumerate(PROMPTS):
        # The first proves what rows are exact; from then on drafts come at once.
        count = 48 if number < 2 else 20
        plain = said(smollm2, prompt, count)
        guessed = said(smollm2, prompt, count, speculate={"lookup": 2})
        assert same(plain, guessed), prompt
        facts = guessed["stats"]["speculation"]
        assert "speculation" not in plain["stats"]
        checked, accepted = checked + facts["drafted"], accepted + facts["accepted"]
    assert 0 < accepted <= checked


def test_a_text_that_repeats_itself_is_mostly_drafted(smollm2: api.Model) -> None:
    plain = said(smollm2, EDIT, 160)
    guessed = said(smollm2, EDIT, 160, speculate="lookup")
    assert same(plain, guessed)
    facts = guessed["stats"]["speculation"]
    assert facts["acceptance_rate"] == facts["accepted"] / facts["drafted"] > 0.5
    assert facts["accepted"] > 0


def test_with_an_adapter_too(smollm2: api.Model, tmp_path: Path) -> None:
    """What is exact is found out for it alone: requests without it draft as before."""
    bare = said(smollm2, EDIT, 80)
    handle = smollm2.load_adapter(write_lora(tmp_path / "one.gguf", 1), scale=0.5)
    try:
        plain = said(smollm2, EDIT, 80)
        guessed = said(smollm2, EDIT, 80, speculate="lookup")
    finally:
        smollm2.unload_adapter(handle)
    assert plain["generated"] != bare["generated"]
    assert same(plain, guessed)
    again = said(smollm2, EDIT, 80, speculate="lookup")
    assert same(bare, again)
    assert again["stats"]["speculation"]["accepted"] > 0


def test_what_it_leaves_in_the_cache_is_the_same_bit_for_bit(smollm2: api.Model) -> None:
    payloads, rows = [], []
    for speculate in (False, "lookup"):
        reply = said(smollm2, EDIT, 150, speculate=speculate)
        wait_for(lambda: not core().host(smollm2)._requests)
        payloads.append(exchange.export(reply["finish_key"]).payload)
        rows.append(sorted(row["key"] for row in core().cache.snapshot(limit=99)["rows"]))
    assert reply["stats"]["speculation"]["accepted"] > 0
    assert rows[0] == rows[1] != []
    assert payloads[0] == payloads[1]


def test_a_conversation_goes_on_the_same(smollm2: api.Model) -> None:
    replies = []
    for speculate in (False, "lookup"):
        first = said(smollm2, EDIT, 100, speculate=speculate)
        wait_for(lambda: not core().host(smollm2)._requests)
        text = EDIT + first["reply"] + "\n\n# And again:\n"
        second = smollm2.complete(text, response_tokens=40, speculate=speculate)
        assert second["cache_hit_kind"] == "partial"
        replies.append((first["generated"], second["generated"], second["finish_key"]))
    assert replies[0] == replies[1]


def test_stops_ends_and_a_full_context_are_where_they_were(smollm2: api.Model) -> None:
    chat = [{"role": "user", "content": "Say these words twice: red green blue red green blue"}]
    tokens = smollm2.chat(chat)
    ended = []
    for speculate in (False, {"lookup": 1}):
        quiet(smollm2)
        stream = api.infer(smollm2, tokens, {"response_tokens": 300, "speculate": speculate})
        events = record(stream)
        ids = [event.token_id for event in events if event.token_id is not None]
        text = b"".join(event.data for event in events if event.kind == "token")
        ended.append((ids, text, events[-1].stats["finish_reason"]))
    assert ended[0] == ended[1]

    stopped = [
        said(smollm2, EDIT, 150, speculate=speculate, stop_sequences=["depth)", "volume"])
        for speculate in (False, "lookup")
    ]
    assert same(*stopped)
    assert stopped[0]["stop_sequence"] == stopped[1]["stop_sequence"]

    long = CODE * 28
    room = 1024 - len(smollm2.tokenize(long))
    assert room > 20
    full = [said(smollm2, long, 500, speculate=s) for s in (False, "lookup")]
    assert same(*full)
    assert len(full[1]["generated"]) == room


def test_a_cancelled_one_ends_and_the_next_is_the_same(smollm2: api.Model) -> None:
    expected = said(smollm2, EDIT, 60)
    quiet(smollm2)
    tokens = smollm2.tokenize(EDIT)
    options = {"response_tokens": 500, "speculate": "lookup"}
    stream = api.infer(smollm2, tokens, options)
    ids = []
    for event in stream:
        if event.token_id is not None:
            ids.append(event.token_id)
            if len(ids) == 50:
                stream.cancel()
    assert event.stats["cancelled"]
    count = min(60, len(ids))
    assert ids[:count] == expected["generated"][:count]
    assert same(said(smollm2, EDIT, 60, speculate="lookup"), expected)


def test_streams_beside_it_say_what_they_say_alone(smollm2: api.Model) -> None:
    """Until one ends: from then on others' tokens fill its cells, with and without drafts."""
    prompts = [CODE + "def area(width,", "One two three. One two three. One two", "The sea"]
    alone = [said(smollm2, prompt, 60)["generated"] for prompt in prompts]
    quiet(smollm2)
    ended = threading.Event()
    over = threading.Barrier(len(prompts) + 1)
    said_before: list[list[int]] = [[] for _ in prompts]

    def take(number: int, event: Event) -> None:
        if event.terminal:
            ended.set()
            threading.Thread(target=over.wait, daemon=True).start()
        elif event.token_id is not None and not ended.is_set():
            said_before[number].append(event.token_id)

    for number, prompt in enumerate(prompts):
        options = {"response_tokens": 60, **({"speculate": "lookup"} if number < 2 else {})}
        api.infer(smollm2, smollm2.tokenize(prompt), options, functools.partial(take, number))
    over.wait(60)
    assert max(map(len, said_before)) == 60
    for expected, heard in zip(alone, said_before, strict=True):
        assert heard == expected[: len(heard)]


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({"temperature": 0.8, "seed": 4}, "sampled"),
        ({"grammar": 'root ::= "red green "+'}, "grammar"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"exactness": "bit"}, "bit"),
    ],
)
def test_what_is_not_greedy_alone_says_the_same_and_why(
    smollm2: api.Model, options: dict[str, Any], plain: str
) -> None:
    without = said(smollm2, EDIT, 30, **options)
    guessed = said(smollm2, EDIT, 30, speculate="lookup", **options)
    assert same(without, guessed)
    facts = guessed["stats"]["speculation"]
    assert facts == {"drafted": 0, "accepted": 0, "acceptance_rate": 0.0, "plain": plain}


# -- other models, other threads ------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "plain"),
    [(mamba_path, "not_supported"), (hybrid_path, "not_supported"), (gemma3_path, "inexact")],
)
def test_where_rows_are_not_exact_it_decodes_plainly(path: Callable[[], str], plain: str) -> None:
    """States cannot be cut back; Gemma's K-quants have kernels of their own for four rows."""
    with clocked(config(path())) as model:
        for prompt in PROMPTS[:3]:
            without = said(model, prompt, 40)
            guessed = said(model, prompt, 40, speculate={"lookup": 1})
            assert same(without, guessed), prompt
            facts = guessed["stats"]["speculation"]
            assert facts["drafted"] == 0 or plain == "inexact"
            assert facts.get("plain") == plain or facts["drafted"]


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_with_more_threads_it_asks_the_engine_too(kv: str) -> None:
    """From 512 cells on two threads share one token's attention, of 16-bit KV."""
    context = {"n_threads": 2, "type_k": kv, "type_v": kv}
    with clocked(config(smollm2_path(), **context)) as model:
        for prompt in (EDIT, CODE * 8 + EDIT):
            without = said(model, prompt, 60)
            guessed = said(model, prompt, 60, speculate="lookup")
            assert same(without, guessed)
        if kv == "q8_0":
            assert "plain" not in guessed["stats"]["speculation"]


# -- drafts of another model ------------------------------------------------------------------


@pytest.fixture
def shallow() -> Iterator[api.Model]:
    with api.load_model("shallow", config(shallow_smollm2_path())) as model:
        yield model


def test_a_draft_model_changes_nothing_and_may_go(smollm2: api.Model, shallow: api.Model) -> None:
    options = {"speculate": {"draft": "shallow", "max": 12}}
    for prompt in (EDIT, "Once upon a time", PROMPTS[0]):
        assert same(said(smollm2, prompt, 80), said(smollm2, prompt, 80, **options)), prompt
    expected = said(smollm2, "Once upon a time", 120)
    quiet(smollm2)
    tokens = smollm2.tokenize("Once upon a time")
    stream = api.infer(smollm2, tokens, {"response_tokens": 120, **options})
    ids = []
    for event in stream:
        if event.token_id is not None:
            ids.append(event.token_id)
            if len(ids) == 30:
                shallow.unload()
    assert event.kind == "done"
    assert ids == expected["generated"]


def test_good_drafts_are_accepted_and_bad_ones_cut_off(
    smollm2: api.Model, shallow: api.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a draft model's answers at hand at once: right, or wrong at some token."""
    prompt = "Once upon a time"
    plain = said(smollm2, prompt, 120)
    whole = array("I", smollm2.tokenize(prompt) + plain["generated"])
    wrong_at = [99]

    def answer(self: DraftModel, want: WantDraft, tokens: array[int], send: Any) -> None:
        assert tokens == whole[: want.length]
        draft = whole[want.length : want.length + want.count]
        if wrong_at[0] < len(draft):
            draft[wrong_at[0]] = 77
        send(Drafted(want.id, want.length, draft.tobytes()))

    monkeypatch.setattr(DraftModel, "ask", answer)
    rates = []
    for at in (99, 5, 3):
        wrong_at[0] = at
        guessed = said(smollm2, prompt, 120, speculate={"draft": "shallow", "max": 8})
        assert same(plain, guessed)
        rates.append(guessed["stats"]["speculation"]["acceptance_rate"])
    assert rates[0] == 1.0
    assert 0 < rates[2] < 1.0
