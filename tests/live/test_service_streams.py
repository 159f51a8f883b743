"""Streams, lives of models and many callers, over the wire."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator

import pytest

from erllama_py import api
from erllama_py._engine.registry import core
from erllama_py.testing import stub_model
from tests.live.erlnode import ErlNode
from tests.live.serving import MODEL, Serving
from tests.waiting import wait_for

SLOW = '<<"slow">>'
"""Takes 5 ms a token: long enough to be watched, short enough to wait for."""

COLLECT = """
    fun Collect(Ref) ->
        receive
            {Kind, Ref, Last} when Kind =:= erllama_done; Kind =:= erllama_error -> [{Kind, Last}];
            {Kind, Ref, What} -> [{Kind, What} | Collect(Ref)]
        after 10000 -> [silence]
        end
    end
"""
"""All messages of a stream, without their reference."""


@pytest.fixture(scope="module")
def llm(peer: ErlNode) -> Iterator[Serving]:
    """The node with two stub models: ``m`` with two slots, ``slow`` with one."""
    serving = Serving(peer)
    slow = {"step_delay_ms": 5}
    with (
        stub_model("m", context_opts={"n_seq_max": 2}),
        stub_model("slow", stub_opts=slow, fingerprint=os.urandom(32)),
    ):
        yield serving
    serving.stop()


@pytest.fixture(autouse=True)
def nothing_runs_on(llm: Serving) -> Iterator[None]:
    """Nothing of one test, a failed one either, is the next one's."""
    yield
    for host in core().hosts():
        for request in list(host._requests.values()):
            host.cancel(request)
    llm.eval("fun Flush() -> receive _ -> Flush() after 0 -> ok end end()")
    wait_for(lambda: all(api.phase(info["id"]) == "idle" for info in api.list_models()))
    assert api.queue_depth() == 0


def stream(llm: Serving, model: str, tokens: str, params: str) -> str:
    """Return the printed list of a whole stream's messages."""
    return llm.eval(
        f"begin {{ok, R}} = erllama:infer({model}, {tokens}, {params}, self()), ({COLLECT})(R) end"
    )


