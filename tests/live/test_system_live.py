"""What a tool asks of any OTP process is answered by ours: nobody waits for nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from erl_bridge.etf import Atom
from erl_bridge.runtime import services
from erllama_py.testing import stub_model
from tests.live.erlnode import ErlNode
from tests.live.served import Call, Served
from tests.live.serving import Serving

CAUGHT = "try %s catch C:R -> {C, R} end"
#: OTP 25 gives the answer as it came, OTP 28 takes the state out of it.
STATE = "case sys:get_state(%s) of {ok, S} -> S; S -> S end"


@pytest.fixture(scope="module")
def llm(peer: ErlNode) -> Iterator[Serving]:
    """A node with a stub model ``m``."""
    serving = Serving(peer)
    with stub_model("m"):
        yield serving
    serving.stop()


@pytest.fixture(scope="module")
def visible() -> Iterator[Served]:
    """A node that shows up in ``nodes()`` of its peers."""
    served = Served(hidden=False)
    yield served
    served.stop()


class TestSys:
    """Of a server that says nothing of itself, and may not be ended."""

    def test_state_and_status(self, call: Call) -> None:
        assert call(STATE % "{echo, N}") == "#{}"
        assert call(
            "begin {status, P, {module, gen_server}, [[], running, Parent, [], About]} ="
            " sys:get_status({echo, N}),"
            " {P =:= erpc:call(N, t, server, []), node(Parent) =:= N, About} end"
        ) == (
            '{true,true,[{header,"Status for generic server echo"},{data,[{"Status",running},'
            '{"Parent",PARENT}]},{data,[{"State",#{}}]}]}'
        ).replace("PARENT", _parent(call))

    @pytest.mark.parametrize(
        ("asked", "answer"),
        [
            ("sys:resume({echo, N})", "ok"),
            ("sys:no_debug({echo, N})", "ok"),
            ("sys:suspend({echo, N})", "{error,not_supported}"),
            ("sys:trace({echo, N}, true)", "{error,not_supported}"),
            ("sys:log({echo, N}, get)", "{error,not_supported}"),
            ("sys:statistics({echo, N}, get)", "{error,not_supported}"),
            ("sys:change_code({echo, N}, a, b, c)", "{error,not_supported}"),
            ("sys:terminate({echo, N}, normal)", "{error,not_supported}"),
            ("sys:replace_state({echo, N}, fun(S) -> S end)", "{error,not_supported}"),
            ("gen_server:stop({echo, N})", "{error,{try_clause,{error,not_supported}}"),
            ("sys:get_state({nobody, N})", "{exit,{noproc,{sys,get_state,[{nobody,"),
        ],
    )
    def test_what_changes_a_process_is_refused(self, call: Call, asked: str, answer: str) -> None:
        assert call(CAUGHT % asked).startswith(answer)
        assert call("gen_server:call({echo, N}, still)") == "{echo,still}"

    def test_what_is_no_system_message(self, call: Call) -> None:
        assert call("gen:call({echo, N}, system, {what, 1})") == (
            "{ok,{error,{unknown_system_msg,{what,1}}}}"
        )
        assert call("gen:call({echo, N}, system, [])") == ("{ok,{error,{unknown_system_msg,[]}}}")


class TestMultiCall:
    @pytest.mark.parametrize("limit", ["", ", 20000"])
    @pytest.mark.parametrize("request_term", ["{exit, why}", "bug"])
    def test_a_call_that_fails_leaves_its_node_among_the_bad(
        self, call: Call, request_term: str, limit: str
    ) -> None:
        """For ever, else: OTP 25 waits for the monitor it set before it called."""
        assert call(f"gen_server:multi_call([N], echo, {request_term}{limit})") == call("{[],[N]}")

    def test_only_the_monitor_of_the_call_fires(self, call: Call) -> None:
        assert (
            call(
                "begin M = erlang:monitor(process, {echo, N}),"
                " {[], [N]} = gen_server:multi_call([N], echo, {exit, why}),"
                " receive {'DOWN', M, _, _, R} -> R"
                " after 0 -> {erlang:demonitor(M, [info]), gen_server:call({echo, N}, still)}"
                " end end"
            )
            == "{true,{echo,still}}"
        )

    def test_one_that_answers(self, call: Call) -> None:
        assert call("gen_server:multi_call([N, N], echo, hello)") == call(
            "{[{N, {echo, hello}}, {N, {echo, hello}}], []}"
        )


class TestBroadcasts:
    def test_who_has_the_name_gets_the_message(self, call: Call, served: Served) -> None:
        assert call("rpc:sbcast([N], named, hello)") == call("{[N], []}")
        assert served.next() is Atom("hello")

    def test_nobody_has_it(self, call: Call, served: Served) -> None:
        assert call("rpc:sbcast([N], nobody, hello)") == call("{[], [N]}")
        assert served.nothing_came()


class TestGlobalLocks:
    """A lock of ``global`` is by default one on each visible node."""

    @pytest.fixture
    def asked(self, peer: ErlNode, visible: Served) -> Callable[[str], str]:
        peer.eval(f"net_adm:ping('{visible.name}')")

        def run(expression: str) -> str:
            return peer.eval(re.sub(r"\bV\b", f"'{visible.name}'", expression))

        return run

    def test_a_transaction_of_all_visible_nodes(self, asked: Callable[[str], str]) -> None:
        assert asked(
            "{lists:member(V, nodes()), global:trans({r, self()}, fun() -> done end)}"
        ) == ("{true,done}")

    def test_a_lock_is_its_requesters_until_it_lets_go(self, asked: Callable[[str], str]) -> None:
        set_lock = "global:set_lock({r, %s}, [V], 0)"
        assert asked(set_lock % "one") == "true"
        assert asked(set_lock % "one") == "true"
        assert asked(set_lock % "two") == "false"
        assert asked("global:set_lock({other, two}, [V], 0)") == "true"
        assert asked("global:del_lock({other, two}, [V])") == "true"
        assert asked("global:del_lock({r, two}, [V])") == "true"
        assert asked("global:del_lock({r, one}, [V])") == "true"
        assert asked(set_lock % "two") == "false", "it was set twice"
        assert asked("global:del_lock({r, one}, [V])") == "true"
        assert asked(set_lock % "two") == "true"
        assert asked("global:del_lock({r, two}, [V])") == "true"

    def test_there_is_a_limit(
        self, asked: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(services, "MAX_LOCKS", 1)
        assert asked("global:set_lock({r, one}, [V], 0)") == "true"
        assert asked("global:set_lock({s, one}, [V], 0)") == "false"
        assert asked("global:del_lock({r, one}, [V])") == "true"
        assert asked("global:set_lock({s, one}, [V], 0)") == "true"
        assert asked("global:del_lock({s, one}, [V])") == "true"

    def test_a_holder_that_ends_lets_go(self, asked: Callable[[str], str]) -> None:
        """Whoever waits for it gets it then: ``global`` tries again by itself."""
        assert (
            asked(
                "begin S = self(), {P, M} = spawn_monitor(fun() ->"
                " S ! global:set_lock({r, one}, [V], 0), receive stop -> ok end end),"
                " true = receive Set -> Set end,"
                " Before = global:set_lock({r, two}, [V], 0),"
                " exit(P, kill), receive {'DOWN', M, _, _, _} -> ok end,"
                " After = global:set_lock({r, two}, [V]), global:del_lock({r, two}, [V]),"
                " {Before, After} end"
            )
            == "{false,true}"
        )


class TestErllama:
    def test_what_its_processes_say_of_themselves(self, llm: Serving) -> None:
        keys = llm.eval(f"lists:sort(maps:keys({STATE % '{erllama, N}'}))")
        assert keys == "[connections,peers,streams]"
        pid = 'maps:get(pid, erllama:model_info(<<"m">>))'
        assert llm.eval(f"begin {{idle, #{{id := I}}}} = {STATE % pid}, I end") == '<<"m">>'
        assert llm.eval(STATE % "{erllama_registry, N}") == llm.eval(f'[{{<<"m">>, {pid}}}]')
        assert llm.eval(f"maps:is_key(enabled, {STATE % '{erllama_scheduler, N}'})") == "true"

    def test_a_model_that_is_stopped_ends_with_the_reason(self, llm: Serving) -> None:
        with stub_model("stopped"):
            assert (
                llm.eval(
                    """begin
                        Pid = maps:get(pid, erllama:model_info(<<"stopped">>)),
                        M = erlang:monitor(process, Pid),
                        ok = gen_statem:stop(Pid, {shutdown, bye}, 20000),
                        receive {'DOWN', M, process, Pid, R} -> ok end,
                        {R, erllama:unload(<<"stopped">>), catch gen_server:stop(Pid)}
                    end"""
                )
                == "{{shutdown,bye},{error,not_found},{'EXIT',noproc}}"
            )

    @pytest.mark.parametrize(("sent", "told"), [("kill", "killed"), ("{a, b}", "{a,b}")])
    def test_an_exit_signal_ends_a_model_with_its_reason(
        self, llm: Serving, sent: str, told: str
    ) -> None:
        """A supervisor takes anything but ``killed`` for a failed end of a child it kills."""
        with stub_model("ended"):
            assert (
                llm.eval(
                    f"""begin
                        Pid = maps:get(pid, erllama:model_info(<<"ended">>)),
                        Flag = process_flag(trap_exit, true),
                        true = link(Pid), M = erlang:monitor(process, Pid),
                        exit(Pid, normal), idle = erllama:status(Pid),
                        exit(Pid, {sent}),
                        receive {{'DOWN', M, process, Pid, R}} -> ok end,
                        receive {{'EXIT', Pid, E}} -> ok end,
                        process_flag(trap_exit, Flag),
                        {{R, E}}
                    end"""
                )
                == f"{{{told},{told}}}"
            )

    def test_a_tier_server_that_is_stopped_ends(
        self, peer: ErlNode, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        root = tmp_path_factory.mktemp("stopped")
        serving = Serving(peer, roots=[root])
        try:
            assert (
                serving.eval(
                    f"""begin
                        Dir = "{root}/rows",
                        Start = fun() -> erpc:call(N, erllama_cache_disk_srv, start_link,
                                                   [stopped_srv, Dir]) end,
                        {{ok, Pid}} = Start(),
                        State = {STATE % "{stopped_srv, N}"},
                        ok = gen_server:stop({{stopped_srv, N}}),
                        {{ok, Other}} = Start(),
                        ok = gen_server:stop(Other, shutdown, 20000),
                        {{State =:= #{{dir => Dir}}, Pid =:= Other,
                          catch gen_server:stop({{stopped_srv, N}})}}
                    end"""
                )
                == "{true,false,{'EXIT',noproc}}"
            )
        finally:
            serving.stop()

    def test_supervisors_name_their_children(self, llm: Serving) -> None:
        assert (
            llm.eval(
                """begin
                    Children = supervisor:which_children({erllama_sup, N}),
                    true = lists:all(fun({Id, P, _, [Id]}) -> node(P) =:= N end, Children),
                    [{Id, Kind} || {Id, _, Kind, _} <- lists:reverse(Children)]
                end"""
            )
            == "[{erllama_cache_sup,supervisor},{erllama_registry,worker},"
            "{erllama_inflight,worker},{erllama_model_sup,supervisor},{erllama_scheduler,worker}]"
        )
        assert (
            llm.eval(
                "[Id || {Id, _, worker, _} <- supervisor:which_children({erllama_cache_sup, N})]"
            )
            == "[erllama_cache_writer,erllama_cache_ram,erllama_cache_meta_srv]"
        )
        models = "supervisor:which_children({erllama_model_sup, N})"
        assert llm.eval(f"{models} =:= erpc:call(N, erllama_model_sup, models, [])") == "true"
        assert llm.eval("supervisor:count_children({erllama_sup, N})") == (
            "[{specs,5},{active,5},{supervisors,2},{workers,3}]"
        )
        assert llm.eval("supervisor:count_children({erllama_model_sup, N})") == (
            "[{specs,1},{active,1},{supervisors,0},{workers,1}]"
        )
        assert llm.eval("supervisor:terminate_child({erllama_sup, N}, erllama_registry)") == (
            "{error,not_supported}"
        )
        assert llm.eval("supervisor:restart_child({erllama_sup, N}, what)") == (
            "{error,not_supported}"
        )


class TestFacts:
    """What is usual to ask of a process that is elsewhere."""

    def test_who_is_there(self, llm: Serving) -> None:
        assert (
            llm.eval(
                """begin
                    Ask = fun(F, A) -> rpc:call(N, erlang, F, A) end,
                    N = Ask(node, []),
                    Pid = Ask(whereis, [erllama_registry]), N = node(Pid),
                    undefined = Ask(whereis, [nobody]),
                    [] = [erllama, erllama_sup, net_kernel, rex] -- Ask(registered, []),
                    [Model] = erllama:models(),
                    {Ask(is_process_alive, [Pid]), Ask(is_process_alive, [Model])}
                end"""
            )
            == "{true,true}"
        )

    def test_who_has_gone(self, llm: Serving) -> None:
        with stub_model("gone"):
            assert (
                llm.eval(
                    """begin
                        Pid = maps:get(pid, erllama:model_info(<<"gone">>)),
                        ok = erllama:unload(Pid),
                        rpc:call(N, erlang, is_process_alive, [Pid])
                    end"""
                )
                == "false"
            )

    @pytest.mark.parametrize(
        "asked", ["is_process_alive, [self()]", "is_process_alive, [1]", "whereis, [1]"]
    )
    def test_what_erlang_refuses_too(self, llm: Serving, asked: str) -> None:
        function = asked.partition(",")[0]
        expected = f"{{badrpc,{{'EXIT',{{badarg,[{{erlang,{function},[_],[]}}]}}}}}}"
        assert llm.eval(f"begin {expected} = rpc:call(N, erlang, {asked}), ok end") == "ok"

    @pytest.mark.parametrize("asked", ["nodes, []", "memory, []", "process_info, [self()]"])
    def test_nothing_else_is_told(self, llm: Serving, asked: str) -> None:
        expected = "{badrpc,{'EXIT',{undef,_}}}"
        assert llm.eval(f"begin {expected} = rpc:call(N, erlang, {asked}), ok end") == "ok"


def _parent(call: Call) -> str:
    return call("element(3, list_to_tuple(element(4, sys:get_status({echo, N}))))")
