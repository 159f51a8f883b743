%% The façade against a live node, for the most part with its stub backend.
-module(erllama_tests).

-include_lib("eunit/include/eunit.hrl").

-define(UNKNOWN, <<"no such model">>).

live_test_() ->
    {setup, fun erllama_test_env:start/0, fun erllama_test_env:stop/1, [
        {Name, {timeout, 60, Test}}
     || {Name, Test} <- [
            {"completion", fun completion/0},
            {"prefill", fun prefill/0},
            {"stream order", fun stream_order/0},
            {"stop sequence", fun stop_sequence/0},
            {"held-back text", fun held_back/0},
            {"cancel", fun cancel/0},
            {"a dead caller", fun dead_caller/0},
            {"unload", fun unload/0},
            {"pids", fun pids/0},
            {"text and tokens", fun text_and_tokens/0},
            {"maps", fun maps/0},
            {"neutral values", fun neutral_values/0},
            {"unknown models", fun unknown_models/0},
            {"dead pids", fun dead_pids/0},
            {"refusals", fun refusals/0},
            {"evict and shutdown", fun evict_and_shutdown/0},
            {"embeddings and drafts", fun embeddings_and_drafts/0},
            {"adapters", fun adapters/0},
            {"a real model's refusals", fun real_refusals/0}
        ]
    ]}.

