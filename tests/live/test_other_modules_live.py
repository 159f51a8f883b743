"""Real nodes call the original's other modules: each at least once, term for term."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from erllama_py._cache.store import Cache
from erllama_py._engine.registry import core
from erllama_py.otp import cache_meta_srv
from erllama_py.testing import stub_model
from tests.live.erlnode import ErlNode
from tests.live.serving import Serving
from tests.waiting import wait_for

QUOTA = 1 << 24
META = """#{save_reason => finish, quant_bits => 16, fingerprint => <<7:256>>,
    fingerprint_mode => safe, quant_type => f16, ctx_params_hash => <<8:256>>,
    tokens => [1, 2, 3], context_size => 4096}"""
CALL = 'C = fun(M, F, A) -> erpc:call(N, list_to_atom("erllama_" ++ M), F, A) end'


@pytest.fixture(scope="module")
def root(peer: ErlNode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new one for each release."""
    return tmp_path_factory.mktemp(peer.name.partition("@")[0])


@pytest.fixture(scope="module")
def llm(peer: ErlNode, root: Path) -> Iterator[Serving]:
    """A node with a cache of its own, and a stub model ``m``."""
    cache, of_core = Cache(QUOTA), core()
    before, of_core._cache = of_core._cache, cache
    serving = Serving(peer, roots=[root])
    with stub_model("m"):
        yield serving
    serving.stop()
    of_core._cache = before
    cache.close()


@pytest.fixture(autouse=True)
def nothing_cached(llm: Serving) -> None:
    """Whatever ran before; what a request holds stays for a moment after its reply."""
    wait_for(lambda: bool(cache_meta_srv.gc()) and cache_meta_srv.dump() == [])


def run(llm: Serving, body: str) -> str:
    """Evaluate an expression in which C calls our node."""
    return llm.eval(f"begin {CALL}, {body} end")


def test_a_tier_server_outlives_who_started_it(llm: Serving, root: Path, tmp_path: Path) -> None:
    rows = root / "rows"
    seen = run(
        llm,
        f"""
        Dir = "{rows}", Self = self(),
        {{Starter, Ref}} = spawn_monitor(fun() ->
            Self ! {{pid, C("cache_disk_srv", start_link, [my_disk, disk, Dir])}}
        end),
        {{ok, Pid}} = receive {{pid, P}} -> P end,
        receive {{'DOWN', Ref, process, Starter, normal}} -> ok end,
        {{error, {{already_started, Pid}}}} = C("cache_disk_srv", start_link, [my_disk, Dir]),
        Outside = {{error, {{cannot_create_dir, "{tmp_path}/x", eacces}}}},
        Outside = C("cache_ramfile_srv", start_link, [other, "{tmp_path}/x"]),
        {{ok, Key, <<"KVC", _/binary>> = Header, Size}} =
            C("cache_disk_srv", save, [my_disk, {META}, <<"payload">>]),
        Key = C("cache_key", make, [{META}]),
        {{ok, #{{tokens := [1, 2, 3], quant_type := f16}}, <<"payload">>}} =
            gen_server:call({{my_disk, N}}, {{load, Key}}),
        [{{Key, Header, Size}}] = gen_server:call(Pid, scan),
        {{error, unknown_call}} = gen_server:call(Pid, what),
        Dir = C("cache_disk_srv", dir, [Pid]),
        {{ok, {{Key, disk, Size, _, 0, available, Header, {{disk, Path}}, _, 0}}}} =
            C("cache_meta_srv", lookup_exact, [Key]),
        Path = filename:join(Dir, string:lowercase(binary_to_list(
            << <<(integer_to_binary(B, 16))/binary>> || <<B:4>> <= Key >>)) ++ ".kvc"),
        #{{runs := 2}} = C("cache_bench", save_load, [my_disk, 2, 100]),
        Again = C("cache_writer", save, [my_disk, disk, {META}, <<"payload">>]),
        {{error, already_present}} = Again,
        Watch = monitor(process, {{my_disk, N}}),
        exit(Pid, shutdown),
        receive {{'DOWN', Watch, process, _, shutdown}} -> ok end,
        miss = C("cache_meta_srv", dump, [Key]),
        catch C("cache_disk_srv", dir, [nobody])
    """,
    )
    gone = "{noproc,{gen_server,call,[nobody,dir,infinity]}}"
    assert seen == f"{{'EXIT',{{exception,{gone}}}}}"
    assert len(list(rows.glob("*.kvc"))) == 1


