"""The tables of ``docs/reference/contract`` tell all of the API, and tests that are there.

What fails here says which row to add, where, and in which form.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from erl_bridge.service.convert import PYTHON_ONLY
from erl_bridge.service.heads import FUNCTIONS
from erl_bridge.service.modules import MODULES
from erl_bridge.service.others import SERVED
from erllama_py import api, config
from erllama_py._cache.counters import NAMES
from erllama_py._engine import pressure
from erllama_py.config import _load, _request, _speculate, _values
from erllama_py.otp import model, scheduler
from erllama_py.testing import record, stub_model
from tests.arch.contract import (
    FOLDER,
    Asked,
    Row,
    differences,
    keys_in_text,
    messages_in,
    missing,
    names,
    needless,
    reasons,
    reasons_of,
    rows,
    wrong_tests,
)
from tests.arch.source import ROOT, Module

NOT_SERVED = {
    *("erllama_model:get_policy/1", "erllama_model:get_backend_state/1"),
    *("erllama_model:get_last_sampler_cfg/1", "erllama_model:get_request_sampler_ref/1"),
}
"""Functions of the original that its own tests use, and that are ``undef`` here."""

REASONS_OF_THE_SPECIFICATION = """
    already_loaded not_found model_not_loaded busy empty_prefix timeout not_supported
    thinking_not_enabled load_failed malformed_gguf context_failed oom released badarg too_large
    invalid_token tokenize_failed exception context_overflow batch_overflow embed_failed
    no_template template_failed invalid_content grammar_failed no_logits decode_failed
    step_failed no_gpu noproc function_clause badkey undef already_present conflict expired
    max_concurrent eexist enoent bad_thresholds invalid_config unknown_call missing_keys invalid
    ordering missing_key unknown_quant bad_header unsupported_version bad_trailer
    bad_length_prefixed_section bad_tlv unknown_save_reason unknown_fingerprint_mode
    unknown_quant_byte payload_length_mismatch truncated trailing_bytes missing_tlv
    payload_out_of_bounds crc_mismatch key_mismatch malformed cannot_create_dir
