"""The MFA table against a stub model, without a peer: heads, failures, and random terms."""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from erl_bridge import CallContext, ErlangError, Undef
from erl_bridge.etf import Atom, Pid, Reference, encode
from erl_bridge.service import ErllamaNode
from erl_bridge.service.heads import FUNCTIONS, HEADS, head_of
from erl_bridge.service.modules import MODULES
from erllama_py import api
from erllama_py.otp import scheduler
from erllama_py.testing import stub_model
from tests.property.strategies.erl_terms import atoms, terms

CALLER = Pid(Atom("peer@nowhere.invalid"), 9, 0, 1)
ERROR = Atom("error")
READING = (5, 50)
REF = Reference(Atom("peer@nowhere.invalid"), 1, (1, 2, 3))
MODEL = b"table"

EXPORTS = """
    apply_chat_template/2 cancel/1 complete/2 complete/3 counters/0 detokenize/2
    draft_tokens/3 embed/2 end_session/2 evict/1 infer/4 last_cache_hit/1 list_adapters/1
    list_cached_prefixes/2 list_models/0 load_adapter/2 load_model/1 load_model/2
    model_info/1 models/0 pending_len/1 phase/1 prefill_only/2 prefill_only/3
    queue_depth/0 queue_depth/1 set_adapter_scale/3 shutdown/1 status/1 tokenize/2
    unload/1 unload_adapter/2 unload_model/1 verify/4 vram_info/0
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ErllamaNode]:
    """A node with an epmd of its own, and a stub model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = ErllamaNode(
        "table", cookie="c", epmd_port=port, roots=[tmp_path_factory.mktemp("root")]
    )
    with served, stub_model(MODEL.decode(), context_opts={"n_ctx": 512}):
        yield served


def call(node: ErllamaNode, function: str, *args: Any, module: str = "erllama") -> Any:
    """Apply a function as a peer would."""
    context = CallContext(node.node, "peer@nowhere.invalid", CALLER, CALLER)

    async def run() -> Any:
        value = node._apply(context, module, function, list(args))
        return await value if inspect.isawaitable(value) else value

    return asyncio.run(run())


def test_all_35_exports_are_there() -> None:
    assert sorted(f"{name}/{arity}" for name, arity in FUNCTIONS) == EXPORTS.split()
    assert len(FUNCTIONS) == 35


@pytest.mark.parametrize(
    ("module", "function", "args"),
    [
        ("erllama", "complete", []),
        ("erllama", "module_info", []),
        ("erllama", "start", []),
        ("erllama_cache", "clear", []),
        ("os", "cmd", [b"true"]),
        ("Elixir.System", "halt", [0]),
    ],
)
def test_everything_else_is_undef(
    node: ErllamaNode, module: str, function: str, args: list[Any]
) -> None:
    with pytest.raises(Undef) as caught:
        call(node, function, *args, module=module)
    assert caught.value.stack == [(Atom(module), Atom(function), args, [])]


@pytest.mark.parametrize(
    ("function", "args"),
    [
        ("load_model", [[]]),
        ("load_model", [Atom("id"), {}]),
        ("load_model", [MODEL, [(Atom("model_path"), b"x")]]),
        ("complete", [Atom("table"), b"x"]),
        ("complete", [5, b"x"]),
        ("complete", [MODEL, list(b"charlist")]),
        ("complete", [MODEL, Atom("x")]),
        ("complete", [MODEL, b"x", []]),
        ("prefill_only", [MODEL, (1, 2)]),
        ("prefill_only", [MODEL, {}]),
        ("infer", [MODEL, b"text", {}, CALLER]),
        ("infer", [MODEL, [1], [], CALLER]),
        ("infer", [MODEL, [1], {}, Atom("shell")]),
        ("cancel", [b"ref"]),
        ("tokenize", [MODEL, list(b"x")]),
        ("detokenize", [MODEL, b"x"]),
        ("apply_chat_template", [MODEL, []]),
        ("phase", [CALLER]),
        ("phase", [Atom("table")]),
        ("queue_depth", [CALLER]),
        ("pending_len", [CALLER]),
        ("last_cache_hit", [CALLER]),
        ("list_cached_prefixes", [CALLER, [1]]),
        ("verify", [CALLER, [1], [2], 1]),
        ("verify", [MODEL, [1], [2], 0]),
        ("draft_tokens", [CALLER, [1], {}]),
        ("set_adapter_scale", [MODEL, REF, b"1.0"]),
    ],
)
def test_wrong_kinds_of_arguments_have_no_clause(
    node: ErllamaNode, function: str, args: list[Any]
) -> None:
    with pytest.raises(ErlangError) as caught:
        call(node, function, *args)
    assert (caught.value.class_, caught.value.reason) == ("error", Atom("function_clause"))
    assert caught.value.stack == [(Atom("erllama"), Atom(function), args, [])]


