"""The original's other modules against a stub model, without a peer."""

from __future__ import annotations

import pytest

from erl_bridge import ErlangError
from erl_bridge.etf import Atom
from erl_bridge.service import ErllamaNode
from erl_bridge.service.served import path_bytes
from erllama_py import api
from erllama_py.testing import stub_model
from tests.unit.erl_bridge.service.othermodules import (
    ERROR,
    HEADER,
    KEY,
    META,
    MISS,
    MODEL,
    OK,
    RAM,
    TOKENS,
    call,
)
from tests.waiting import wait_for

pytestmark = pytest.mark.usefixtures("nothing_cached")


def test_counters_payloads_and_pure_functions(node: ErllamaNode) -> None:
    assert call(node, "cache_counters:init") is OK
    assert call(node, "cache:reset_counters") is OK
    assert call(node, "cache_counters:incr", 3) is OK
    assert call(node, "cache_counters:add", 3, 4) is OK
    assert call(node, "cache_counters:get", 3) == 5
    assert call(node, "cache:get_counters") == call(node, "cache_counters:snapshot")
    assert len(call(node, "cache_counters:snapshot")) == 20
    assert call(node, "cache_ram:put", KEY, b"slab", HEADER) is OK
    assert call(node, "cache_ram:load", KEY) == (OK, b"slab")
    assert call(node, "cache_ram:size_bytes") > 0
    assert call(node, "cache_ram:delete", KEY) is OK
    assert call(node, "cache_ram:load", KEY) is MISS
    prefix = call(node, "cache_kvc:build", META, b"payload")[1]
    key = call(node, "cache_key:make", META)
    ok, info, payload = call(node, "cache_kvc:parse", prefix + b"payload", key)
    assert (ok, payload) == (OK, b"payload")
    assert call(node, "cache_kvc:parse_meta", prefix + b"payload") == (OK, info)
    assert call(node, "cache_kvc:parse", prefix, key) == (ERROR, Atom("truncated"))
    assert call(node, "cache_key:quant_atom", 1) == (OK, Atom("f16"))
    assert call(node, "cache_key:quant_atom", 99) == (ERROR, Atom("unknown_quant"))
    assert call(node, "cache_key:quant_tag", Atom("q4_k_m"), 4) == b"q4_k_m"
    assert call(node, "cache_key:quant_byte", Atom("true")) == 255
    assert call(node, "cache_key:decode_tokens", TOKENS) == [1, 2, 3]
    assert call(node, "cache_key:effective_fingerprint", KEY, []) == KEY
    assert call(node, "cache_policy:trim_boundary", [*range(15)], 2, 4) == (OK, [*range(12)])
    assert call(node, "cache_policy:trim_boundary", [1], 2, 4) == (
        *(Atom("skip"),),
        Atom("too_short"),
    )
    assert call(node, "cache_policy:should_finish_save", 4, {Atom("min_tokens"): 4}) is True


def test_models_by_their_names(node: ErllamaNode) -> None:
    (pid,) = call(node, "model:models")
    assert call(node, "registry:whereis_name", MODEL) == pid
    assert call(node, "registry:all") == [(MODEL, pid)]
    assert call(node, "registry:whereis_name", Atom("others")) is None
    assert call(node, "registry:register_name", b"new", pid) is Atom("no")
    assert call(node, "registry:unregister_name", b"new") == b"new"
    assert call(node, "registry:unregister_name", MODEL) == (ERROR, Atom("not_supported"))
    assert call(node, "registry:send", MODEL, Atom("hello")) == pid
    with pytest.raises(ErlangError) as caught:
        call(node, "registry:send", b"nobody", Atom("hello"))
    assert caught.value.reason == (Atom("badarg"), (b"nobody", Atom("hello")))
    child = (None, pid, Atom("worker"), [Atom("erllama_model")])
    assert call(node, "model_sup:models") == [child]


