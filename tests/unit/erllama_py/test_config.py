"""Load configs: every key, with what it takes and what it does not."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erllama_py import api
from erllama_py.config import Speculate, parse_load, parse_request
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom, Markers
from tests import ggufs

NUMBER = [-1, 1.5, True, "4", b"4", [], {}, 2**80]
FLAG = [0, 1, "yes", b"true", [], 2.0]
NAME = [5, True, 1.5, [], {}]
DIGEST = [b"", b"short", bytes(31), bytes(33), "x" * 32, 5, [0] * 32]
CACHE_TYPE = ["q4_1", "F16", 16, b"\xff", []]
MARKERS = [5, "x", True, [], {"start": 5, "end": "x"}, {"start": Atom("a"), "end": "b"}]
MARKERS += [{"start": "a", "end": "b" * 1025}]

# Path to the key, values it cannot have, and what the error's reason is.
BAD = [
    ("backend", [5, "vllm", b"llama", [], ""], "undef"),
    ("model_path", ["", 5, "a\0b", "x" * 4097, [300], {}], "badarg"),
    ("model_opts", [5, [], "x"], "invalid"),
    ("context_opts", [5, [], "x"], "invalid"),
    ("policy", [5, [], "x"], "invalid"),
    ("stub_opts", [5, [], "x"], "invalid"),
    ("fingerprint", DIGEST, "invalid"),
    ("ctx_params_hash", DIGEST, "invalid"),
    ("fingerprint_mode", ["SAFE", "md5", b"safe", 0, []], "invalid"),
    ("quant_type", [*NAME, "", "x" * 256], "invalid"),
    ("quant_bits", [*NUMBER, 256], "invalid"),
    ("context_size", NUMBER, "invalid"),
    ("tier", ["tape", b"ram", 5, []], "invalid"),
    ("tier_srv", [*NAME, "x" * 256], "invalid"),
    ("exactness", ["roughly", 5, []], "invalid"),
    (
        "speculate",
        [
            *(5, 1.5, "draft", b"", [], {}, {"max": 3}, {"lookup": 2, "size": 2}),
            *({"lookup": bad} for bad in (0, 16, "x", 1.5)),
            *({"draft": bad} for bad in (b"", Atom("d"), 5)),
            *({"lookup": 3, "max": 0}, {"draft": "d", "max": 16}, {"lookup": 3, "draft": "d"}),
        ],
        "invalid",
    ),
    ("cache", FLAG, "invalid"),
    ("thinking_capable", FLAG, "invalid"),
    ("chat_template", ["", b"", 5, [], "no-such-format", "{" * (1 << 20 | 1)], "invalid"),
    ("tool_call_capable", FLAG, "invalid"),
    ("tool_call_payload_capable", FLAG, "invalid"),
    ("thinking_markers", MARKERS, "invalid"),
    ("tool_call_markers", [*MARKERS, {"start": "a", "end": "b", "payload_end": 5}], "invalid"),
    ("model_opts.n_gpu_layers", [-2, 1.5, True, "all", 2**31], "invalid"),
    ("model_opts.main_gpu", NUMBER, "invalid"),
    ("model_opts.split_mode", ["column", 5, []], "badarg"),
    (
        "model_opts.tensor_split",
        [5, "x", [1] * 17, ["x"], [True], [-1], [math.nan], [math.inf], [10**400]],
        "badarg",
    ),
    ("model_opts.use_mmap", FLAG, "invalid"),
    ("model_opts.use_mlock", FLAG, "invalid"),
    ("model_opts.vocab_only", FLAG, "invalid"),
    ("context_opts.n_ctx", [*NUMBER, 2**31], "invalid"),
    ("context_opts.n_batch", [0, *NUMBER], "invalid"),
    ("context_opts.n_ubatch", NUMBER, "invalid"),
    ("context_opts.n_seq_max", [256, 257, *NUMBER], "badarg"),
    ("context_opts.n_threads", NUMBER, "invalid"),
    ("context_opts.n_threads_batch", NUMBER, "invalid"),
    ("context_opts.embeddings", FLAG, "invalid"),
    ("context_opts.offload_kqv", FLAG, "invalid"),
    ("context_opts.swa_full", FLAG, "invalid"),
    ("context_opts.flash_attn", ["maybe", 1, [], b"auto"], "badarg"),
    ("context_opts.type_k", CACHE_TYPE, "badarg"),
    ("context_opts.type_v", CACHE_TYPE, "badarg"),
    ("policy.min_tokens", [-1, 1.5, True, "few", []], "invalid"),
    ("policy.cold_min_tokens", [-1, 1.5, "few"], "invalid"),
    ("policy.cold_max_tokens", [-1, 1.5, "few"], "invalid"),
    ("policy.continued_interval", [0, -1, 1.5, "infinity"], "invalid"),
    ("policy.boundary_trim_tokens", [-1, 1.5, "infinity"], "invalid"),
    ("policy.boundary_align_tokens", [0, -1, "infinity"], "invalid"),
    ("policy.session_resume_wait_ms", [-1, 1.5, "infinity"], "invalid"),
    ("policy.prefill_chunk_size", [0, -1, 1.5, "all"], "invalid"),
]


def config_of(path: str, value: object) -> dict[str, object]:
    table, _, key = path.rpartition(".")
    return {table: {key: value}} if table else {key: value}


def children() -> set[int]:
    return {one.pid for one in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize(("path", "values", "kind"), BAD, ids=[bad[0] for bad in BAD])
def test_what_cannot_be_names_the_key_and_starts_nothing(path, values, kind) -> None:
    key, before = path.rpartition(".")[2], children()
    for value in values:
        with pytest.raises(ErllamaError) as caught:
            api.load_model("bad", config_of(path, value))
        error = caught.value
        if kind == "invalid":
            assert error.reason == (Atom("invalid"), Atom(key), value)
        else:
            assert error.reason == kind
        assert key in error.message, value
        assert error.hint
    assert children() == before
    assert "bad" not in [model["id"] for model in api.list_models()]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    path=st.sampled_from([bad[0] for bad in BAD]),
    value=st.recursive(
        st.one_of(
            *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
            st.sampled_from(["true", "false", "auto", "infinity", "ram", "undefined"]).map(Atom),
        ),
        lambda inner: st.one_of(
            *(st.lists(inner), st.tuples(inner, inner), st.dictionaries(st.text(), inner))
        ),
        max_leaves=5,
    ),
)
def test_any_value_is_taken_or_refused(path, value) -> None:
    refused = ""
    try:
        parse_load({"backend": "erllama_model_stub", **config_of(path, value)})
    except ErllamaError as error:
        refused = f"{error.reason} {error.message}"
    assert not refused or path.rpartition(".")[2] in refused


@pytest.mark.parametrize("absent", [None, Atom("undefined"), Atom("nil")])
def test_absent_values_leave_the_defaults(absent) -> None:
    plain = parse_load({})
    for path, _, _ in BAD:
        if path != "backend":
            assert parse_load(config_of(path, absent)) == plain, path


def test_markers_are_the_template_s_unless_they_are_given() -> None:
    assert parse_load({}).thinking is None
    given = {"start": b"<t>", "end": "</t>", "payload_start": None, "other": 5}
    config = parse_load({"thinking_markers": given, "tool_call_markers": given})
    assert config.thinking == config.tool_calls == Markers(b"<t>", b"</t>")
    for none in (False, Atom("false"), Atom("disabled"), {}, {"start": "a"}, {"end": "b"}):
        assert not parse_load({"thinking_markers": none}).thinking.given


def test_unknown_keys_are_ignored() -> None:
    unknown = {"model_id": b"x", "n_ctx": -1, "context_opts": {"rope": 1}, "policy": {"x": 1}}
    assert parse_load(unknown) == parse_load({})


def test_the_example_of_the_specification() -> None:
    config = parse_load(
        {
            "backend": Atom("erllama_model_llama"),
            "model_path": b"/no/such.gguf",
            "model_opts": {"n_gpu_layers": 99},
            "context_opts": {
                "n_ctx": 8192,
                "n_batch": 4096,
                "n_seq_max": 4,
                "flash_attn": Atom("auto"),
                "type_k": Atom("f16"),
                "type_v": Atom("f16"),
            },
            "fingerprint": bytes(range(32)),
            "fingerprint_mode": Atom("safe"),
            "quant_type": Atom("q4_k_m"),
            "quant_bits": 4,
            "ctx_params_hash": bytes(32),
            "context_size": 8192,
            "tier_srv": Atom("my_disk"),
            "tier": Atom("disk"),
            "policy": {"boundary_align_tokens": 256, "prefill_chunk_size": 1024},
        }
    )
    assert (config.tier, config.tier_srv, config.context_size) == ("disk", "my_disk", 8192)
    assert (config.fingerprint, config.fingerprint_mode) == (bytes(range(32)), "safe")
    assert config.policy.boundary_align_tokens == 256
    assert config.policy.min_tokens == 512


@pytest.mark.parametrize("wait", [0, 10**18])
def test_any_wait_is_a_wait(wait) -> None:
    assert parse_load({"policy": {"session_resume_wait_ms": wait}})


class TestQuantisation:
    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        path = tmp_path / "m.gguf"
        path.write_bytes(ggufs.gguf([ggufs.number(b"general.file_type", 17)]))
        return str(path)

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, ("q5_k_m", 5)),
            ({"quant_type": "q4_0"}, ("q4_0", 4)),
            ({"quant_type": "q4_0", "quant_bits": 7}, ("q4_0", 7)),
            ({"quant_type": "my_own"}, ("my_own", 16)),
            ({"quant_bits": 0}, ("q5_k_m", 0)),
        ],
    )
    def test_the_caller_before_the_file(self, path, options, expected) -> None:
        config = parse_load({"model_path": path, **options})
        assert (config.quant_type, config.quant_bits) == expected

    def test_without_a_file_that_says(self, tmp_path) -> None:
        (tmp_path / "noise.gguf").write_bytes(b"GGUF" + os.urandom(999))
        for path in (tmp_path / "noise.gguf", tmp_path / "absent.gguf", tmp_path):
            config = parse_load({"model_path": str(path)})
            assert (config.quant_type, config.quant_bits) == ("f16", 16)
        assert parse_load({}).quant_type == "f16"


class TestEnvironment:
    def test_the_policy_falls_back_to_it(self, monkeypatch) -> None:
        monkeypatch.setenv("ERLLAMA_MIN_TOKENS", "40")
        monkeypatch.setenv("ERLLAMA_CONTINUED_INTERVAL", "9")
        policy = parse_load({"policy": {"continued_interval": 5}}).policy
        assert (policy.min_tokens, policy.continued_interval) == (40, 5)

    def test_the_fingerprint_mode_falls_back_to_it(self, monkeypatch) -> None:
        assert parse_load({}).fingerprint_mode is None
        monkeypatch.setenv("ERLLAMA_FINGERPRINT_MODE", "fast_unsafe")
        assert parse_load({}).fingerprint_mode == "fast_unsafe"
        assert parse_load({"fingerprint_mode": "safe"}).fingerprint_mode == "safe"

    def test_a_load_refuses_what_it_cannot_be(self, monkeypatch) -> None:
        monkeypatch.setenv("ERLLAMA_MIN_TOKENS", "few")
        with pytest.raises(ErllamaError, match="ERLLAMA_MIN_TOKENS cannot be 'few'"):
            api.load_model("bad", {})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Atom("false"), None),
        (False, None),
        ("lookup", Speculate(15, lookup=3)),
        (Atom("lookup"), Speculate(15, lookup=3)),
        (b"lookup", Speculate(15, lookup=3)),
        (True, Speculate(15, lookup=3)),
        ({"lookup": True, "max": 4}, Speculate(4, lookup=3)),
        ({b"lookup": 5}, Speculate(15, lookup=5)),
        ({"draft": b"small"}, Speculate(8, draft="small")),
        ({Atom("draft"): "small", Atom("max"): 15}, Speculate(15, draft="small")),
    ],
)
def test_speculation_is_an_option_and_a_default(value, expected) -> None:
    assert parse_load({"speculate": value}).speculate == expected
    usual = Speculate(2, lookup=2)
    assert parse_request({"speculate": value}, "token", None, usual).generate.speculate == expected
    assert parse_request({}, "token", None, usual).generate.speculate == usual
    assert parse_request({"speculate": None}, "token", None, usual).generate.speculate == usual
