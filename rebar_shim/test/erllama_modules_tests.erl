%% erllama's other modules against a live node: code that calls them runs unchanged.
-module(erllama_modules_tests).

-include_lib("eunit/include/eunit.hrl").

live_test_() ->
    {setup, fun erllama_test_env:start/0, fun erllama_test_env:stop/1, [
        {Name, {timeout, 60, Test}}
     || {Name, Test} <- [
            {"names", fun names/0},
            {"via names", fun via/0},
            {"streams", fun streams/0},
            {"models", fun models/0},
            {"supervised models", fun supervised/0},
            {"rows", fun rows/0},
            {"pins end with their process", fun pins/0},
            {"tier servers", fun tier_servers/0},
            {"pure functions", fun pure/0},
            {"the scheduler", fun scheduler/0},
            {"failures", fun failures/0}
        ]
    ]}.

not_started_test() ->
    ok = erllama_test_env:stop(ok),
    ?assertExit({noproc, {erllama_registry, all, []}}, erllama_registry:all()).

names() ->
    erllama_test_env:stub(#{}, fun(Model) ->
        Pid = erllama_registry:whereis_name(Model),
        ?assertEqual(maps:get(pid, erllama:model_info(Model)), Pid),
        ?assert(lists:member({Model, Pid}, erllama_registry:all())),
        ?assertEqual(undefined, erllama_registry:whereis_name(<<"nobody">>)),
        ?assertEqual(no, erllama_registry:register_name(<<"mine">>, self())),
        ?assertError({badarg, {<<"nobody">>, hello}}, erllama_registry:send(<<"nobody">>, hello))
    end).

via() ->
    erllama_test_env:stub(#{}, fun(Model) ->
        ?assertEqual(idle, gen_server:call({via, erllama_registry, Model}, status)),
        Pid = erllama_registry:whereis_name(Model),
        Watch = monitor(process, Pid),
        exit(Pid, normal),
        ?assertEqual(idle, erllama:status(Pid)),
        exit(Pid, shutdown),
        receive
            {'DOWN', Watch, process, Pid, Reason} -> ?assertEqual(shutdown, Reason)
        end
    end).

