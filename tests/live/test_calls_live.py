"""Real nodes call our functions: rpc, erpc, spawn, and everything that can go wrong."""

from __future__ import annotations

import pytest

from erl_bridge import NodeLimits
from erl_bridge.etf import Atom
from tests.live.erlnode import ErlNode
from tests.live.served import Call, Served


class TestAnswers:
    def test_ping(self, call: Call) -> None:
        assert call("net_adm:ping(N)") == "pong"

    def test_rpc_call(self, call: Call) -> None:
        assert call("rpc:call(N, t, add, [1, 2])") == "3"

    def test_rpc_call_with_a_timeout(self, call: Call) -> None:
        assert call("rpc:call(N, t, add, [1, 2], 5000)") == "3"

    def test_erpc_call(self, call: Call) -> None:
        assert call("erpc:call(N, t, add, [1, 2])") == "3"

    def test_an_awaited_answer(self, call: Call) -> None:
        assert call("erpc:call(N, t, wait, [5])") == "waited"

    def test_rpc_block_call(self, call: Call) -> None:
        assert call("rpc:block_call(N, t, wait, [5])") == "waited"

    def test_rpc_async_call(self, call: Call) -> None:
        assert call("rpc:yield(rpc:async_call(N, t, add, [1, 2]))") == "3"

    def test_erpc_send_request(self, call: Call) -> None:
        assert call("erpc:receive_response(erpc:send_request(N, t, add, [1, 2]))") == "3"

    def test_multicalls(self, call: Call) -> None:
        assert call("rpc:multicall([N, node()], lists, seq, [1, 2])") == (
            "{[{badrpc,{'EXIT',{undef,[{lists,seq,[1,2],[]}]}}},[1,2]],[]}"
        )
        assert call("erpc:multicall([N, N], t, add, [1, 2])") == "[{ok,3},{ok,3}]"

    def test_casts(self, call: Call, served: Served) -> None:
        assert call("{rpc:cast(N, t, note, [one]), erpc:cast(N, t, note, [two])}") == "{true,ok}"
        assert {served.next(), served.next()} == {Atom("one"), Atom("two")}

    def test_a_cast_through_rex(self, call: Call, served: Served) -> None:
        call("gen_server:cast({rex, N}, {cast, t, note, [three], group_leader()})")
        assert served.next() is Atom("three")

    def test_who_calls(self, call: Call, peer: ErlNode) -> None:
        assert call(
            "begin {A, B, C} = erpc:call(N, t, who, []), {A, B =:= self(), node(C)} end"
        ) in (
            f"{{{peer.name},true,{peer.name}}}",
            f"{{'{peer.name}',true,'{peer.name}'}}",
        )

    def test_terms_come_back_as_they_went(self, call: Call) -> None:
        assert (
            call(
                "begin T = {1, -1, 1 bsl 70, 1.5, a, 'Ä', <<>>, <<1:3>>, [], \"abc\", [1|2],"
                " #{a => #{[] => 1}}, #{1 => a, 1.0 => b}, self(), make_ref(),"
                " fun lists:map/2, fun() -> ok end, hd(erlang:ports())},"
                " T =:= erpc:call(N, t, echo, [T]) end"
            )
            == "true"
        )

    def test_features_are_announced(self, call: Call) -> None:
        assert (
            call(
                "begin {rex, N} ! {self(), features_request},"
                " receive {features_reply, _, F} -> F after 5000 -> none end end"
            )
            == "[erpc]"
        )