"""
"""Of api.md section 15, the KVC readers, ``validate_config/1`` and the tier servers."""

OPTIONS_OF_THE_SPECIFICATION = {
    "load": """
        backend model_path model_opts context_opts fingerprint fingerprint_mode quant_type
        quant_bits ctx_params_hash context_size tier tier_srv policy thinking_capable model_id
        thinking_markers tool_call_markers tool_call_capable tool_call_payload_capable
    """,
    "model_opts": """
        n_gpu_layers main_gpu split_mode tensor_split use_mmap use_mlock vocab_only
    """,
    "context_opts": """
        n_ctx n_batch n_ubatch n_seq_max n_threads n_threads_batch embeddings offload_kqv
        flash_attn type_k type_v
    """,
    "policy": """
        min_tokens cold_min_tokens cold_max_tokens continued_interval boundary_trim_tokens
        boundary_align_tokens session_resume_wait_ms prefill_chunk_size
    """,
    "request": """
        response_tokens parent_key stop_sequences thinking temperature top_p top_k min_p
        repetition_penalty seed grammar session_id thinking_budget_tokens
    """,
    "thinking_markers": "start end",
    "tool_call_markers": "start end payload_start payload_end",
    "environment": """
        min_tokens cold_min_tokens cold_max_tokens continued_interval boundary_trim_tokens
        boundary_align_tokens session_resume_wait_ms evict_save_timeout_ms fingerprint_mode
        tiers scheduler writer_max_concurrent thinking_signing_key
    """,
    "scheduler": """
        enabled pressure_source interval_ms high_watermark low_watermark min_evict_bytes
        evict_tiers
    """,
}
"""Of api.md section 5, load-config.md and beyond-0.3.md: they have rows, whether anything
asks for them or not.  Options that no parser here is seen to ask for belong here, too."""

WORDS = {"unloaded", "model_down", "bad_call", "shutdown", "killed"}
"""Reasons put together elsewhere: how a stream or a call learns that its model has ended."""

CHAT = {
    *("messages", "role", "content", "system", "tools", "name", "description", "schema"),
    *("type", "text", "tool_calls"),
    *("chat_template", "chat_template_kwargs", "add_generation_prompt", "parse_special"),
}
MESSAGES = {"thinking_delta", "tool_call_delta"}
"""Inside ``erllama_token``."""


def check(found: list[str]) -> None:
    """Fail with what is to be done, a line each."""
    assert not found, "\n" + "\n".join(found)


# -- rows -----------------------------------------------------------------------------------


def test_every_row_has_a_meaning_and_a_test_that_is_there() -> None:
    told = rows()
    assert len(told) > 300
    check([f"{row}: it has no meaning" for row in told if not row.meaning.strip()])
    check(wrong_tests(told))


def test_every_table_is_shown() -> None:
    page = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```\{contract\} (\w+)$", page, re.MULTILINE)
    assert sorted(shown) == sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ((), "no test is named"),
        (("tests/arch/nowhere.py::test_x",), "there is no file tests/arch/nowhere.py"),
        (("tests/arch/test_contract.py::test_nothing",), "there is no test_nothing"),
        (("tests/arch/test_contract.py",), "there is no  in tests/arch"),
        (("tests/arch/contract.py::tests_in",), "there is no tests_in"),
        (
            ("tests/unit/erllama_py/test_config.py::test_absent_values_leave_the_defaults[5]",),
            "is not among the cases",
        ),
    ],
)
def test_a_row_that_names_no_test_is_found(tests: tuple[str, ...], why: str) -> None:
    """The check above can fail."""
    planted = Row("results", "stats", "x", "what it is", tests)
    (found,) = (line for line in wrong_tests([*rows(), planted]) if line.startswith(str(planted)))
    assert why in found


def test_a_row_that_is_missing_is_told_with_its_place() -> None:
    (missing,) = differences("results", "stats", names("results", "stats") | {"a.new"})
    assert missing.startswith("docs/reference/contract/results.toml [stats]: a.new is not told.")
    assert missing.endswith('"a.new" = ["what it means", "tests/...py::test_that_shows_it"]')
    (gone,) = differences("results", "stats", names("results", "stats") - {"finish_key"})
    assert gone.endswith("results.toml [stats]: there is no finish_key.  Remove the row")


# -- functions ------------------------------------------------------------------------------


def test_every_function_a_peer_may_call_has_a_row() -> None:
    served: dict[str, set[tuple[str, int]]] = {"erllama": set(FUNCTIONS)}
    for module, functions in [*SERVED.items(), *MODULES.items()]:
        served.setdefault(module, set()).update(functions)
    found = []
    for module, which in served.items():
        found += differences("functions", module, {f"{name}/{arity}" for name, arity in which})
    check([*found, *differences("functions", "undef", NOT_SERVED)])
    told = {row.table for row in rows() if row.file == "functions"}
    assert told == {*served, "undef", "erllama_py.api"}


def test_every_function_of_python_only_has_a_row() -> None:
    theirs = {name for name, _ in FUNCTIONS}
    check(differences("functions", "erllama_py.api", set(api.__all__) - theirs))


# -- options --------------------------------------------------------------------------------

SETTINGS = {"environment", "scheduler"}
"""Tables of options.toml that are the environment's."""