def test_the_pid_of_a_model_is_not_taken_for_an_id(node: ErllamaNode) -> None:
    (pid,) = call(node, "models")
    assert call(node, "status", pid) is Atom("idle")
    with pytest.raises(ErlangError) as caught:
        call(node, "phase", pid)
    assert caught.value.stack == [(Atom("erllama"), Atom("phase"), [pid], [])]


@pytest.mark.parametrize(
    ("function", "args"),
    [
        ("complete", [b"prompt", {Atom("response_tokens"): 1}]),
        ("status", []),
        ("tokenize", [b"x"]),
        ("infer", [[1], {}, CALLER]),
    ],
)
def test_a_dead_pid_exits_as_a_gen_statem_call_does(
    node: ErllamaNode, function: str, args: list[Any]
) -> None:
    with stub_model("dying"):
        pid = call(node, "model_info", b"dying")[Atom("pid")]
    for dead in (pid, Pid(Atom(node.name), 3, 0, 1), CALLER):
        request = (Atom(function), *args) if args else Atom(function)
        with pytest.raises(ErlangError) as caught:
            call(node, function, dead, *args)
        assert caught.value.class_ == "exit"
        assert caught.value.reason == (
            Atom("noproc"),
            (Atom("gen_statem"), Atom("call"), [dead, request, Atom("infinity")]),
        )


def test_unloading_the_dead_is_ok_and_the_unknown_not_found(node: ErllamaNode) -> None:
    with stub_model("dying"):
        pid = call(node, "model_info", b"dying")[Atom("pid")]
    for function in ("unload", "unload_model"):
        assert call(node, function, pid) is Atom("ok")
        assert call(node, function, Pid(Atom(node.name), 3, 0, 1)) is Atom("ok")
        assert call(node, function, CALLER) == (Atom("error"), Atom("not_found"))
        assert call(node, function, b"nobody") == (Atom("error"), Atom("not_found"))


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [
        ("complete", [b""], Atom("empty_prompt")),
        (
            "complete",
            [b"a", {Atom("stop_sequences"): 5}],
            (Atom("invalid"), Atom("stop_sequences"), 5),
        ),
        ("complete", [b"a", {Atom("seed"): b"x"}], Atom("badarg")),
        ("complete", [b"a", {Atom("grammar"): Atom("root")}], Atom("badarg")),
        (
            "complete",
            [b"a", {Atom("parent_key"): b"x"}],
            (Atom("invalid"), Atom("parent_key"), b"x"),
        ),
        ("complete", [b"a " * 600], Atom("context_overflow")),
        ("complete", [b"x" * (4 * 1024 * 1024 + 1)], Atom("too_large")),
        ("prefill_only", [[]], Atom("empty_prompt")),
        ("prefill_only", [[1, Atom("true")]], Atom("invalid_token")),
        ("prefill_only", [[-1]], Atom("invalid_token")),
        ("prefill_only", [[1.0]], Atom("invalid_token")),
        ("prefill_only", [[1 << 40]], Atom("invalid_token")),
        ("detokenize", [[Atom("true")]], Atom("invalid_token")),
        ("infer", [[], {}, CALLER], Atom("empty_prompt")),
        ("infer", [[1] * 600, {}, CALLER], Atom("context_overflow")),
        ("apply_chat_template", [{Atom("messages"): 5}], Atom("badarg")),
        (
            "apply_chat_template",
            [{Atom("messages"): [{Atom("role"): Atom("user"), Atom("content"): b"x"}]}],
            Atom("badarg"),
        ),
        ("embed", [[1, Atom("true")]], Atom("invalid_token")),
        ("embed", [[1 << 27]], Atom("invalid_token")),
    ],
)
def test_refusals_are_error_tuples_of_terms(
    node: ErllamaNode, function: str, args: list[Any], reason: Any
) -> None:
    assert call(node, function, MODEL, *args) == (Atom("error"), reason)