def test_models_by_their_supervisor(node: ErllamaNode) -> None:
    config = {Atom("backend"): Atom("erllama_model_stub"), Atom("in_process"): Atom("true")}
    ok, pid = call(node, "model_sup:start_model", b"child", config)
    assert (ok, call(node, "registry:whereis_name", b"child")) == (OK, pid)
    taken = (ERROR, (Atom("already_started"), pid))
    assert call(node, "model_sup:start_model", b"child", config) == taken
    assert call(node, "model:start_link", b"child", config) == taken
    outside = {Atom("model_path"): b"/etc/passwd"}
    assert call(node, "model_sup:start_model", b"x", outside) == (ERROR, Atom("eacces"))
    assert call(node, "model_sup:stop_model", pid) is OK
    assert call(node, "model_sup:stop_model", pid) is OK
    assert call(node, "model_sup:stop_model", b"child") == (ERROR, Atom("not_found"))
    with pytest.raises(ErlangError) as caught:
        call(node, "model:stop", b"child")
    assert caught.value.reason == (
        *(Atom("noproc"),),
        (Atom("erllama_model"), Atom("not_found"), b"child"),
    )


def test_a_models_rows_are_found_by_what_addresses_them(node: ErllamaNode) -> None:
    result = call(node, "model:prefill_only", MODEL, [*range(20)])[1]
    meta = call(node, "model:cache_key_meta", MODEL)
    assert set(meta) == {*map(Atom, ("fingerprint", "quant_type", "ctx_params_hash"))}
    key = call(node, "cache_key:make", {**meta, Atom("tokens"): [*range(20)]})
    assert key == result[Atom("finish_key")]
    row = call(node, "cache_meta_srv:lookup_exact_or_wait", key, 10_000)[1]
    assert row[:2] == (key, RAM)
    assert call(node, "cache:lookup_longest_prefix", meta, [*range(25)], 10, 1) == (OK, 20, row)
    seen = call(node, "inflight:obs_get", MODEL)
    assert seen == (MODEL, Atom("idle"), 0, Atom("cold"), 0)
    assert call(node, "inflight:obs_get", b"nobody") is None


def test_the_twins_failures_name_its_module(node: ErllamaNode) -> None:
    assert call(node, "model:status", MODEL) is Atom("idle")
    for function, args in (("phase", [5]), ("tokenize", [MODEL, list(b"x")])):
        with pytest.raises(ErlangError) as caught:
            call(node, f"model:{function}", *args)
        assert caught.value.stack == [(Atom("erllama_model"), Atom(function), args, [])]


def test_streams_in_flight(node: ErllamaNode) -> None:
    (pid,) = call(node, "model:models")
    slow = {"stub_opts": {"step_delay_ms": 20}, "context_opts": {"n_seq_max": 1}}
    with stub_model("slow", **slow):
        served = call(node, "registry:whereis_name", b"slow")
        params = {Atom("response_tokens"): 200}
        ref = call(node, "model:infer", b"slow", [1, 2], params, served)[1]
        with api.infer("slow", [3, 4], {"response_tokens": 200}):
            assert call(node, "inflight:lookup", ref) == (OK, served)
            both = call(node, "inflight:all")
            assert (ref, served) in both
            assert len(both) == 2
            wait_for(lambda: call(node, "inflight:queue_depth", served) == 1)
            assert call(node, "inflight:queue_depth") == 1
            assert call(node, "inflight:queue_depth", pid) == 0
            (ours,) = [one for one, _ in both if one != ref]
            assert call(node, "inflight:lookup", ours) == (OK, served)
            assert call(node, "inflight:unregister", ours) == (ERROR, Atom("not_supported"))
            for one in (ours, ref):
                call(node, "model:cancel", one)
            wait_for(lambda: call(node, "inflight:all") == [])
            assert call(node, "inflight:lookup", ref) == (ERROR, Atom("not_found"))


def test_paths_are_binaries_or_charlists() -> None:
    assert path_bytes([0xE4, 0x4E2D]) == "ä中".encode()
    assert path_bytes(b"\xff") == b"\xff"
    for bad in (b"", [], b"a\0", [0xD800], [1 << 40], [-1], Atom("a"), [b"a"], b"x" * 5000):
        assert path_bytes(bad) is None