SAMPLES: list[dict[str, Any]] = [
    {"model_path": "/no/such.gguf"},
    {"backend": "erllama_model_stub", "in_process": True},
    {"tool_call_markers": {"start": "<call>", "end": "</call>"}},
]
"""Load configs: keys that are read only where another is given need a sample that gives it."""
REQUESTS: list[dict[str, Any]] = [
    {},
    {"speculate": {"lookup": 3, "max": 2}},
    {"speculate": {"draft": "d"}},
]
"""Likewise, options of requests."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """What the parsers ask each map for."""
    noted: dict[str, set[str]] = {}
    really = _values.options_of

    def options(value: Any, what: str) -> Asked:
        return Asked(really(value, what), noted.setdefault(what, set()))

    for module in (_values, _load, _request, _speculate):
        monkeypatch.setattr(module, "options_of", options)
    for sample in SAMPLES:
        config.parse_load(sample)
    for sample in REQUESTS:
        config.parse_request(sample, "token", None)
    noted["load"] = noted.pop("a load config")
    noted["request"] = noted.pop("options")
    del noted["stub_opts"]  # hooks for tests: erllama_py._backends.base.StubOptions
    return noted


def test_every_option_has_a_row(asked: dict[str, set[str]]) -> None:
    hidden = {"in_process", "stub_opts"}  # for tests
    found = []
    for table in {*asked, *OPTIONS_OF_THE_SPECIFICATION} - SETTINGS:
        needed = {*asked.get(table, ()), *OPTIONS_OF_THE_SPECIFICATION.get(table, "").split()}
        found += differences("options", table, needed - hidden)
    check(found)
    files = (ROOT / "erllama_py/config").glob("*.py")
    unseen = set().union(*map(keys_in_text, files)) - names("options") - hidden
    check([f"docs/reference/contract/options.toml: {key} is told nowhere" for key in unseen])


def test_every_setting_has_a_row() -> None:
    for table, keys in (
        ("environment", {one.key for one in config.environment()}),
        ("scheduler", set(pressure._DEFAULTS)),
    ):
        needed = keys | set(OPTIONS_OF_THE_SPECIFICATION[table].split())
        check(differences("options", table, needed))


def test_other_options_have_rows() -> None:
    check(differences("options", "apply_chat_template", CHAT))
    check(differences("options", "draft_tokens", {"max"}))


# -- results --------------------------------------------------------------------------------


def test_every_key_that_is_answered_has_a_row(tmp_path: Path) -> None:
    """Of the maps as they are answered: whole, stopped, warm, and from other modules."""
    seen: dict[str, set[str]] = {}

    def note(table: str, *maps: Any) -> None:
        seen.setdefault(table, set()).update(*maps)

    tokens = list(range(40))
    digits = [str(digit) for digit in range(10)]
    with stub_model("contract") as loaded:
        speculating = {"response_tokens": 1, "speculate": "lookup"}
        for options in ({"response_tokens": 2}, {"stop_sequences": digits}, speculating):
            for _ in range(2):
                result = api.complete(loaded, " ".join(map(str, tokens)), options)
                note("complete", result, {"logprobs"})  # which the stub has none of
                note("stats", result["stats"])
        note("stats", record(api.infer(loaded, tokens, {"response_tokens": 1}))[-1].stats)
        note("prefill_only", api.prefill_only(loaded, tokens))
        note("cache_delta", result["cache_delta"])
        note("model_info", api.model_info(loaded))
        note("last_cache_hit", api.last_cache_hit(loaded))
        with stub_model(thinking_capable=True, tool_call_capable=True) as spanning:
            result = api.complete(spanning, "a", {"thinking": "enabled", "response_tokens": 1})
            note("complete", result)
            note("stats", result["stats"])
        (tmp_path / "a.gguf").write_bytes(b"any file will do for a stub")
        api.load_adapter(loaded, tmp_path / "a.gguf")
        note("list_adapters", *api.list_adapters(loaded))
        note("cache_key_meta", model.cache_key_meta(loaded))
    note("counters", api.counters())
    note("scheduler_status", scheduler.status())
    check([line for table in seen for line in differences("results", table, seen[table])])
    assert seen["counters"] == set(NAMES)
    assert seen["stats"] >= PYTHON_ONLY


def test_every_message_has_a_row() -> None:
    sent = messages_in(ROOT / "erl_bridge/service/streams.py") | MESSAGES
    check(differences("results", "messages", sent))


# -- errors ---------------------------------------------------------------------------------


def test_every_reason_has_a_row() -> None:
    raised, told = reasons(), names("errors")
    needed = {*raised, *REASONS_OF_THE_SPECIFICATION.split(), *WORDS}
    check(
        [
            f"{missing('errors', 'reasons', name)}  (raised in {raised.get(name, 'the API')})"
            for name in sorted(needed - told)
        ]
        + [needless("errors", "...", name) for name in sorted(told - needed)]
    )


def test_a_reason_is_found_however_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "raise ErllamaError('one', 'text')\n"
        "raise errors.BadCall((types.Atom('two'), 5))\n"
        "raise BackendError('three' if a else 'four')\n"
        "self._fail(job, 'five', '')\n"
        "raise _badarg('seed', 5, '')\n"
        "raise ErllamaError(error.reason)\n",
        encoding="utf-8",
    )
    found = {reason for reason, _ in reasons_of(Module("m", tmp_path / "m.py"))}
    assert found == {"one", "two", "three", "four", "five", "badarg"}


# -- defects of the original ----------------------------------------------------------------


def test_every_defect_of_the_original_has_its_test() -> None:
    check(differences("bugs", "bugs", {f"BUG-{number}" for number in range(1, 21)}))
    for row in rows():
        if row.file == "bugs":
            number = int(row.name.removeprefix("BUG-"))
            assert any(f"::test_bug_{number:02}_" in test for test in row.tests), str(row)