class TestOrder:
    def test_text_then_id_then_done(self, llm: Serving) -> None:
        seen = stream(llm, MODEL, "[1, 2, 3]", "#{response_tokens => 2}")
        found = re.fullmatch(
            r'\[\{erllama_token,<<"(\d+)">>\},\{erllama_token_id,(\d+)\},'
            r'\{erllama_token,<<"(\d+)">>\},\{erllama_token_id,(\d+)\},\{erllama_done,#\{.*\}\}\]',
            seen,
        )
        assert found, seen
        assert len(set(found.groups())) == 1

    def test_the_stats_of_done(self, llm: Serving) -> None:
        seen = llm.eval(f"""begin
            {{ok, R}} = erllama:infer({MODEL}, [1, 2, 3], #{{response_tokens => 2}}, self()),
            {{erllama_done, Stats}} = lists:last(({COLLECT})(R)),
            #{{prompt_tokens := 3, completion_tokens := 2, prefill_ms := P, generation_ms := G,
              cache_hit_kind := cold, finish_reason := length, cancelled := false,
              finish_key := undefined, committed_tokens := 5,
              cache_delta := #{{read := 0, created := 0}}}} = Stats,
            {{maps:size(Stats), is_integer(P), is_integer(G)}}
        end""")
        assert seen == "{10,true,true}"

    def test_a_busy_session_is_an_error_at_once(self, llm: Serving) -> None:
        refused = f"""begin
            O = #{{session_id => {{busy, 1}}, response_tokens => 200}},
            {{ok, R}} = erllama:infer({SLOW}, [1, 2], O, self()),
            E = erllama:infer({SLOW}, [1, 2], O, self()),
            {{error, sticky_busy}} = erllama:complete({SLOW}, <<"a">>, O),
            {{error, sticky_busy}} = erllama:prefill_only({SLOW}, [1], O),
            ok = erllama:end_session({SLOW}, {{busy, 1}}),
            ok = erllama:cancel(R),
            receive {{erllama_done, R, _}} -> E after 5000 -> late end
        end"""
        assert llm.eval(refused) == "{error,sticky_busy}"

    def test_no_tokens_is_only_done(self, llm: Serving) -> None:
        seen = stream(llm, MODEL, "[1]", "#{response_tokens => 0}")
        assert seen.startswith("[{erllama_done,#{")

    def test_sixty_four_tokens_by_default(self, llm: Serving) -> None:
        assert stream(llm, MODEL, "[1]", "#{}").count("erllama_token_id") == 64

    def test_a_stop_sequence_is_cut_and_named(self, llm: Serving) -> None:
        """Two tokens run together contain it: the second one completes it."""
        seen = llm.eval(f"""begin
            Stops = [<<D1, D2>> || D1 <- lists:seq($0, $9), D2 <- lists:seq($0, $9)],
            Params = #{{stop_sequences => Stops, response_tokens => 9}},
            {{ok, R}} = erllama:infer({MODEL}, [1], Params, self()),
            [{{erllama_token_id, Id}}, {{erllama_done, Stats}}] = ({COLLECT})(R),
            <<First:2/binary, _/binary>> = integer_to_binary(Id),
            #{{stop_sequence := First, finish_reason := stop, completion_tokens := 1}} = Stats,
            cut
        end""")
        assert seen == "cut"

    def test_held_back_text_comes_without_an_id_before_done(self, llm: Serving) -> None:
        seen = llm.eval(f"""begin
            Params = #{{stop_sequences => [<<"12 characters">>], response_tokens => 3}},
            {{ok, R}} = erllama:infer({MODEL}, [1], Params, self()),
            Seen = ({COLLECT})(R),
            [{{erllama_done, _}}, {{erllama_token, Held}}, {{erllama_token_id, _}} | _] =
                lists:reverse(Seen),
            Ids = [Id || {{erllama_token_id, Id}} <- Seen],
            Text = iolist_to_binary([T || {{erllama_token, T}} <- Seen]),
            true = Text =:= iolist_to_binary(lists:map(fun(Id) -> integer_to_list(Id) end, Ids)),
            {{byte_size(Held), length(Ids)}}
        end""")
        assert seen == "{12,3}"


class TestCancel:
    def test_done_says_so(self, llm: Serving) -> None:
        seen = llm.eval(f"""begin
            {{ok, R}} = erllama:infer({SLOW}, [1], #{{response_tokens => 4000}}, self()),
            receive {{erllama_token_id, R, _}} -> ok end,
            ok = erllama:cancel(R),
            {{erllama_done, #{{cancelled := C, finish_reason := F}}}} = lists:last(({COLLECT})(R)),
            ok = erllama:cancel(R),
            {{C, F, receive M -> M after 50 -> nothing_more end}}
        end""")
        assert seen == "{true,cancelled,nothing_more}"

    def test_a_queued_stream(self, llm: Serving) -> None:
        """The reference is there at once, though the stream waits its turn."""
        seen = llm.eval(f"""begin
            Params = #{{response_tokens => 4000}},
            {{ok, First}} = erllama:infer({SLOW}, [1], Params, self()),
            {{ok, Second}} = erllama:infer({SLOW}, [2], Params, self()),
            receive {{erllama_token_id, First, _}} -> ok end,
            Queued = {{erllama:queue_depth({SLOW}), erllama:pending_len({SLOW})}},
            ok = erllama:cancel(Second),
            [{{erllama_done, #{{cancelled := true, completion_tokens := 0}}}}] =
                ({COLLECT})(Second),
            ok = erllama:cancel(First),
            ({COLLECT})(First),
            Queued
        end""")
        assert seen == "{1,1}"

    def test_held_back_text_is_let_go(self, llm: Serving) -> None:
        """The first text arrives once there is more than may have to be taken back."""
        seen = llm.eval(f"""begin
            Params = #{{response_tokens => 4000, stop_sequences => [<<"never said">>]}},
            {{ok, R}} = erllama:infer({SLOW}, [1], Params, self()),
            receive {{erllama_token, R, _}} -> ok end,
            ok = erllama:cancel(R),
            [{{erllama_done, #{{cancelled := true}}}}, {{erllama_token, Held}} | _] =
                lists:reverse(({COLLECT})(R)),
            byte_size(Held)
        end""")
        assert seen == "9"