def test_a_vector_is_a_list_of_floats(node: ErllamaNode) -> None:
    (ok, vector) = call(node, "embed", MODEL, [1, 2, 3])
    assert ok is Atom("ok")
    assert vector == api.embed(MODEL, [1, 2, 3])
    assert [type(value) for value in vector] == [float] * 16


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({Atom("policy"): []}, (Atom("invalid"), Atom("policy"), [])),
        ({Atom("context_opts"): 5}, (Atom("invalid"), Atom("context_opts"), 5)),
        ({Atom("fingerprint"): b"x"}, (Atom("invalid"), Atom("fingerprint"), b"x")),
        ({Atom("quant_type"): b"q" * 256}, (Atom("invalid"), Atom("quant_type"), b"q" * 256)),
        ({Atom("backend"): Atom("nobody")}, Atom("undef")),
        ({Atom("model_path"): b"/etc/passwd"}, Atom("eacces")),
        ({b"model_path": b"/etc/passwd"}, Atom("eacces")),
        ({Atom("model_path"): b""}, Atom("badarg")),
        (
            {Atom("backend"): Atom("erllama_model_llama")},
            (Atom("badkey"), Atom("model_path")),
        ),
    ],
)
def test_a_config_is_refused_before_anything_is_loaded(
    node: ErllamaNode, config: Any, reason: Any
) -> None:
    assert call(node, "load_model", b"refused", config) == (Atom("error"), reason)
    assert call(node, "unload", b"refused") == (Atom("error"), Atom("not_found"))


def test_a_key_that_is_no_text_is_ignored(node: ErllamaNode) -> None:
    options = {b"\xff": 1, 5: 6, (): 7, Atom("response_tokens"): 1}
    (ok, result) = call(node, "complete", MODEL, b"a", options)
    assert ok is Atom("ok")
    assert len(result[Atom("generated")]) == 1


def test_an_atom_among_stop_strings_is_dropped(node: ErllamaNode) -> None:
    """As everything that is no binary: its name is no text."""
    (_, result) = call(
        node,
        "complete",
        MODEL,
        b"a",
        {Atom("stop_sequences"): [Atom("1"), 7], Atom("response_tokens"): 2},
    )
    assert result[Atom("finish_reason")] is Atom("length")


options = st.dictionaries(
    st.sampled_from(
        [
            *("response_tokens", "parent_key", "stop_sequences", "temperature", "top_k", "seed"),
            *("grammar", "exactness", "min_p", "thinking", "messages", "system", "tools"),
            *("policy", "context_opts", "model_opts", "stub_opts", "quant_type", "quant_bits"),
            *("fingerprint", "tier", "backend", "context_size", "model_path", "cache"),
            "session_id",
        ]
    ).map(Atom),
    terms,
    max_size=4,
)
by_kind: dict[str, st.SearchStrategy[Any]] = {
    "any": terms,
    "id": st.just(MODEL) | st.binary(max_size=5),
    "model": st.just(MODEL) | st.binary(max_size=5) | st.just(CALLER),
    "text": st.binary(max_size=40),
    "tokens": st.lists(st.integers(0, 300), max_size=5) | st.lists(terms, max_size=3),
    "none": st.just([]),
    "map": options | terms.filter(lambda t: isinstance(t, dict)),
    "options": options | terms.filter(lambda t: isinstance(t, dict)),
    "session": terms,
    "pid": st.just(CALLER),
    "ref": st.just(REF),
    "number": st.floats(allow_nan=False, allow_infinity=False),
    "positive": st.integers(1, 9),
}
"""What each kind of argument may be; options mostly of the right names and wrong values."""


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_call_is_answered_with_a_term_or_one_of_erlangs_failures(
    node: ErllamaNode, data: st.DataObject
) -> None:
    """No argument reaches a defect of ours, and the model survives them all."""
    function = data.draw(st.sampled_from(sorted(set(HEADS) - {"unload", "unload_model"})))
    clause = data.draw(st.sampled_from(HEADS[function]))
    args = [data.draw(by_kind[kind] if data.draw(st.integers(0, 9)) else terms) for kind in clause]
    taken = head_of(function, args) is not None
    before = {info["id"] for info in api.list_models()}
    failure: ErlangError | None = None
    try:
        value = call(node, function, *args)
    except ErlangError as error:
        failure = error
        value = (error.reason, error.stack)
    encode(value)
    if failure is None:
        assert taken
    elif failure.class_ == "exit":
        assert taken
        assert failure.reason[0] is Atom("noproc")
    else:
        assert not taken
        assert failure.reason is Atom("function_clause")
    for info in api.list_models():
        if info["id"] not in before:
            api.unload(info["id"])
    assert api.tokenize(MODEL.decode(), "still here")