class TestFailures:
    @pytest.mark.parametrize("how", ["fail", "late_fail"])
    def test_the_three_classes_in_rpc(self, call: Call, how: str) -> None:
        assert call(f"rpc:call(N, t, {how}, [throw, why])") == "why"
        assert call(f"rpc:call(N, t, {how}, [exit, why])") == "{badrpc,{'EXIT',why}}"
        assert call(f"rpc:call(N, t, {how}, [error, why])") == "{badrpc,{'EXIT',{why,[]}}}"

    @pytest.mark.parametrize("how", ["fail", "late_fail"])
    def test_the_three_classes_in_erpc(self, call: Call, how: str) -> None:
        caught = "try erpc:call(N, t, %s, [%s, why]) catch C:R -> {C, R} end"
        assert call(caught % (how, "throw")) == "{throw,why}"
        assert call(caught % (how, "exit")) == "{exit,{exception,why}}"
        assert call(caught % (how, "error")) == "{error,{exception,why,[]}}"

    @pytest.mark.parametrize("how", ["fail", "late_fail"])
    def test_the_three_classes_in_block_call(self, call: Call, how: str) -> None:
        assert call(f"rpc:block_call(N, t, {how}, [throw, why])") == "why"
        assert call(f"rpc:block_call(N, t, {how}, [exit, why])") == "{badrpc,{'EXIT',why}}"
        assert call(f"rpc:block_call(N, t, {how}, [error, why])") == "{badrpc,{'EXIT',{why,[]}}}"

    @pytest.mark.parametrize("what", ['os, cmd, ["true"]', "erlang, halt, []", "t, add, [1]"])
    def test_what_is_not_served_is_undef(self, call: Call, what: str) -> None:
        module, function, args = what.split(", ", 2)
        stack = f"[{{{module},{function},{args},[]}}]"
        undef = f"{{badrpc,{{'EXIT',{{undef,{stack}}}}}}}"
        assert call(f"rpc:call(N, {what})") == undef
        assert call(f"rpc:block_call(N, {what})") == undef
        assert call(f"try erpc:call(N, {what}) catch error:R -> R end") == (
            f"{{exception,undef,{stack}}}"
        )

    def test_a_fun_is_not_run(self, call: Call) -> None:
        assert (
            call("try erpc:call(N, fun() -> 1 end) catch error:{exception, R, _} -> R end")
            == "undef"
        )
        assert (
            call(
                "begin {_, M} = spawn_monitor(N, fun() -> 1 end),"
                " receive {'DOWN', M, _, _, {R, [{erlang, apply, [_, []], []}]}} -> R end end"
            )
            == "undef"
        )

    def test_a_bug_of_ours_is_an_error_there(self, call: Call) -> None:
        assert call("rpc:call(N, t, bug, [])") == (
            "{badrpc,{'EXIT',{{python,'ZeroDivisionError',<<\"a bug of ours\">>},[]}}}"
        )

    def test_a_result_without_external_form_is_an_error_there(self, call: Call) -> None:
        assert call("rpc:call(N, t, no_term, [])").startswith("{badrpc,{'EXIT',{{unencodable,<<")
        assert call("rpc:block_call(N, t, no_term, [])").startswith(
            "{badrpc,{'EXIT',{{unencodable,<<"
        )
        assert call("rpc:call(N, t, add, [1, 2])") == "3"

    def test_a_call_that_is_given_up_is_told(self, call: Call, served: Served) -> None:
        served.abandoned.clear()
        assert (
            call("try erpc:call(N, t, wait, [60000], 50) catch error:R -> R end")
            == "{erpc,timeout}"
        )
        assert served.abandoned.wait(10)

    @pytest.mark.parametrize("call_of", ["rpc:call", "rpc:block_call", "erpc:call"])
    def test_a_caller_that_is_killed_is_told_of(
        self, call: Call, served: Served, call_of: str
    ) -> None:
        served.abandoned.clear()
        served.waiting.clear()
        call(f"put(p, spawn(fun() -> {call_of}(N, t, wait, [60000]) end))")
        assert served.waiting.wait(10)
        call("exit(get(p), kill)")
        assert served.abandoned.wait(10)


class TestSpawns:
    def test_a_function_can_be_spawned(self, call: Call, served: Served) -> None:
        assert (
            call(
                "begin {P, M} = spawn_monitor(N, t, note, [spawned]),"
                " receive {'DOWN', M, process, P, R} -> R end end"
            )
            == "normal"
        )
        assert served.next() is Atom("spawned")

    def test_its_failure_is_its_exit_reason(self, call: Call) -> None:
        assert (
            call(
                "begin {_, M} = spawn_monitor(N, t, fail, [error, why]),"
                " receive {'DOWN', M, _, _, R} -> R end end"
            )
            == "{why,[]}"
        )

    def test_spawn_link(self, call: Call) -> None:
        assert (
            call(
                "begin process_flag(trap_exit, true), P = spawn_link(N, t, fail, [exit, why]),"
                " R = receive {'EXIT', P, R0} -> R0 end, process_flag(trap_exit, false), R end"
            )
            == "why"
        )

    @pytest.mark.parametrize(
        ("option", "end"),
        [
            ("link", "{'EXIT', P, _}"),
            ("monitor", "{'DOWN', R, process, P, _}"),
            ("{monitor, [{tag, x}]}", "{x, R, process, P, _}"),
            ("{priority, high}", None),
            ("{min_heap_size, 99}", None),
        ],
    )
    def test_options_that_are_taken(self, call: Call, option: str, end: str | None) -> None:
        # What comes when it ends must not be left to the next test.
        ended = f"receive {end} -> ok after 5000 -> lost end" if end else "ok"
        assert (
            call(
                "begin process_flag(trap_exit, true),"
                f" R = spawn_request(N, t, echo, [1], [{option}]),"
                " P = receive {spawn_reply, R, ok, P0} -> P0 after 5000 -> none end,"
                f" E = {ended}, process_flag(trap_exit, false), {{node(P) =:= N, E}} end"
            )
            == "{true,ok}"
        )

    def test_an_option_that_is_not(self, call: Call) -> None:
        assert (
            call(
                "begin R = spawn_request(N, t, echo, [1], [{no_such_option, 1}]),"
                " receive {spawn_reply, R, error, Why} -> Why after 5000 -> none end end"
            )
            == "badopt"
        )

    def test_exit_ends_it(self, call: Call, served: Served) -> None:
        served.cancelled.clear()
        assert (
            call(
                "begin {P, M} = spawn_monitor(N, t, wait, [60000]), exit(P, enough),"
                " receive {'DOWN', M, _, _, R} -> R after 5000 -> none end end"
            )
            == "enough"
        )
        assert served.cancelled.wait(10)

    def test_kill_is_seen_as_killed(self, call: Call) -> None:
        assert (
            call(
                "begin {P, M} = spawn_monitor(N, t, wait, [60000]), exit(P, kill),"
                " receive {'DOWN', M, _, _, R} -> R after 5000 -> none end end"
            )
            == "killed"
        )