class TestCallersThatEnd:
    """Nobody generates for the dead."""

    def test_the_process_of_a_stream(self, llm: Serving) -> None:
        llm.eval(f"""begin
            {{P, Mon}} = spawn_monitor(fun() ->
                {{ok, R}} = erllama:infer({SLOW}, [1], #{{response_tokens => 4000}}, self()),
                receive {{erllama_token_id, R, _}} -> ok end
            end),
            receive {{'DOWN', Mon, process, P, normal}} -> ok after 5000 -> exit(late) end
        end""")
        wait_for(lambda: api.queue_depth("slow") == 0, seconds=3)
        assert api.phase("slow") == "idle"

    def test_a_process_that_was_dead_before(self, llm: Serving) -> None:
        llm.eval(f"""begin
            {{P, Mon}} = spawn_monitor(fun() -> ok end),
            receive {{'DOWN', Mon, process, P, normal}} -> ok end,
            {{ok, _}} = erllama:infer({SLOW}, [1], #{{response_tokens => 4000}}, P)
        end""")
        wait_for(lambda: api.queue_depth("slow") == 0, seconds=3)

    def test_a_call_whose_caller_is_killed(self, llm: Serving) -> None:
        llm.eval(f"""begin
            P = spawn(fun() -> erllama:complete({SLOW}, <<"a">>) end), put(p, P)
        end""")
        wait_for(lambda: api.phase("slow") != "idle")
        llm.eval("exit(get(p), kill)")
        wait_for(lambda: api.phase("slow") == "idle", seconds=3)

    def test_a_call_that_timed_out(self, llm: Serving) -> None:
        called = f'erpc:call(N, erllama, complete, [{SLOW}, <<"a">>], 50)'
        assert llm.eval(f"try {called} catch C:R -> {{C, R}} end") == "{error,{erpc,timeout}}"
        wait_for(lambda: api.phase("slow") == "idle", seconds=3)

    @pytest.mark.parametrize("via", ["erpc", "name"])
    def test_a_node_that_goes_away(
        self, llm: Serving, erl_node: Callable[..., ErlNode], via: str
    ) -> None:
        """In the middle of a call, with a stream waiting behind it."""
        other = erl_node()
        slow = llm.ask(via, "complete", f'{SLOW}, <<"a">>')
        infer = llm.expand(f"erllama:infer({SLOW}, [1], #{{response_tokens => 4000}}, self())")
        other.eval(f"begin spawn(fun() -> {slow} end), timer:sleep(20), {infer} end")
        wait_for(lambda: api.phase("slow") != "idle" and api.pending_len("slow") == 1)
        other.kill()
        wait_for(lambda: api.phase("slow") == "idle" and api.pending_len("slow") == 0, seconds=5)