@given(function=atoms.map(lambda atom: atom.name), args=st.lists(terms, max_size=4))
def test_any_other_name_is_undef(node: ErllamaNode, function: str, args: list[Any]) -> None:
    if (function, len(args)) not in FUNCTIONS:
        with pytest.raises(Undef):
            call(node, function, *args)


@pytest.fixture
def scheduler_as_it_was() -> Iterator[None]:
    """There is one per process: leave it as a new one is."""
    yield
    scheduler.enable(False)
    scheduler.set_pressure_source("noop")
    scheduler.set_thresholds(0.85, 0.75)


OTHERS = sorted((module, *which) for module, functions in MODULES.items() for which in functions)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_so_is_any_call_of_the_other_modules(
    node: ErllamaNode, scheduler_as_it_was: None, data: st.DataObject
) -> None:
    """And whatever was set, the status is a term."""
    module, function, arity = data.draw(st.sampled_from(OTHERS))
    sources = st.sampled_from([Atom("noop"), (Atom("module"), Atom("x")), Atom("true"), {}, 0.5, 1])
    args = data.draw(st.lists(terms | sources, min_size=arity, max_size=arity))
    failure: ErlangError | None = None
    try:
        encode(call(node, function, *args, module=module))
    except ErlangError as error:
        failure = error
    if failure is not None:
        assert failure.class_ == "error"
        encode((failure.reason, failure.stack))
    status = call(node, "status", module="erllama_scheduler")
    assert len(status) == 13
    encode(status)
    assert len(call(node, "sample", module="erllama_scheduler")) == 2


def test_what_a_sampler_of_ours_reads_is_what_a_peer_gets(
    node: ErllamaNode, scheduler_as_it_was: None
) -> None:
    scheduler.set_pressure_source(lambda: READING)
    assert call(node, "sample", module="erllama_scheduler") == READING


class TestRefusals:
    """What a peer gets is an atom; the node's log has the words."""

    def test_a_load_that_is_refused_is_always_told(
        self, node: ErllamaNode, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = {Atom("model_path"): b"/etc/passwd"}
        assert call(node, "load_model", b"elsewhere", config) == (ERROR, Atom("eacces"))
        (line,) = _told(caplog)
        assert line.levelno == logging.WARNING
        assert line.getMessage().startswith(
            "erllama:load_model/2 was refused: '/etc/passwd' is out"
        )
        assert line.getMessage().endswith("(start the node with --root FOLDER)")

    def test_a_request_that_is_refused_is_told_to_who_listens(
        self, node: ErllamaNode, caplog: pytest.LogCaptureFixture
    ) -> None:
        refused = (ERROR, (Atom("invalid"), Atom("response_tokens"), Atom("two")))
        options = {Atom("response_tokens"): Atom("two")}
        assert call(node, "complete", MODEL, b"a", options) == refused
        assert _told(caplog) == []
        caplog.set_level(logging.INFO, "erl_bridge")
        assert call(node, "complete", MODEL, b"a", options) == refused
        (line,) = _told(caplog)
        assert line.getMessage().startswith("erllama:complete/3 was refused: ")
        assert "response_tokens" in line.getMessage()

    def test_an_id_that_is_loaded_already_is_no_news(
        self, node: ErllamaNode, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = {Atom("backend"): Atom("erllama_model_stub")}
        assert call(node, "load_model", MODEL, config) == (ERROR, Atom("already_loaded"))
        assert _told(caplog) == []

    def test_so_are_those_of_the_other_modules(
        self, node: ErllamaNode, caplog: pytest.LogCaptureFixture
    ) -> None:
        start = ("start_link", Atom("refused"), b"/etc")
        cannot = (Atom("cannot_create_dir"), b"/etc", Atom("eacces"))
        assert call(node, *start, module="erllama_cache_disk_srv") == (ERROR, cannot)
        assert "--root" in _told(caplog)[0].getMessage()


def _told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [one for one in caplog.records if one.name == "erl_bridge.service.refusals"]