def test_a_dead_process_of_a_peer_holds_nothing(llm: Serving) -> None:
    seen = run(
        llm,
        """
        Key = <<1:256>>, Other = <<2:256>>, Header = <<0:384>>, Self = self(),
        ok = C("cache_meta_srv", insert_available, [Key, ram, 7, Header, {ram}]),
        {Holder, Ref} = spawn_monitor(fun() ->
            {ok, Pin, ram, {ram}, Header, undefined} = C("cache_meta_srv", checkout, [Key, self()]),
            {ok, Token} = C("cache_meta_srv", reserve_save, [Other, disk, self()]),
            ok = C("cache_writer", acquire, [0]),
            Self ! {held, Pin, Token},
            receive stop -> ok end
        end),
        {Pin, Token} = receive {held, A, B} -> {A, B} end,
        Rows = lists:sort(C("cache_meta_srv", dump, [])),
        [{Other, disk, 0, _, 0, writing, <<>>, undefined, undefined},
            {Key, ram, 7, _, 1, available, Header, {ram}, undefined, 1}] = Rows,
        {evicted, 0} = C("cache", gc, []),
        ok = C("cache_meta_srv", check_reservation, [Other, Token]),
        {error, conflict} = C("cache_meta_srv", reserve_save, [Other, disk, self()]),
        {error, busy} = C("cache_meta_srv", checkout, [Other, self()]),
        1 = C("cache_writer", current, []),
        Holder ! stop,
        receive {'DOWN', Ref, process, Holder, normal} -> ok end,
        (fun Free() ->
            case {C("cache_meta_srv", dump, [Other]), C("cache_writer", current, [])} of
                {miss, 0} -> ok;
                _ -> Free()
            end
        end)(),
        {error, expired} = C("cache_meta_srv", check_reservation, [Other, Token]),
        true = is_reference(Pin),
        ok = C("cache_meta_srv", checkin, [Pin]),
        {evicted, 1} = C("cache", gc, []),
        C("cache_meta_srv", dump, [])
    """,
    )
    assert seen == "[]"


def test_counters_payloads_formats_and_decisions(llm: Serving) -> None:
    seen = run(
        llm,
        f"""
        ok = C("cache", reset_counters, []),
        ok = C("cache_counters", incr, [3]),
        1 = C("cache_counters", get, [3]),
        20 = map_size(C("cache", get_counters, [])),
        ok = C("cache_ram", put, [<<1:256>>, <<"slab">>, <<0:384>>]),
        {{ok, <<"slab">>}} = C("cache_ram", load, [<<1:256>>]),
        ok = C("cache_ram", delete, [<<1:256>>]),
        miss = C("cache_ram", load, [<<1:256>>]),
        {{ok, Prefix}} = C("cache_kvc", build, [{META}, <<"p">>]),
        {{ok, #{{version := 1}}}} = C("cache_kvc", parse_meta, [<<Prefix/binary, "p">>]),
        {{error, bad_header}} = C("cache_kvc", parse_meta, [<<>>]),
        {{ok, q4_k_m}} = C("cache_key", quant_atom, [7]),
        {{skip, too_short}} = C("cache_policy", trim_boundary, [[1], 1, 4]),
        {{ok, [1, 2]}} = C("cache_policy", trim_boundary, [[1, 2, 3], 1, 2]),
        {{error, unknown_call}} = gen_server:call({{erllama_cache_meta_srv, N}}, what),
        rpc:call(N, erllama_cache_counters, get, [21])
    """,
    )
    frame = "[{erllama_cache_counters,get,[21],[]}]"
    assert seen == f"{{badrpc,{{'EXIT',{{badarg,{frame}}}}}}}"


def test_models_and_streams(llm: Serving) -> None:
    seen = run(
        llm,
        """
        Pid = C("registry", whereis_name, [<<"m">>]),
        undefined = C("registry", whereis_name, [<<"nobody">>]),
        [{<<"m">>, Pid}] = C("registry", all, []),
        [{undefined, Pid, worker, [erllama_model]}] = C("model_sup", models, []),
        no = C("registry", register_name, [<<"x">>, self()]),
        Tag = make_ref(),
        Pid = C("registry", send, [<<"m">>, {'$gen_call', {self(), Tag}, status}]),
        idle = receive {Tag, Status} -> Status end,
        Meta = #{fingerprint := <<_:256>>} = C("model", cache_key_meta, [<<"m">>]),
        Tokens = lists:seq(1, 80),
        {ok, #{finish_key := Key}} = C("model", prefill_only, [Pid, Tokens]),
        Key = C("cache_key", make, [Meta#{tokens => Tokens}]),
        {ok, Row} = C("cache_meta_srv", lookup_exact_or_wait, [Key, 10000]),
        {ok, 80, Row} = C("cache", lookup_longest_prefix, [Meta, Tokens, 16, 16]),
        {ok, Ref} = C("model", infer, [Pid, [1, 2], #{response_tokens => 3}, self()]),
        receive {erllama_done, Ref, _} -> ok end,
        {error, not_found} = C("inflight", lookup, [Ref]),
        {[], 0} = {C("inflight", all, []), C("inflight", queue_depth, [Pid])},
        {error, not_supported} = C("inflight", register, [Ref, self()]),
        {<<"m">>, idle, 0, cold, 0} = C("inflight", obs_get, [<<"m">>]),
        C("inflight", obs_get, [<<"nobody">>])
    """,
    )
    assert seen == "undefined"