class TestLives:
    def test_unload_is_seen_by_all(self, llm: Serving) -> None:
        """Monitors, links, streams, and calls that wait."""
        with stub_model("brief", stub_opts={"step_delay_ms": 5}):
            seen = llm.eval(f"""begin
                Self = self(),
                #{{pid := P}} = erllama:model_info(<<"brief">>),
                Mon = erlang:monitor(process, P),
                spawn(fun() ->
                    process_flag(trap_exit, true), link(P), Self ! linked,
                    receive {{'EXIT', P, Why}} -> Self ! {{linked, Why}} end
                end),
                receive linked -> ok end,
                {{ok, R}} = erllama:infer(<<"brief">>, [1], #{{response_tokens => 4000}}, self()),
                spawn(fun() ->
                    try erllama:complete(P, <<"b">>)
                    catch exit:{{exception, Why}} -> Self ! {{waited, Why}} end
                end),
                (fun Wait() ->
                    case erllama:pending_len(<<"brief">>) of 1 -> ok; _ -> Wait() end
                end)(),
                ok = erllama:unload(<<"brief">>),
                {{error, not_found}} = erllama:unload(<<"brief">>),
                {{erllama_error, StreamWhy}} = lists:last(({COLLECT})(R)),
                Down = receive {{'DOWN', Mon, process, P, D}} -> D after 5000 -> none end,
                Link = receive {{linked, L}} -> L after 5000 -> none end,
                Call = receive
                    {{waited, {{W, {{gen_statem, call, [P, Asked, infinity]}}}}}} -> {{W, Asked}}
                after 5000 -> none end,
                {{StreamWhy, Down, Link, Call}}
            end""")
        assert seen == '{{unloaded,shutdown},shutdown,shutdown,{shutdown,{complete,<<"b">>}}}'

    def test_a_node_that_leaves_says_so(self, peer: ErlNode) -> None:
        """Streams end with one message, running and queued ones, and pids with ``shutdown``."""
        leaving = Serving(peer)
        with stub_model("left", stub_opts={"step_delay_ms": 5}):
            leaving.eval("""begin
                #{pid := P} = erllama:model_info(<<"left">>), put(pid, P),
                put(monitor, erlang:monitor(process, P)),
                Start = fun() ->
                    {ok, R} = erllama:infer(<<"left">>, [1], #{response_tokens => 4000}, self()), R
                end,
                put(running, Start()), put(queued, Start()),
                receive {erllama_token_id, _, _} -> ok end
            end""")
            leaving.stop()
            seen = peer.eval(f"""begin
                P = get(pid), Mon = get(monitor),
                Down = receive {{'DOWN', Mon, process, P, D}} -> D after 10000 -> none end,
                {{Down, [[Last || {{erllama_error, Last}} <- ({COLLECT})(get(Which))]
                         || Which <- [running, queued]]}}
            end""")
            assert seen == "{shutdown,[[{unloaded,shutdown}],[{unloaded,shutdown}]]}"
            wait_for(lambda: api.phase("left") == "idle" and api.pending_len("left") == 0)

    def test_a_killed_model_comes_back_under_its_id(self, llm: Serving) -> None:
        slow = {"step_delay_ms": 5}
        with stub_model("victim", in_process=False, stub_opts=slow) as model:
            llm.eval("""begin
                #{pid := P} = erllama:model_info(<<"victim">>), put(pid, P),
                put(monitor, erlang:monitor(process, P)),
                {ok, R} = erllama:infer(<<"victim">>, [1], #{response_tokens => 4000}, self()),
                put(ref, R),
                receive {erllama_token_id, R, _} -> ok end
            end""")
            victim = core().host(model).os_pid
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
            seen = llm.eval(f"""begin
                P = get(pid), Mon = get(monitor),
                {{erllama_error, StreamWhy}} = lists:last(({COLLECT})(get(ref))),
                Down = receive {{'DOWN', Mon, process, P, D}} -> D after 5000 -> none end,
                {{ok, _}} = erllama:complete(<<"victim">>, <<"a">>, #{{response_tokens => 1}}),
                #{{pid := New}} = erllama:model_info(<<"victim">>),
                {{noproc, _}} = try erllama:status(P) catch exit:{{exception, E}} -> E end,
                {{StreamWhy, Down, New =:= P, lists:member(New, erllama:models())}}
            end""")
        assert seen == "{{model_down,killed},killed,false,true}"

    def test_a_monitor_of_the_dead_fires_at_once(self, llm: Serving) -> None:
        seen = llm.eval("""begin
            {ok, M} = erllama:load_model(#{in_process => true}),
            #{pid := P} = erllama:model_info(M),
            ok = erllama:unload(M),
            Mon = erlang:monitor(process, P),
            receive {'DOWN', Mon, process, P, Why} -> Why after 5000 -> none end
        end""")
        assert seen == "noproc"

    def test_an_id_is_free_after_unload(self, llm: Serving) -> None:
        seen = llm.eval("""begin
            Stub = #{backend => erllama_model_stub, in_process => true},
            Once = fun(_) ->
                {ok, <<"again">>} = erllama:load_model(<<"again">>, Stub),
                #{pid := P} = erllama:model_info(<<"again">>),
                {error, already_loaded} = erllama:load_model(<<"again">>, Stub),
                ok = erllama:unload_model(<<"again">>),
                idle = erllama:phase(<<"again">>),
                P
            end,
            length(lists:usort(lists:map(Once, [1, 2, 3])))
        end""")
        assert seen == "3"