streams() ->
    erllama_test_env:stub(#{stub_opts => #{step_delay_ms => 5}}, fun(Model) ->
        Pid = erllama_registry:whereis_name(Model),
        {ok, Ref} = erllama_model:infer(Pid, [1, 2], #{response_tokens => 2000}, self()),
        ?assertEqual({ok, Pid}, erllama_inflight:lookup(Ref)),
        ?assert(lists:member({Ref, Pid}, erllama_inflight:all())),
        %% The second: the phase is told behind the first.
        [receive {erllama_token, Ref, _} -> ok end || _ <- [1, 2]],
        ?assertEqual(1, erllama_inflight:queue_depth(Pid)),
        ?assert(erllama_inflight:queue_depth() >= 1),
        ?assertMatch({Model, generating, 0, cold, 0}, erllama_inflight:obs_get(Model)),
        ok = erllama:cancel(Ref),
        {erllama_done, Ref, #{finish_reason := cancelled}} =
            lists:last(erllama_test_env:collect(Ref)),
        ?assertEqual({error, not_found}, erllama_inflight:lookup(Ref)),
        ?assertEqual(undefined, erllama_inflight:obs_get(<<"nobody">>))
    end).

models() ->
    Id = <<"of the supervisor">>,
    Config = #{backend => erllama_model_stub},
    {ok, Pid} = erllama_model_sup:start_model(Id, Config),
    ?assertEqual({error, {already_started, Pid}}, erllama_model_sup:start_model(Id, Config)),
    ?assert(lists:member({undefined, Pid, worker, [erllama_model]}, erllama_model_sup:models())),
    ?assertMatch(
        {ok, #{generated := [_]}}, erllama_model:complete(Pid, <<"a">>, #{response_tokens => 1})
    ),
    ?assertMatch(#{fingerprint := <<_:256>>}, erllama_model:cache_key_meta(Id)),
    ?assertEqual(ok, erllama_model_sup:stop_model(Pid)),
    ?assertEqual(undefined, erllama_registry:whereis_name(Id)).

supervised() ->
    %% A supervisor of the caller's: what it starts is linked to it, and ends when it says so.
    Id = <<"supervised">>,
    Child = #{
        id => model,
        start => {erllama_model, start_link, [Id, #{backend => erllama_model_stub}]}
    },
    {ok, Supervisor} = supervisor:start_link(erllama_test_env, [Child]),
    true = unlink(Supervisor),
    [{model, Pid, worker, [erllama_model]}] = supervisor:which_children(Supervisor),
    ?assertEqual(Pid, erllama_registry:whereis_name(Id)),
    ok = erllama:unload(Id),
    New = erllama_test_env:until(fun() ->
        case erllama_registry:whereis_name(Id) of
            undefined -> false;
            Found -> Found
        end
    end),
    ?assertNotEqual(Pid, New),
    Watch = monitor(process, Supervisor),
    exit(Supervisor, shutdown),
    receive
        {'DOWN', Watch, process, Supervisor, shutdown} -> ok
    end,
    ?assertEqual(undefined, erllama_registry:whereis_name(Id)).

rows() ->
    Policy = #{min_tokens => 4, cold_min_tokens => 4},
    Config = #{policy => Policy, fingerprint => crypto:strong_rand_bytes(32)},
    erllama_test_env:stub(Config, fun(Model) ->
        Tokens = lists:seq(1, 80),
        {ok, #{finish_key := Key}} = erllama:prefill_only(Model, Tokens),
        Meta = erllama_model:cache_key_meta(Model),
        ?assertEqual(Key, erllama_cache_key:make(Meta#{tokens => Tokens})),
        {ok, Row} = erllama_cache_meta_srv:lookup_exact_or_wait(Key, 10000),
        ?assertEqual(Key, element(1, Row)),
        ?assertMatch({ok, 80, _}, erllama_cache:lookup_longest_prefix(Meta, Tokens, 16, 16)),
        ?assert(lists:keymember(Key, 1, erllama_cache_meta_srv:dump())),
        ?assertEqual(20, map_size(erllama_cache:get_counters())),
        ?assertEqual(erllama:counters(), erllama_cache_counters:snapshot()),
        {evicted, Rows} = erllama_cache:gc(),
        ?assert(Rows >= 1),
        ?assertEqual(miss, erllama_cache_meta_srv:lookup_exact(Key))
    end).

pins() ->
    Key = crypto:strong_rand_bytes(32),
    Self = self(),
    {Holder, Watch} = spawn_monitor(fun() ->
        {ok, Token} = erllama_cache_meta_srv:reserve_save(Key, disk, self()),
        ok = erllama_cache_writer:acquire(0),
        Self ! {token, Token, erllama_cache_writer:current()},
        receive
            stop -> ok
        end
    end),
    {Token, Current} =
        receive
            {token, Reserved, Places} -> {Reserved, Places}
        end,
    ?assert(Current >= 1),
    ?assertEqual(ok, erllama_cache_meta_srv:check_reservation(Key, Token)),
    Holder ! stop,
    receive
        {'DOWN', Watch, process, Holder, normal} -> ok
    end,
    true = erllama_test_env:until(fun() ->
        erllama_cache_meta_srv:check_reservation(Key, Token) =:= {error, expired} andalso
            erllama_cache_writer:current() =:= Current - 1
    end).

tier_servers() ->
    Dir = filename:join(filename:dirname(erllama_test_env:model()), "rows"),
    {ok, Pid} = erllama_cache_disk_srv:start_link(shim_disk, Dir),
    ?assert(lists:member(Pid, element(2, process_info(self(), links)))),
    ?assertEqual(
        {error, {already_started, Pid}}, erllama_cache_disk_srv:start_link(shim_disk, Dir)
    ),
    Meta = #{
        save_reason => finish,
        quant_bits => 16,
        fingerprint => <<7:256>>,
        fingerprint_mode => safe,
        quant_type => f16,
        ctx_params_hash => <<8:256>>,
        tokens => [1, 2, 3],
        context_size => 4096
    },
    {ok, Key, _Header, _Size} = erllama_cache_disk_srv:save(shim_disk, Meta, <<"payload">>),
    ?assertMatch({ok, #{tokens := [1, 2, 3]}, <<"payload">>}, erllama_cache_disk_srv:load(Pid, Key)),
    ?assertEqual(Dir, erllama_cache_disk_srv:dir(shim_disk)),
    ?assertEqual(ok, erllama_cache_disk_srv:delete(Pid, Key)),
    process_flag(trap_exit, true),
    exit(Pid, shutdown),
    receive
        {'EXIT', Pid, shutdown} -> ok
    end,
    process_flag(trap_exit, false).

pure() ->
    ?assertEqual({ok, q4_k_m}, erllama_cache_key:quant_atom(7)),
    ?assertEqual([1, 2], erllama_cache_key:decode_tokens(erllama_cache_key:encode_tokens([1, 2]))),
    ?assertEqual({error, bad_header}, erllama_cache_kvc:parse_meta(<<>>)),
    ?assertEqual({ok, [1, 2]}, erllama_cache_policy:trim_boundary([1, 2, 3], 1, 2)).

scheduler() ->
    #{enabled := false} = erllama_scheduler:status(),
    ?assertEqual({skipped, disabled}, erllama_scheduler:force_check()),
    ?assertEqual(ok, erllama_scheduler:set_pressure_source(noop)),
    ?assertEqual({0, 1}, erllama_scheduler:sample()),
    ?assertEqual({error, bad_thresholds}, erllama_scheduler:set_thresholds(0.5, 0.6)),
    ?assertEqual({0, 1}, erllama_pressure:sample(noop)),
    ?assert(lists:member(system, erllama_pressure:available_sources())).

failures() ->
    ?assertError(function_clause, erllama_cache_ram:load(not_a_key)),
    ?assertError(badarg, erllama_cache_counters:get(21)),
    ?assertExit(
        {noproc, {gen_server, call, [nobody, dir, infinity]}}, erllama_cache_disk_srv:dir(nobody)
    ),
    ?assertExit(
        {noproc, {erllama_model, not_found, <<"nobody">>}}, erllama_model:status(<<"nobody">>)
    ),
    ?assertError(undef, erllama_cache:no_such_function()).
