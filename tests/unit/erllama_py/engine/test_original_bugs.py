"""The defects of erllama 0.3.0, none of which is here: a test each, by its number.

The numbers are those of docs/reference/contract/bugs.toml.  11 and 14 are about processes
of a peer: tests/live/test_original_bugs_live.py.  What the engine has a part in is asked
of SmolLM2, all else of the stub.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from erllama_py import api
from erllama_py._cache.store import Cache
from erllama_py._engine import host as hosts
from erllama_py._engine.registry import Core, core
from erllama_py._machine.environment import Environment
from erllama_py.config import EVERYDAY_POLICY, parse_load
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.otp import cache_disk_srv, cache_meta_srv, inflight
from erllama_py.testing import record, stub_model
from erllama_py.types import Atom
from tests.adapters import write_lora
from tests.models import smollm2_path
from tests.owncore import own_core
from tests.waiting import wait_for

SLOW = {"step_delay_ms": 10}
STUB = {"backend": "erllama_model_stub", "in_process": True}
STORY = "The lighthouse keeper wrote one line in the log every evening. " * 8
THREADS = {"n_threads": 1, "n_threads_batch": 2}


@pytest.fixture(scope="module")
def smollm2() -> Iterator[api.Model]:
    """SmolLM2 with two slots, in a process of its own."""
    config = {
        "model_path": smollm2_path(),
        "policy": EVERYDAY_POLICY,
        "context_opts": {"n_ctx": 512, "n_seq_max": 2, **THREADS},
    }
    with api.load_model(config) as loaded:
        yield loaded


def reason(call: Callable[[], Any]) -> Any:
    with pytest.raises(ErllamaError) as caught:
        call()
    return caught.value.reason


def text(count: int, word: str = "w") -> str:
    """Return a text of so many tokens of the stub's."""
    return " ".join(f"{word}{number}" for number in range(count))


def stats_of(stream: api.Stream) -> dict[str, Any]:
    last = record(stream)[-1]
    assert last.stats is not None, last.reason
    return last.stats


def ids_of(stream: api.Stream) -> list[int]:
    return [event.token_id for event in record(stream) if event.token_id is not None]


def emptied(model: str) -> None:
    """Evict everything, once what has just been said is stored."""

    def empty() -> bool:
        core().cache.gc()
        return not core().cache.snapshot(limit=0)["blocks"]["payloads"]

    wait_for(lambda: not core().host(model).requests)
    wait_for(empty)


def kill(model: str) -> None:
    process = core().host(model).os_pid
    assert process is not None
    os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("end", ["unload", "death"])