class TestManyCallers:
    def test_twenty_at_once(self, llm: Serving) -> None:
        """Every one gets its own answer: the prompt's length is the caller's number."""
        seen = llm.eval(f"""begin
            Self = self(),
            Ask = fun(I) ->
                Prompt = iolist_to_binary(lists:duplicate(I, <<"w ">>)),
                {{ok, #{{stats := S, generated := G}}}} =
                    erllama:complete({MODEL}, Prompt, #{{response_tokens => 5}}),
                Self ! {{I, maps:get(prompt_tokens, S), length(G)}}
            end,
            lists:foreach(fun(I) -> spawn(fun() -> Ask(I) end) end, lists:seq(1, 20)),
            Answers = lists:map(
                fun(I) -> receive {{I, P, G}} -> P =:= I andalso G =:= 5 after 9000 -> late end end,
                lists:seq(1, 20)
            ),
            lists:usort(Answers)
        end""")
        assert seen == "[true]"

    def test_twenty_streams_at_once(self, llm: Serving) -> None:
        """Ten tokens each, and no stream's in another's."""
        seen = llm.eval(f"""begin
            Start = fun(_) ->
                {{ok, R}} = erllama:infer({MODEL}, [7], #{{response_tokens => 10}}, self()),
                R
            end,
            Refs = lists:map(Start, lists:seq(1, 20)),
            Seen = lists:map({COLLECT}, Refs),
            Ids = lists:map(fun(S) -> [Id || {{erllama_token_id, Id}} <- S] end, Seen),
            [Distinct] = lists:usort(lists:map(fun(L) -> length(lists:usort(L)) end, Ids)),
            [10] = lists:usort(lists:map(fun erlang:length/1, Ids)),
            {{length(lists:usort(Refs)), Distinct, length(lists:usort(Ids))}}
        end""")
        assert seen == "{20,1,20}"

    def test_a_stream_for_a_process_of_another_node(
        self, llm: Serving, erl_node: Callable[..., ErlNode]
    ) -> None:
        other = erl_node()
        other.eval("register(reader, self())")
        llm.eval(f"""begin
            P = rpc:call('{other.name}', erlang, whereis, [reader]),
            {{ok, R}} = erllama:infer({MODEL}, [1], #{{response_tokens => 2}}, P),
            P ! {{ref, R}}
        end""")
        seen = other.eval(f"""begin
            R = receive {{ref, Ref}} -> Ref end,
            lists:map(fun(Message) -> element(1, Message) end, ({COLLECT})(R))
        end""")
        kinds = ["erllama_token", "erllama_token_id"] * 2
        assert seen == f"[{','.join([*kinds, 'erllama_done'])}]"


