%% The link and what callers see without a node; the guards, which need none.
-module(erllama_link_tests).

-include_lib("eunit/include/eunit.hrl").

%% A handler of logger: what is logged goes to the test.
-export([log/2]).

log(#{level := Level, msg := {Format, Args}}, #{config := #{to := Pid}}) when is_list(Format) ->
    Pid ! {logged, Level, lists:flatten(io_lib:format(Format, Args))};
log(_Event, _Config) ->
    ok.

without_a_node_test_() ->
    [
        {"not started", fun not_started/0},
        {"guards", fun guards/0},
        {"names", fun names/0},
        {"bad settings", {timeout, 30, fun bad_settings/0}},
        {"bad settings in words", {timeout, 30, fun bad_settings_in_words/0}},
        {"nobody there", {timeout, 30, fun nobody_there/0}},
        {"required", {timeout, 30, fun required/0}}
    ].

with_a_node_test_() ->
    [
        {"connects by itself", {timeout, 30, fun connects/0}},
        {"a wrong cookie", {timeout, 30, fun wrong_cookie/0}}
    ].

not_started() ->
    erllama_test_env:stop(ok),
    ?assertEqual(undefined, erllama_link:target()),
    ?assertExit({noproc, {erllama, counters, []}}, erllama:counters()),
    Ref = make_ref(),
    ?assertExit({noproc, {erllama, cancel, [Ref]}}, erllama:cancel(Ref)).

guards() ->
    Self = self(),
    [
        ?assertError(function_clause, apply(erllama, Function, Args))
     || {Function, Args} <- [
            {load_model, [[]]},
            {load_model, [id, #{}]},
            {load_model, [<<"id">>, []]},
            {unload, [id]},
            {unload_model, ["id"]},
            {model_info, [id]},
            {status, [id]},
            {evict, [id]},
            {shutdown, [id]},
            {complete, [id, <<"a">>]},
            {complete, [<<"id">>, "a"]},
            {complete, [<<"id">>, <<"a">>, []]},
            {prefill_only, [<<"id">>, <<"a">>]},
            {prefill_only, [<<"id">>, [1], []]},
            {end_session, [id, session]},
            {infer, [<<"id">>, <<"a">>, #{}, Self]},
            {infer, [<<"id">>, [1], [], Self]},
            {infer, [<<"id">>, [1], #{}, shell]},
            {cancel, [<<"ref">>]},
            {tokenize, [<<"id">>, "a"]},
            {detokenize, [<<"id">>, <<"a">>]},
            {apply_chat_template, [<<"id">>, []]},
            {embed, [<<"id">>, <<"a">>]},
            {draft_tokens, [Self, [1], #{}]},
            {verify, [Self, [1], [2], 1]},
            {verify, [<<"id">>, [1], [2], 0]},
            {load_adapter, [id, "path"]},
            {unload_adapter, [id, handle]},
            {set_adapter_scale, [<<"id">>, handle, <<"1">>]},
            {list_adapters, [id]},
            {queue_depth, [Self]},
            {pending_len, [Self]},
            {phase, [Self]},
            {last_cache_hit, [Self]},
            {list_cached_prefixes, [Self, [1]]}
        ]
    ].

names() ->
    {ok, Named} = erllama_dist:target(llm),
    ?assertEqual("llm", hd(string:split(atom_to_list(Named), "@"))),
    [
        ?assertEqual({ok, 'llm@some.host'}, erllama_dist:target(Name))
     || Name <- ['llm@some.host', "llm@some.host", <<"llm@some.host">>]
    ],
    [
        ?assertEqual({error, {bad_node, Name}}, erllama_dist:target(Name))
     || Name <- ["", "@host", "a@", "a@b@c", 5, undefined, nil, [[]], #{}]
    ].

bad_settings() ->
    {error, {erllama, {{bad_node, 5}, _}}} = erllama_test_env:start(#{node => 5}),
    {ok, _} = erllama_test_env:start(),
    {error, {erllama, {{own_node, Own}, _}}} = erllama_test_env:start(#{node => node()}),
    ?assertEqual(node(), Own),
    Other =
        case string:find(erllama_test_env:host(), ".") of
            nomatch -> 'llm@some.host';
            _ -> 'llm@host'
        end,
    {error, {erllama, {{name_domains_differ, _, Other}, _}}} =
        erllama_test_env:start(#{node => Other}),
    [
        ?assertMatch(
            {error, {erllama, {Reason, _}}} when Reason =:= Expected, erllama_test_env:start(Settings)
        )
     || {Settings, Expected} <- [
            {#{connect_timeout => soon}, {bad_setting, connect_timeout, soon}},
            {#{connect_timeout => 0}, {bad_setting, connect_timeout, 0}},
            {#{connect_timeout => 1.5}, {bad_setting, connect_timeout, 1.5}},
            {#{required => yes}, {bad_setting, required, yes}},
            %% Its value is in no reason and in no log.
            {#{cookie => 5}, {bad_setting, cookie}},
            {#{cookie => ""}, {bad_setting, cookie}},
            {#{cookie => binary:copy(<<"c">>, 256)}, {bad_setting, cookie}}
        ]
    ].

%% What the log says is what to do, before the reports of a crash that follow.
bad_settings_in_words() ->
    ok = logger:add_handler(?MODULE, ?MODULE, #{config => #{to => self()}}),
    ok = logger:set_module_level(erllama_link, error),
    [
        begin
            {error, _} = erllama_test_env:start(Settings),
            receive
                {logged, error, Text} -> ?assertNotEqual(nomatch, string:find(Text, Words))
            after 5000 -> error({nothing_logged, Settings})
            end
        end
     || {Settings, Words} <- [
            {#{node => 5}, "the setting node is 5: it must be name@host"},
            {#{node => node()}, "which is this very node"},
            {#{connect_timeout => soon}, "the setting connect_timeout is soon"},
            {#{required => yes}, "the setting required is yes: it must be true or false"},
            {#{cookie => 5}, "the setting cookie is no cookie"}
        ]
    ],
    ok = logger:remove_handler(?MODULE),
    ok = logger:unset_module_level(erllama_link).

nobody() ->
    list_to_atom("nobody@" ++ erllama_test_env:host()).

nobody_there() ->
    Nobody = nobody(),
    ok = logger:add_handler(?MODULE, ?MODULE, #{config => #{to => self()}}),
    ok = logger:set_module_level(erllama_link, notice),
    {ok, _} = erllama_test_env:start(#{node => Nobody}),
    ?assert(is_alive()),
    %% Once, though it is tried again and again.
    receive
        {logged, warning, Text} ->
            ?assertNotEqual(nomatch, string:find(Text, "erllama node --name nobody@"))
    after 5000 -> error(nothing_logged)
    end,
    receive
        {logged, _, Again} -> error({logged_again, Again})
    after 1700 -> ok
    end,
    ok = logger:remove_handler(?MODULE),
    ok = logger:unset_module_level(erllama_link),
    ?assertExit({nodedown, Nobody}, erllama:models()),
    ?assertExit({nodedown, Nobody}, erllama:phase(<<"m">>)),
    ?assertEqual(ok, erllama:cancel(make_ref())),
    {Status, Nobody} = erllama_link:status(),
    ?assert(lists:member(Status, [trying, waiting])).

required() ->
    Nobody = nobody(),
    {error, {erllama, {{node_unreachable, Nobody, Why}, _}}} =
        erllama_test_env:start(#{node => Nobody, required => true}),
    ?assert(is_binary(Why)),
    ?assertEqual(undefined, erllama_link:target()).

connects() ->
    {ok, _} = erllama_test_env:start(#{required => true}),
    Node = erllama_test_env:node_name(),
    ?assertEqual({up, Node}, erllama_link:status()),
    ?assert(lists:member(Node, nodes(hidden))),
    ?assertNot(lists:member(Node, nodes())),
    {ok, _} = erllama_test_env:start(#{node => atom_to_binary(Node), cookie => "wrong"}),
    %% The connection stands; cookies are asked for when one is made.
    ?assert(is_list(erllama:models())).

wrong_cookie() ->
    Node = erllama_test_env:node_name(),
    erllama_test_env:stop(ok),
    _ = erlang:disconnect_node(Node),
    {error, {erllama, {{node_unreachable, Node, Why}, _}}} =
        erllama_test_env:start(#{cookie => wrong, required => true}),
    ?assertNotEqual(nomatch, string:find(Why, "cookie")),
    %% It runs; to start it is no advice.
    ?assertEqual(nomatch, string:find(Why, "start it")),
    {ok, _} = erllama_test_env:start(),
    ?assert(is_list(erllama:models())).
