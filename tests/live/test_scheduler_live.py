"""Real nodes drive the pressure scheduler: results term for term."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from erllama_py import api
from erllama_py.otp import pressure, scheduler
from erllama_py.testing import stub_model
from tests.live.erlnode import ErlangFailure, ErlNode
from tests.live.serving import Serving
from tests.waiting import wait_for

FULL = (99, 100)


@pytest.fixture(scope="module")
def llm(peer: ErlNode) -> Iterator[Serving]:
    serving = Serving(peer)
    yield serving
    serving.stop()


@pytest.fixture(autouse=True)
def as_it_starts() -> Iterator[None]:
    """There is one scheduler per process: leave it as a new one is, but for what it saw."""
    pressure.add_sampler("full", lambda: FULL)
    yield
    pressure.remove_sampler("full")
    scheduler.enable(False)
    scheduler.set_pressure_source("noop")
    scheduler.set_thresholds(0.85, 0.75)


def ask(llm: Serving, call: str, via: str = "erpc") -> str:
    """Evaluate ``module:function(args)`` on our node."""
    head, _, args = call.partition("(")
    module, _, function = head.partition(":")
    return llm.eval(f"{via}:call(N, erllama_{module}, {function}, [{args.removesuffix(')')}])")


TEXTS = {
    "watermarks": '"require 0.0 <= low < high <= 1.0"',
    "interval_ms": '"must be a positive integer"',
}


def invalid(key: str) -> str:
    return f"{{error,{{invalid_config,{{{key},{TEXTS[key]}}}}}}}"


@pytest.mark.parametrize("via", ["rpc", "erpc"])
@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("pressure:available_sources()", "[noop,system,nvidia_smi]"),
        ("pressure:sample(noop)", "{0,1}"),
        ("pressure:sample({module, full})", "{99,100}"),
        ("scheduler:force_check()", "{skipped,disabled}"),
        ("scheduler:sample()", "{0,1}"),
        ("scheduler:enable(false)", "ok"),
        ("scheduler:enable(true)", "ok"),
        ("scheduler:set_pressure_source(system)", "ok"),
        ("scheduler:set_pressure_source(no_such_source)", "ok"),
        ("scheduler:set_pressure_source(#{what => <<1>>})", "ok"),
        ("scheduler:set_thresholds(0.9, 0.1)", "ok"),
        ("scheduler:set_thresholds(1, 0)", "ok"),
        ("scheduler:set_thresholds(0.1, 0.9)", "{error,bad_thresholds}"),
        ("scheduler:set_thresholds(high, low)", "{error,bad_thresholds}"),
        ("scheduler:set_thresholds(true, false)", "{error,bad_thresholds}"),
        ("scheduler:validate_config(#{})", "ok"),
        ("scheduler:validate_config(#{enabled => 7, other => key})", "ok"),
        ("scheduler:validate_config(#{<<\"interval_ms\">> => 0})", "ok"),
        ("scheduler:validate_config(#{high_watermark => 0.5})", invalid("watermarks")),
        ("scheduler:validate_config(#{interval_ms => 0})", invalid("interval_ms")),
        ("scheduler:validate_config(#{interval_ms => undefined})", invalid("interval_ms")),
    ],
)  # fmt: skip
def test_every_function(llm: Serving, via: str, call: str, answer: str) -> None:
    assert ask(llm, call, via) == answer


def test_the_status_has_13_keys(llm: Serving) -> None:
    scheduler.set_pressure_source(("module", "full"))
    assert ask(llm, "scheduler:sample()") == "{99,100}"
    seen = llm.eval("""begin
        #{enabled := false, pressure_source := {module, full}, interval_ms := 5000,
          high_watermark := 0.85, low_watermark := 0.75, min_evict_bytes := 1048576,
          evict_tiers := [ram, ram_file], last_used := 99, last_total := 100,
          last_ratio := 0.99, last_evicted_bytes := Bytes, sampled_at := Sampled,
          last_evicted_at := Evicted} = Status = erpc:call(N, erllama_scheduler, status, []),
        true = is_integer(Bytes) andalso is_integer(Sampled),
        true = Evicted =:= undefined orelse is_integer(Evicted),
        map_size(Status)
    end""")
    assert seen == "13"


def test_a_status_shows_a_source_of_python_by_its_name(llm: Serving) -> None:
    scheduler.set_pressure_source(as_it_reads)
    source = "maps:get(pressure_source, erpc:call(N, erllama_scheduler, status, []))"
    assert llm.eval(source) == f"{{module,'{__name__}.as_it_reads'}}"
    assert ask(llm, "scheduler:sample()") == "{1,4}"


def as_it_reads() -> tuple[int, int]:
    return 1, 4


def test_the_machine(llm: Serving) -> None:
    sample = "{Used, Total} = erpc:call(N, erllama_pressure, sample, [system])"
    assert llm.eval(f"begin {sample}, 0 < Used andalso Used =< Total end") == "true"


def test_a_check_evicts_and_says_what(llm: Serving) -> None:
    # A fingerprint of its own: the next release's node finds nothing cached.
    with stub_model("m", fingerprint=os.urandom(32)):
        tokens = list(range(100, 300))
        api.prefill_only("m", tokens)
        wait_for(lambda: api.list_cached_prefixes("m", tokens) == 200)
        # What a request holds when its reply is out stays until it is freed.
        seen = llm.eval(f"""begin
            Ask = fun(F, A) -> erpc:call(N, erllama_scheduler, F, A) end,
            ok = Ask(set_pressure_source, [{{module, full}}]),
            {{99, 100}} = Ask(sample, []),
            ok = Ask(enable, [true]),
            {{Rows, Bytes}} = (fun Evicted(Rows, Bytes) ->
                {{R, B}} = case Ask(force_check, []) of
                    {{evicted, R1, B1}} -> {{R1, B1}};
                    {{skipped, nothing_to_evict}} -> {{0, 0}}
                end,
                case erllama:list_cached_prefixes(<<"m">>, {tokens}) of
                    {{ok, 0}} -> {{Rows + R, Bytes + B}};
                    {{ok, _}} -> Evicted(Rows + R, Bytes + B)
                end
            end)(0, 0),
            #{{last_evicted_at := At, sampled_at := Later, enabled := true}} = Ask(status, []),
            {{Rows > 0, Bytes > 0, At =< Later}}
        end""")
    assert seen == "{true,true,true}"


@pytest.mark.parametrize(
    ("call", "reason", "frame"),
    [
        ("pressure:sample(ram)", "function_clause", "{erllama_pressure,sample,[ram],[]}"),
        ("pressure:sample(<<1>>)", "function_clause", "{erllama_pressure,sample,[<<1>>],[]}"),
        ("pressure:sample({module, os})", "undef", "{os,sample,[],[]}"),
        ("scheduler:enable(yes)", "function_clause", "{erllama_scheduler,enable,[yes],[]}"),
        (
            "scheduler:validate_config(1)",
            "{badmap,1}",
            "{erllama_scheduler,validate_config,[1],[]}",
        ),
        ("scheduler:status(1)", "undef", "{erllama_scheduler,status,[1],[]}"),
        ("scheduler:start_link()", "undef", "{erllama_scheduler,start_link,[],[]}"),
        ("pressure:add_sampler(a, b)", "undef", "{erllama_pressure,add_sampler,[a,b],[]}"),
    ],
)  # fmt: skip
def test_what_has_no_clause(llm: Serving, call: str, reason: str, frame: str) -> None:
    assert ask(llm, call, "rpc") == f"{{badrpc,{{'EXIT',{{{reason},[{frame}]}}}}}}"


def test_a_sampler_that_fails_is_its_callers_only_when_asked_for(llm: Serving) -> None:
    scheduler.set_pressure_source(lambda: 1 // 0)
    assert ask(llm, "scheduler:sample()") == "{0,1}"
    pressure.add_sampler("broken", lambda: 1 // 0)
    try:
        with pytest.raises(ErlangFailure):
            ask(llm, "pressure:sample({module, broken})")
    finally:
        pressure.remove_sampler("broken")
    assert ask(llm, "scheduler:force_check()") == "{skipped,disabled}"