BAD_CALLS = [
    f'erllama:complete({SLOW}, <<"a">>, [])',
    f'erllama:complete({SLOW}, <<"a">>, #{{stop_sequences => 5}})',
    f"erllama:complete({SLOW}, <<>>)",
    f'erllama:complete({SLOW}, "charlist")',
    f"erllama:complete({SLOW}, binary:copy(<<$x>>, 4194305))",
    f'erllama:complete({SLOW}, binary:copy(<<"x ">>, 5000))',
    f'erllama:complete({SLOW}, <<"a">>, #{{seed => -1}})',
    f"erllama:prefill_only({SLOW}, [])",
    f"erllama:prefill_only({SLOW}, [a])",
    f"erllama:prefill_only({SLOW}, [-1])",
    f"erllama:prefill_only({SLOW}, [1 bsl 31])",
    f"erllama:prefill_only({SLOW}, [1.0])",
    f"erllama:prefill_only({SLOW}, [1|2])",
    f"erllama:prefill_only({SLOW}, {{1, 2}})",
    f"erllama:infer({SLOW}, lists:duplicate(5000, 1), #{{}}, self())",
    f"erllama:infer({SLOW}, [1], #{{response_tokens => many}}, self())",
    f"erllama:infer({SLOW}, [1], #{{}}, nobody)",
    f"erllama:detokenize({SLOW}, [a])",
    f"erllama:apply_chat_template({SLOW}, #{{messages => 5}})",
    f"erllama:apply_chat_template({SLOW}, #{{messages => [#{{role => user, content => <<>>}}]}})",
    "erllama:load_model(#{fingerprint => <<1>>})",
    "erllama:load_model(#{policy => #{min_tokens => -1}})",
    "erllama:load_model(#{context_opts => #{n_seq_max => 1000}})",
]


class TestBadInput:
    """What kills the original's model (BUG-4 to BUG-6) is refused here, and harms nobody."""

    @pytest.mark.parametrize("call", BAD_CALLS)
    def test_is_refused_while_another_stream_goes_on(self, llm: Serving, call: str) -> None:
        seen = llm.eval(f"""begin
            {{ok, R}} = erllama:infer({SLOW}, [1], #{{response_tokens => 4000}}, self()),
            receive {{erllama_token_id, R, _}} -> ok end,
            Answer = try {call}
                catch error:{{exception, Why, [{{erllama, _, _, []}}]}} -> {{error, Why}} end,
            {{error, Reason}} = Answer,
            (fun Flush() -> receive {{_, R, _}} -> Flush() after 0 -> ok end end)(),
            receive {{erllama_token_id, R, _}} -> ok after 5000 -> exit(stopped) end,
            ok = erllama:cancel(R),
            {{erllama_done, #{{cancelled := true}}}} = lists:last(({COLLECT})(R)),
            Reason
        end""")
        assert re.fullmatch(r"[a-z_]+|\{invalid,[a-z_]+,.*\}", seen)

    def test_reasons_are_atoms_and_what_was_given(self, llm: Serving) -> None:
        refused = {
            "stop_sequences => 5": "{invalid,stop_sequences,5}",
            "stop_sequences => all": "{invalid,stop_sequences,all}",
            'response_tokens => <<"1">>': '{invalid,response_tokens,<<"1">>}',
            "parent_key => <<1, 2>>": "{invalid,parent_key,<<1,2>>}",
            "exactness => roughly": "{invalid,exactness,roughly}",
            "seed => 1.5": "badarg",
            "grammar => root": "badarg",
        }
        for option, reason in refused.items():
            call = f'erllama:complete({MODEL}, <<"a">>, #{{{option}}})'
            assert llm.eval(call) == f"{{error,{reason}}}"

    @pytest.mark.parametrize("least", ["0", "infinity"])
    def test_policies_that_ended_the_original_do_what_they_say(
        self, llm: Serving, least: str
    ) -> None:
        """With 0 every request leaves a key, with infinity none does."""
        seen = llm.eval(f"""begin
            Stub = #{{in_process => true, policy => #{{min_tokens => {least}}}}},
            {{ok, M}} = erllama:load_model(Stub),
            Short = #{{response_tokens => 1}},
            {{ok, #{{finish_key := Key}}}} = erllama:complete(M, <<"a">>, Short),
            ok = erllama:unload(M),
            is_binary(Key)
        end""")
        assert seen == ("true" if least == "0" else "false")