completion() ->
    erllama_test_env:stub(#{}, fun(Model) ->
        {ok, Result} = erllama:complete(Model, <<"one two">>, #{response_tokens => 3}),
        ?assertEqual(
            lists:sort([
                reply,
                generated,
                context_tokens,
                committed_tokens,
                finish_key,
                cache_hit_kind,
                cache_delta,
                finish_reason,
                stats
            ]),
            lists:sort(maps:keys(Result))
        ),
        #{generated := [T, T, T], context_tokens := [_, _, T, T, T], stats := Stats} = Result,
        ?assertMatch(
            #{
                committed_tokens := 5,
                finish_key := undefined,
                cache_hit_kind := cold,
                finish_reason := length
            },
            Result
        ),
        ?assertMatch(#{prompt_tokens := 2, completion_tokens := 3, cancelled := false}, Stats),
        {ok, #{generated := []}} = erllama:complete(Model, <<"a">>, #{response_tokens => 0})
    end).

prefill() ->
    Policy = #{min_tokens => 4, cold_min_tokens => 4},
    erllama_test_env:stub(#{policy => Policy, fingerprint => crypto:strong_rand_bytes(32)}, fun(Model) ->
        Tokens = lists:seq(1, 100),
        {ok, #{finish_key := Key} = Result} = erllama:prefill_only(Model, Tokens),
        ?assertEqual(5, maps:size(Result)),
        ?assertMatch(#{cache_delta := #{read := 0, created := 100}}, Result),
        ?assertEqual(32, byte_size(Key)),
        ?assertMatch(#{context_tokens := Tokens, committed_tokens := 100}, Result),
        {ok, Ref} = erllama:infer(
            Model, Tokens ++ [7, 8], #{parent_key => Key, response_tokens => 1}, self()
        ),
        {erllama_done, Ref, Stats} = lists:last(erllama_test_env:collect(Ref)),
        ?assertMatch(#{cache_hit_kind := partial, prompt_tokens := 102}, Stats),
        ?assertMatch(#{kind := partial, prefix_len := 100}, erllama:last_cache_hit(Model)),
        Session = {chat, [1.0]},
        Sticky = #{session_id => Session},
        {ok, _} = erllama:prefill_only(Model, Tokens, Sticky),
        ?assertMatch(
            {ok, #{cache_hit_kind := sticky, cache_delta := #{read := 100, created := 1}}},
            erllama:prefill_only(Model, Tokens ++ [3], Sticky)
        ),
        ?assertEqual(ok, erllama:end_session(Model, Session)),
        ?assertEqual(ok, erllama:end_session(Model, unknown))
    end).

stream_order() ->
    erllama_test_env:stub(#{}, fun(Model) ->
        {ok, Ref} = erllama:infer(Model, [1, 2, 3], #{response_tokens => 3}, self()),
        ?assert(is_reference(Ref)),
        [
            {erllama_token, Ref, Text},
            {erllama_token_id, Ref, Id},
            {erllama_token, Ref, Text},
            {erllama_token_id, Ref, Id},
            {erllama_token, Ref, Text},
            {erllama_token_id, Ref, Id},
            {erllama_done, Ref, Stats}
        ] = erllama_test_env:collect(Ref),
        ?assertEqual(integer_to_binary(Id), Text),
        ?assertEqual(
            lists:sort([
                prompt_tokens,
                completion_tokens,
                prefill_ms,
                generation_ms,
                cache_hit_kind,
                finish_reason,
                cancelled,
                finish_key,
                committed_tokens,
                cache_delta
            ]),
            lists:sort(maps:keys(Stats))
        ),
        ?assertEqual(0, erllama:queue_depth(Model))
    end).

stop_sequence() ->
    erllama_test_env:stub(#{}, fun(Model) ->
        %% Every token of a request has the same digits, so all ten of them together
        %% match within the first.
        Stops = [integer_to_binary(Digit) || Digit <- lists:seq(0, 9)],
        Params = #{stop_sequences => Stops, response_tokens => 9},
        {ok, Ref} = erllama:infer(Model, [1], Params, self()),
        [{erllama_token_id, Ref, Id}, {erllama_done, Ref, Stats}] = erllama_test_env:collect(Ref),
        <<First:1/binary, _/binary>> = integer_to_binary(Id),
        ?assertMatch(#{finish_reason := stop, stop_sequence := First}, Stats)
    end).

held_back() ->
    erllama_test_env:stub(#{}, fun(Model) ->
        Params = #{stop_sequences => [<<"never said">>], response_tokens => 4},
        {ok, Ref} = erllama:infer(Model, [1], Params, self()),
        Messages = erllama_test_env:collect(Ref),
        {erllama_done, Ref, _} = lists:last(Messages),
        %% The last bytes come without an id of their own, right before the end.
        {erllama_token, Ref, Held} = lists:nth(length(Messages) - 1, Messages),
        ?assertEqual(byte_size(<<"never said">>) - 1, byte_size(Held)),
        Ids = [Id || {erllama_token_id, _, Id} <- Messages],
        Text = iolist_to_binary([Part || {erllama_token, _, Part} <- Messages]),
        ?assertEqual(4, length(Ids)),
        ?assertEqual(iolist_to_binary([integer_to_binary(Id) || Id <- Ids]), Text)
    end).

cancel() ->
    erllama_test_env:stub(#{stub_opts => #{step_delay_ms => 5}}, fun(Model) ->
        {ok, Ref} = erllama:infer(Model, [1], #{response_tokens => 4000}, self()),
        receive
            {erllama_token_id, Ref, _} -> ok
        end,
        ?assertEqual(ok, erllama:cancel(Ref)),
        ?assertEqual(ok, erllama:cancel(Ref)),
        {erllama_done, Ref, Stats} = lists:last(erllama_test_env:collect(Ref)),
        ?assertMatch(#{cancelled := true, finish_reason := cancelled}, Stats),
        ?assertEqual(ok, erllama:cancel(make_ref()))
    end).

dead_caller() ->
    erllama_test_env:stub(#{stub_opts => #{step_delay_ms => 5}}, fun(Model) ->
        {Caller, Monitor} = spawn_monitor(fun() ->
            {ok, Ref} = erllama:infer(Model, [1], #{response_tokens => 4000}, self()),
            receive
                {erllama_token, Ref, _} -> ok
            end
        end),
        receive
            {'DOWN', Monitor, process, Caller, normal} -> ok
        end,
        %% The model has one slot: this is served only when that stream is over.
        {ok, _} = erllama:complete(Model, <<"next">>, #{response_tokens => 1})
    end).

unload() ->
    {ok, Model} = erllama:load_model(#{stub_opts => #{step_delay_ms => 5}}),
    #{pid := Pid} = erllama:model_info(Model),
    Monitor = erlang:monitor(process, Pid),
    {ok, Ref} = erllama:infer(Model, [1], #{response_tokens => 4000}, self()),
    {_, Waiting} = spawn_monitor(fun() -> erllama:complete(Model, <<"queued">>) end),
    timer:sleep(50),
    ?assertEqual(1, erllama:queue_depth(Model)),
    ?assertEqual(1, erllama:pending_len(Model)),
    ?assertEqual(generating, erllama:phase(Model)),
    ?assertEqual(ok, erllama:unload(Model)),
    ?assertEqual({error, not_found}, erllama:unload(Model)),
    {erllama_error, Ref, {unloaded, shutdown}} = lists:last(erllama_test_env:collect(Ref)),
    receive
        {'DOWN', Monitor, process, Pid, Reason} -> ?assertEqual(shutdown, Reason)
    after 5000 -> error(no_down)
    end,
    receive
        {'DOWN', Waiting, process, _, Exit} ->
            ?assertMatch(
                {shutdown, {gen_statem, call, [Pid, {complete, <<"queued">>}, infinity]}}, Exit
            )
    after 5000 -> error(no_exit)
    end.

pids() ->
    erllama_test_env:stub(#{}, fun(Model) ->
        #{pid := Pid} = erllama:model_info(Model),
        ?assert(lists:member(Pid, erllama:models())),
        ?assertMatch(#{id := Model}, erllama:model_info(Pid)),
        {ok, _} = erllama:complete(Pid, <<"a">>, #{response_tokens => 1}),
        ?assertEqual(idle, erllama:status(Pid)),
        ?assertError(function_clause, erllama:phase(Pid))
    end).

text_and_tokens() ->
    erllama_test_env:stub(#{}, fun(Model) ->
        {ok, [_, _] = Tokens} = erllama:tokenize(Model, <<"hello world">>),
        {ok, Text} = erllama:detokenize(Model, Tokens),
        ?assertEqual(lists:join(" ", [integer_to_list(T) || T <- Tokens]), split(Text)),
        {ok, <<>>} = erllama:detokenize(Model, []),
        Request = #{messages => [#{role => <<"user">>, content => "a charlist"}]},
        {ok, [_, _, _]} = erllama:apply_chat_template(Model, Request)
    end).

split(Text) ->
    lists:join(" ", string:split(binary_to_list(Text), " ", all)).

maps() ->
    erllama_test_env:stub(#{fingerprint => binary:copy(<<7>>, 32)}, fun(Model) ->
        Info = erllama:model_info(Model),
        ?assertEqual(16, maps:size(Info)),
        ?assertMatch(
            #{
                id := Model,
                model_id := Model,
                status := idle,
                phase := idle,
                pending_len := 0,
                last_cache_hit := undefined,
                backend := erllama_model_stub,
                context_size := 4096,
                quant_type := f16,
                quant_bits := 16,
                quant_tag := <<"f16">>,
                tier := ram,
                fingerprint := <<7, _:31/binary>>,
                vram_estimate_b := 0
            },
            Info
        ),
        ?assert(is_integer(maps:get(loaded_at_monotonic, Info))),
        ?assertEqual([Info], [I || #{id := Id} = I <- erllama:list_models(), Id =:= Model]),
        Counters = erllama:counters(),
        ?assertEqual(20, maps:size(Counters)),
        ?assert(lists:all(fun is_atom/1, maps:keys(Counters))),
        ?assert(lists:all(fun is_integer/1, maps:values(Counters))),
        case erllama:vram_info() of
            {error, Reason} -> ?assertEqual(no_gpu, Reason);
            {ok, Sizes} -> ?assertMatch(#{total_b := _, free_b := _, used_b := _}, Sizes)
        end
    end).

neutral_values() ->
    ?assertEqual(idle, erllama:phase(?UNKNOWN)),
    ?assertEqual(0, erllama:pending_len(?UNKNOWN)),
    ?assertEqual(0, erllama:queue_depth(?UNKNOWN)),
    ?assertEqual(undefined, erllama:last_cache_hit(?UNKNOWN)),
    ?assertEqual({ok, 0}, erllama:list_cached_prefixes(?UNKNOWN, [])),
    ?assertEqual({error, model_not_loaded}, erllama:list_cached_prefixes(?UNKNOWN, [1])),
    ?assertEqual({error, not_found}, erllama:unload_model(?UNKNOWN)),
    ?assert(is_integer(erllama:queue_depth())).

unknown_models() ->
    NotFound = {noproc, {erllama_model, not_found, ?UNKNOWN}},
    ?assertExit(NotFound, erllama:complete(?UNKNOWN, <<"a">>)),
    ?assertExit(NotFound, erllama:complete(?UNKNOWN, <<"a">>, #{})),
    ?assertExit(NotFound, erllama:prefill_only(?UNKNOWN, [1])),
    ?assertExit(NotFound, erllama:infer(?UNKNOWN, [1], #{}, self())),
    ?assertExit(NotFound, erllama:status(?UNKNOWN)),
    ?assertExit(NotFound, erllama:model_info(?UNKNOWN)),
    ?assertExit(NotFound, erllama:tokenize(?UNKNOWN, <<"a">>)),
    ?assertExit(NotFound, erllama:detokenize(?UNKNOWN, [1])),
    ?assertExit(NotFound, erllama:apply_chat_template(?UNKNOWN, #{messages => []})).

dead_pids() ->
    {ok, Model} = erllama:load_model(#{backend => erllama_model_stub}),
    #{pid := Pid} = erllama:model_info(Model),
    ok = erllama:unload(Pid),
    ?assertExit({noproc, {gen_statem, call, [Pid, status, infinity]}}, erllama:status(Pid)),
    ?assertExit(
        {noproc, {gen_statem, call, [Pid, {complete, <<"a">>, #{}}, infinity]}},
        erllama:complete(Pid, <<"a">>, #{})
    ),
    ?assertEqual(ok, erllama:unload(Pid)).

refusals() ->
    erllama_test_env:stub(#{context_opts => #{n_ctx => 256}}, fun(Model) ->
        Id = Model,
        ?assertEqual({error, already_loaded}, erllama:load_model(Id, #{})),
        ?assertEqual({error, undef}, erllama:load_model(#{backend => nobody})),
        ?assertEqual(
            {error, {badkey, model_path}}, erllama:load_model(#{backend => erllama_model_llama})
        ),
        ?assertEqual({error, eacces}, erllama:load_model(#{model_path => "/etc/passwd"})),
        ?assertEqual({error, empty_prompt}, erllama:complete(Model, <<>>)),
        ?assertEqual({error, empty_prompt}, erllama:infer(Model, [], #{}, self())),
        ?assertEqual({error, invalid_token}, erllama:prefill_only(Model, [1, -1])),
        ?assertEqual({error, invalid_token}, erllama:infer(Model, [1 bsl 40], #{}, self())),
        ?assertEqual({error, invalid_token}, erllama:prefill_only(Model, [1, nan])),
        ?assertEqual(
            {error, context_overflow}, erllama:infer(Model, lists:seq(1, 256), #{}, self())
        ),
        ?assertEqual(
            {error, {invalid, stop_sequences, 5}},
            erllama:complete(Model, <<"a">>, #{stop_sequences => 5})
        ),
        ?assertEqual(
            {error, {invalid, parent_key, <<"short">>}},
            erllama:complete(Model, <<"a">>, #{parent_key => <<"short">>})
        ),
        {ok, _} = erllama:complete(Model, <<"a">>, #{parent_key => undefined, response_tokens => 1})
    end).

evict_and_shutdown() ->
    erllama_test_env:stub(#{}, fun(Model) ->
        ?assertEqual(ok, erllama:evict(Model)),
        ?assertEqual(ok, erllama:shutdown(Model)),
        ?assertExit({noproc, _}, erllama:evict(<<"nobody">>)),
        ?assertExit({noproc, _}, erllama:shutdown(<<"nobody">>))
    end).

embeddings_and_drafts() ->
    erllama_test_env:stub(#{}, fun(Model) ->
        {ok, Vector} = erllama:embed(Model, [1]),
        ?assert(length(Vector) =:= 16 andalso lists:all(fun is_float/1, Vector)),
        {ok, Drafted} = erllama:draft_tokens(Model, [1], #{max => 2}),
        ?assertEqual(2, length(Drafted)),
        ?assertEqual({error, empty_prefix}, erllama:draft_tokens(Model, [], #{})),
        ?assertEqual({error, not_supported}, erllama:verify(Model, [1], [2], 1))
    end).

adapters() ->
    erllama_test_env:stub(#{}, fun(Model) ->
        ?assertMatch({error, _}, erllama:load_adapter(Model, "/nowhere/adapter.gguf")),
        ?assertEqual(ok, erllama:unload_adapter(Model, make_ref())),
        ?assertEqual({error, not_found}, erllama:set_adapter_scale(Model, make_ref(), 0.5)),
        ?assertEqual([], erllama:list_adapters(Model))
    end).

real_refusals() ->
    Path = erllama_test_env:model(),
    {ok, Model} = erllama:load_model(<<"real">>, #{model_path => Path}),
    try
        Broken = #{grammar => <<"root ::= (">>},
        ?assertEqual({error, grammar_failed}, erllama:complete(Model, <<"hi">>, Broken)),
        ?assertEqual({error, grammar_failed}, erllama:infer(Model, [1], Broken, self())),
        ?assertEqual({error, invalid_token}, erllama:detokenize(Model, [10000000])),
        ?assertEqual(
            {error, badarg}, erllama:apply_chat_template(Model, #{messages => [#{role => <<"u">>}]})
        ),
        ?assertEqual(
            {error, invalid_content},
            erllama:apply_chat_template(Model, #{messages => [#{role => "user", content => 5}]})
        ),
        {ok, Tokens} = erllama:apply_chat_template(Model, #{
            system => <<"Be brief.">>,
            messages => [#{role => <<"user">>, content => <<"Hi!">>}]
        }),
        {ok, Ref} = erllama:infer(Model, Tokens, #{response_tokens => 4}, self()),
        {erllama_done, Ref, #{completion_tokens := 4}} = lists:last(erllama_test_env:collect(Ref))
    after
        ok = erllama:unload(Model)
    end.