def test_bug_01_an_id_is_free_after_unload_and_after_death(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(hosts, "RESTARTS", 0)  # its first death is final
    for _ in range(2):
        with stub_model("again", in_process=False) as model:
            assert api.complete(model, "a", {"response_tokens": 1})["generated"]
            if end == "death":
                kill(model)
                wait_for(lambda: core().find("again") is None)


def test_bug_02_nothing_is_told_of_a_model_that_is_gone() -> None:
    def told() -> list[Any]:
        reads = (api.phase, api.pending_len, api.queue_depth, api.last_cache_hit, inflight.obs_get)
        return [read("told") for read in reads]

    with stub_model("told", stub_opts=SLOW) as model:
        api.prefill_only(model, range(50))
        streams = [api.infer(model, tokens) for tokens in (range(2000), [1])]
        wait_for(lambda: api.phase(model) == "prefilling" and api.pending_len(model) == 1)
        assert api.unload(model) == "ok"
        assert told() == ["idle", 0, 0, None, None]
        assert [record(one)[-1].kind for one in streams] == ["error", "error"]
    with stub_model("told"):
        assert told()[:4] == ["idle", 0, 0, None]


def test_bug_03_the_default_tier_saves_and_hits() -> None:
    with api.load_model(STUB) as model:
        assert api.model_info(model)["tier"] == "ram"
        first = api.complete(model, text(600), {"response_tokens": 4})
        assert (first["cache_hit_kind"], first["committed_tokens"]) == ("cold", 604)
        wait_for(lambda: api.counters()["saves_finish"] == 1)
        assert api.counters()["bytes_ram"] > 0
        again = api.prefill_only(model, first["context_tokens"])
        assert (again["cache_hit_kind"], again["finish_key"]) == ("exact", first["finish_key"])
        # Of the prompt alone there is no row: the policy's first boundary is at 2048.
        repeat = api.complete(model, text(600), {"response_tokens": 0})
        assert (repeat["cache_hit_kind"], repeat["stats"]["prefix_len"]) == ("partial", 599)


def test_bug_04_an_empty_prompt_is_refused_at_once_and_starves_nobody() -> None:
    with stub_model(stub_opts=SLOW) as model:
        running = api.infer(model, [1], {"response_tokens": 6})
        queued = api.infer(model, [2], {"response_tokens": 2})
        calls: list[Callable[[], Any]] = [
            lambda: api.complete(model, ""),
            lambda: api.prefill_only(model, []),
            lambda: api.infer(model, []),
        ]
        assert [reason(call) for call in calls] == ["empty_prompt"] * 3
        assert [record(one)[-1].kind for one in (running, queued)] == ["done", "done"]
        wait_for(lambda: api.status(model) == "idle")


def chat_of(model: str, message: Any) -> Callable[[], Any]:
    return lambda: api.apply_chat_template(model, {"messages": [message]})


def bad_calls(model: str) -> list[Callable[[], Any]]:
    """What ended the original's model."""

    return [
        lambda: api.complete(model, "a", ["no map"]),  # type: ignore[arg-type]
        lambda: api.complete(model, "a", {"stop_sequences": 5}),
        lambda: api.complete(model, list(b"charlist")),  # type: ignore[arg-type]
        lambda: api.complete(model, "x" * (4 * 1024 * 1024 + 1)),
        lambda: api.prefill_only(model, ["a"]),  # type: ignore[list-item]
        lambda: api.prefill_only(model, [-1]),
        lambda: api.prefill_only(model, [1 << 31]),
        lambda: api.detokenize(model, ["a"]),  # type: ignore[list-item]
        lambda: api.infer(model, [1.0]),  # type: ignore[list-item]
        chat_of(model, {"role": Atom("user"), "content": "a"}),
        chat_of(model, {"role": "user", "content": 5}),
        lambda: api.load_model({**STUB, "fingerprint": b"short"}),
        lambda: api.load_model({**STUB, "ctx_params_hash": bytes(33)}),
        lambda: api.load_model({**STUB, "policy": {"min_tokens": -1}}),
    ]


def refuses_all(model: str) -> None:
    """Try them while a stream goes on, in one life of the model."""
    process = core().host(model).os_pid
    with api.infer(model, [1, 2, 3], {"response_tokens": 1000}) as beside:
        next(beside)
        for number, call in enumerate(bad_calls(model)):
            with pytest.raises((ErllamaError, BadCall)):
                pytest.fail(f"call {number} was answered: {call()!r:.99}")
            assert next(beside).kind != "error", number
    assert core().host(model).os_pid == process
    assert api.complete(model, "still here", {"response_tokens": 1})["generated"]


def test_bug_05_bad_input_fails_its_caller_only() -> None:
    with stub_model(in_process=False, stub_opts=SLOW) as model:
        refuses_all(model)
    for least in (0, Atom("infinity")):
        policy = {"min_tokens": least, "cold_min_tokens": Atom("infinity")}
        with stub_model(policy={**policy, "cold_max_tokens": Atom("infinity")}) as model:
            result = api.complete(model, "a", {"response_tokens": 1})
            assert (result["finish_key"] is None) == (least == "infinity")


@pytest.mark.model
@pytest.mark.timeout(180)
def test_bug_05_nor_does_it_end_a_real_model(smollm2: api.Model) -> None:
    refuses_all(smollm2)
    assert reason(chat_of(smollm2, {"role": "user"})) == "badarg"


def test_bug_06_a_full_context_ends_its_request_only() -> None:
    context = {"n_ctx": 256, "n_seq_max": 2}
    with stub_model(context_opts=context, stub_opts={"step_delay_ms": 2}) as model:
        beside = api.infer(model, [1], {"response_tokens": 40})
        assert reason(lambda: api.infer(model, range(256))) == "context_overflow"
        assert reason(lambda: api.complete(model, text(300))) == "context_overflow"
        assert stats_of(beside)["completion_tokens"] == 40
        filled = api.complete(model, "a b c")
        assert (len(filled["generated"]), filled["finish_reason"]) == (253, "length")


@pytest.mark.model
@pytest.mark.timeout(180)
def test_bug_06_nor_does_it_end_a_real_model(smollm2: api.Model) -> None:
    tokens = [10 + number % 900 for number in range(506)]
    with api.infer(smollm2, [5], {"response_tokens": 900}) as beside:
        next(beside)
        assert reason(lambda: api.infer(smollm2, [*tokens, *tokens])) == "context_overflow"
        assert next(beside).kind != "error"
    filled = stats_of(api.infer(smollm2, tokens, {"response_tokens": 500}))
    assert filled["finish_reason"] in ("length", "stop")
    assert filled["completion_tokens"] <= 6


@pytest.mark.model
@pytest.mark.timeout(180)
@pytest.mark.parametrize("size", [4000, 4096, 4100, 10_000])
def test_bug_07_a_long_chat_is_tokenised_as_its_text(smollm2: api.Model, size: int) -> None:
    content = ("word " * (size // 5)).strip() + "!"
    chat = {"system": "Be brief.", "messages": [{"role": "user", "content": content}]}
    turns = [("system", "Be brief."), ("user", content)]
    rendered = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns)
    rendered += "<|im_start|>assistant\n"
    expected = core().host(smollm2).call("tokenize_chat", rendered.encode())
    assert api.apply_chat_template(smollm2, chat) == list(memoryview(expected).cast("I"))


@pytest.mark.model
@pytest.mark.timeout(180)
def test_bug_08_a_verdict_repeats_and_leaves_nothing(smollm2: api.Model) -> None:
    prefix = smollm2.tokenize(STORY)
    drafted = api.draft_tokens(smollm2, prefix, {"max": 6})
    cells = ids_of(api.infer(smollm2, prefix, {"response_tokens": 6}))
    verdicts = [api.verify(smollm2, prefix, drafted[:5], 5) for _ in range(3)]
    assert verdicts == [(5, drafted[5])] * 3
    assert api.verify(smollm2, prefix, [drafted[0] + 1], 1) == (0, drafted[0])
    assert api.verify(smollm2, prefix, drafted[:5], 5) == verdicts[0]
    assert ids_of(api.infer(smollm2, prefix, {"response_tokens": 6})) == cells


@pytest.mark.model
@pytest.mark.timeout(180)
def test_bug_09_vectors_repeat_and_streams_beside_them_are_untouched(smollm2: api.Model) -> None:
    tokens = smollm2.tokenize(STORY)
    params = {"response_tokens": 20, "exactness": "bit"}
    alone = ids_of(api.infer(smollm2, tokens, params))
    first = api.embed(smollm2, tokens[:40])
    stream = api.infer(smollm2, tokens, params)
    assert api.embed(smollm2, tokens[:40]) == api.embed(smollm2, tokens[:40]) == first
    assert ids_of(stream) == alone


@pytest.mark.model
@pytest.mark.timeout(180)
def test_bug_10_two_texts_have_two_vectors(smollm2: api.Model) -> None:
    """Behind one first token, as a model that adds BOS has it."""
    first = smollm2.tokenize("Once")
    one, other = (first + smollm2.tokenize(words) for words in (" upon a time", " more, please"))
    assert api.embed(smollm2, one) != api.embed(smollm2, other)
    assert api.embed(smollm2, one) != api.embed(smollm2, first)


@pytest.mark.model
@pytest.mark.timeout(180)
def test_bug_12_an_adapter_is_for_requests_to_come(smollm2: api.Model, tmp_path: Path) -> None:
    tokens = smollm2.tokenize(STORY)
    params = {"response_tokens": 24, "exactness": "bit"}
    alone = ids_of(api.infer(smollm2, tokens, params))
    emptied(smollm2)
    stream = api.infer(smollm2, tokens, params)
    first = next(event.token_id for event in stream if event.token_id is not None)
    handle = api.load_adapter(smollm2, write_lora(tmp_path / "lora.gguf"))
    rest = record(stream)
    said = [first, *(event.token_id for event in rest if event.token_id is not None)]
    assert said == alone
    wait_for(lambda: not core().host(smollm2).requests)
    # Its row is that of the weights it was computed with.
    context = [*tokens, *said]
    with_it = api.prefill_only(smollm2, context)
    api.unload_adapter(smollm2, handle)
    without = api.prefill_only(smollm2, context)
    assert (with_it["cache_hit_kind"], without["cache_hit_kind"]) == ("cold", "exact")
    assert rest[-1].stats is not None
    assert rest[-1].stats["finish_key"] == without["finish_key"] != with_it["finish_key"]


def test_bug_13_no_surplus_continued_save() -> None:
    """With the original's defaults: 4096 of 4500 are the cold row, the rest is no reason."""
    # A stub that computes a chunk in no time is not waited for by what is captured.
    paced = {"context_opts": {"n_ctx": 8192}, "stub_opts": {"step_delay_ms": 2}}
    with api.load_model({**STUB, **paced}) as model:
        for kind in ("cold", "partial"):  # of the prompt alone there is no row
            result = api.complete(model, text(4500), {"response_tokens": 10})
            assert result["cache_hit_kind"] == kind
            wait_for(lambda: not core().host(model).requests)
        counters = api.counters()
    assert (counters["saves_cold"], counters["saves_continued"]) == (1, 0)


@pytest.mark.parametrize("quant_type", ["my_own", Atom("свой")])
def test_bug_15_a_quantisation_without_a_code_is_found_in_its_file(
    tmp_path: Path, quant_type: str
) -> None:
    server = Atom("odd_rows")
    cache_disk_srv.start_link(server, os.fsencode(tmp_path / "rows"))
    tier = {"tier": "disk", "tier_srv": server, "quant_type": quant_type}
    tokens = list(range(5000, 5200))
    try:
        with stub_model(stub_opts=SLOW, **tier) as model:
            key = api.prefill_only(model, tokens)["finish_key"]
            wait_for(lambda: not core().host(model).requests)
            assert api.flush(10)
            core().cache.evict_bytes(1 << 40, ["ram"])
            stats = stats_of(api.infer(model, tokens, {"response_tokens": 1}))
            assert (stats["cache_hit_kind"], stats["tier"]) == ("exact", "disk")
            # And as a file of the original's format.
            path = Path(api.export_row(key, tmp_path))
            assert path.stat().st_size > 0
            assert api.counters()["saves_dropped"] <= 1  # the repeat's row was there
    finally:
        core().cache.gc()
        cache_disk_srv.stop(server)


def test_bug_16_no_slots_are_one_and_many_decoders_fit() -> None:
    with stub_model(context_opts={"n_seq_max": 0}) as model:
        assert len(api.complete(model, "a", {"response_tokens": 3})["generated"]) == 3
    many = {"n_seq_max": 8, "n_batch": 4}
    with stub_model(context_opts=many, stub_opts={"step_delay_ms": 2}) as model:
        streams = [api.infer(model, [number], {"response_tokens": 12}) for number in range(8)]
        assert [stats_of(one)["completion_tokens"] for one in streams] == [12] * 8


def test_bug_17_a_tick_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a write hangs, replies come, and more is stored."""
    cache = Cache(1 << 22)
    home = cache.add_tier("disk", "disk", tmp_path, 1 << 22)
    hangs, go_on = threading.Event(), threading.Event()
    really = home.directory.write

    def write(*args: Any) -> None:
        hangs.set()
        assert go_on.wait(30)
        really(*args)

    monkeypatch.setattr(home.directory, "write", write)
    with own_core(cache, home, **STUB) as own:
        try:
            for start in (1000, 2000, 3000):
                reply = own.run(list(range(start, start + 200)), 5)
                assert len(reply.tokens) == 5
            assert hangs.wait(10)
            assert own.run(list(range(1000, 1200)), 5).kind == "exact"
            assert not go_on.is_set()
        finally:
            go_on.set()
        assert cache.flush(30)


def test_bug_17_a_row_that_is_awaited_holds_up_its_request_only() -> None:
    policy = {**EVERYDAY_POLICY, "session_resume_wait_ms": 60_000}
    tokens = list(range(7000, 7100))
    with stub_model(context_opts={"n_seq_max": 2}, policy=policy) as model:
        space = core().host(model).cache.namespace
        assert space is not None
        writer = space.lookup(bytes(400), chunk=128, threads=1)
        writer.expect_row(bytes(32))  # somebody is saving it, and takes his time
        waits = api.infer(model, tokens, {"parent_key": bytes(32), "response_tokens": 2})
        for word in "abc":
            assert len(api.complete(model, text(30, word), {"response_tokens": 5})["generated"])
        assert api.pending_len(model) == 1
        writer.close()
        assert stats_of(waits)["completion_tokens"] == 2


def test_bug_18_a_corrupt_file_takes_its_row_along(tmp_path: Path) -> None:
    server = Atom("corrupt_rows")
    cache_disk_srv.start_link(server, os.fsencode(tmp_path / "rows"))
    meta = {
        "fingerprint": bytes(32),
        "quant_type": "f16",
        "ctx_params_hash": bytes(32),
        "save_reason": "finish",
        "quant_bits": 16,
        "fingerprint_mode": "safe",
        "tokens": [1, 2, 3],
        "context_size": 4096,
    }
    try:
        key, _, _ = cache_disk_srv.save(server, meta, b"payload")
        path = tmp_path / "rows" / f"{key.hex()}.kvc"
        path.write_bytes(path.read_bytes()[:-1] + b"D")
        assert reason(lambda: cache_disk_srv.load(server, key))[0] == "crc_mismatch"
        assert cache_meta_srv.lookup_exact(key) == "miss"
        assert not path.exists()
        assert cache_disk_srv.save(server, meta, b"payload")[0] == key
        assert cache_disk_srv.load(server, key)[1] == b"payload"
    finally:
        core().cache.gc()
        cache_disk_srv.stop(server)


@pytest.mark.model
@pytest.mark.timeout(180)
def test_bug_19_what_the_context_refuses_is_a_miss() -> None:
    """Another type of keys under the same fingerprint and hash: nothing of it is restored."""
    same = {"fingerprint": b"\x19" * 32, "ctx_params_hash": b"\x91" * 32}
    replies = []
    for kind in ("f16", "f32", "f16"):
        context = {"n_ctx": 512, "type_k": kind, "type_v": kind, **THREADS}
        config = {"model_path": smollm2_path(), "policy": EVERYDAY_POLICY, **same}
        with api.load_model({**config, "context_opts": context}) as model:
            process = core().host(model).os_pid
            first = api.complete(model, STORY, {"response_tokens": 6})
            wait_for(lambda model=model: not core().host(model).requests)
            again = api.complete(model, STORY, {"response_tokens": 6})
            assert (again["cache_hit_kind"], core().host(model).os_pid) == ("exact", process)
            assert again["generated"] == first["generated"]
            replies.append((first["cache_hit_kind"], first["finish_key"]))
    assert [kind for kind, _ in replies] == ["cold", "cold", "exact"]
    assert len({key for _, key in replies}) == 1


def test_bug_20_settings_have_their_effect_and_bytes_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ERLLAMA_EVICT_SAVE_TIMEOUT_MS", "1500")
    monkeypatch.setenv("ERLLAMA_FINGERPRINT_MODE", "fast_unsafe")
    monkeypatch.setenv("ERLLAMA_TIERS", '[{"backend": "ram", "quota_mb": 2}]')
    fresh = Core()
    try:
        ram = next(tier for tier in fresh.cache.snapshot(limit=0)["tiers"] if tier["name"] == "ram")
        assert ram["quota"] == 2 << 20
        assert fresh._save_timeout_s == 1.5
    finally:
        fresh.cache.close()
    assert Environment().cache().ram == 2 << 20
    assert parse_load({}).fingerprint_mode == "fast_unsafe"
    before = api.counters()["bytes_ram"]
    with stub_model() as model:
        api.prefill_only(model, range(300))
        wait_for(lambda: not core().host(model).requests)
        full = api.counters()["bytes_ram"]
        assert full > before
        core().cache.gc()
        assert api.counters()["bytes_ram"] < full