class TestSizes:
    def test_a_mebibyte_both_ways(self, call: Call) -> None:
        assert (
            call("begin B = binary:copy(<<7>>, 1 bsl 20), B =:= erpc:call(N, t, echo, [B]) end")
            == "true"
        )
        assert call("byte_size(erpc:call(N, t, bytes, [1 bsl 20]))") == "1048576"

    def test_sixteen_mebibytes_in_one_frame(self, call: Call) -> None:
        assert call("erpc:call(N, t, size, [binary:copy(<<7>>, 1 bsl 24)])") == "16777216"

    @pytest.mark.parametrize("n", [255, 4096, 70000])
    def test_lists_of_integers_both_ways(self, call: Call, n: int) -> None:
        assert (
            call(f"begin L = lists:seq(0, {n} - 1), L =:= erpc:call(N, t, ints, [{n}]) end")
            == "true"
        )
        assert call(f"begin L = lists:seq(1, {n}), L =:= erpc:call(N, t, echo, [L]) end") == "true"
        small = f"begin L = lists:duplicate({n}, 65), L =:= erpc:call(N, t, echo, [L]) end"
        assert call(small) == "true"

    def test_fifty_callers_at_once(self, call: Call) -> None:
        assert (
            call(
                "begin Me = self(), Each = fun(I) -> spawn_link(fun() ->"
                " Me ! {I, [erpc:call(N, t, add, [I, J]) || J <- lists:seq(1, 40)]} end) end,"
                " [Each(I) || I <- lists:seq(1, 50)],"
                " Good = fun(I) -> receive {I, L} ->"
                " L =:= [I + J || J <- lists:seq(1, 40)] end end,"
                " lists:all(Good, lists:seq(1, 50)) end"
            )
            == "true"
        )

    def test_fifty_slow_calls_run_at_once(self, call: Call, served: Served) -> None:
        """Each waits for the other forty-nine."""
        served.met = 0
        assert (
            call(
                "begin Rs = [erpc:send_request(N, t, meet, [50]) || _ <- lists:seq(1, 50)],"
                " lists:usort([erpc:receive_response(R, 20000) || R <- Rs]) end"
            )
            == "[{met,50}]"
        )

    def test_a_term_beyond_the_limits_is_refused(self, call: Call) -> None:
        deep = "lists:foldl(fun(_, A) -> {A} end, x, lists:seq(1, 1000))"
        assert (
            call(f"try erpc:call(N, t, echo, [{deep}]) catch error:R -> R end") == "{erpc,badarg}"
        )
        assert (
            call(
                f"begin {{'EXIT', {{R, _}}}} = (catch gen_server:call({{echo, N}}, {deep})),"
                " element(1, R) end"
            )
            == "undecodable"
        )
        assert call("rpc:call(N, t, add, [1, 2])") == "3"


def test_one_peer_cannot_run_more_than_its_share(
    peer: ErlNode, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls over the limit fail at once and in the caller's terms; then there is room again."""
    served = Served(limits=NodeLimits(max_requests_per_peer=3))
    try:
        assert (
            peer.eval(
                f"begin Rs = [erpc:send_request('{served.name}', t, wait, [500])"
                " || _ <- lists:seq(1, 5)],"
                " [try erpc:receive_response(R) catch error:E -> E end || R <- Rs] end"
            )
            == "[waited,waited,waited,{erpc,system_limit},{erpc,system_limit}]"
        )
        assert caplog.text.count("has 3 requests running, no more are taken") == 1
        assert peer.eval(f"erpc:call('{served.name}', t, wait, [1])") == "waited"
    finally:
        served.stop()
