%% The usage example of erllama's own documentation, with a real model.
-module(erllama_example_tests).

-include_lib("eunit/include/eunit.hrl").

example_test_() ->
    {setup, fun erllama_test_env:start/0, fun erllama_test_env:stop/1, [
        {timeout, 120, {"as documented", fun as_documented/0}},
        {timeout, 120, {"the next turn is warm", fun next_turn/0}}
    ]}.

%% Unchanged but for the model's path, and the first line, which matches ok where
%% ensure_all_started answers {ok, Apps}.
as_documented() ->
  Path = erllama_test_env:model(),
  {ok, _} = application:ensure_all_started(erllama),
  {ok, Bin} = file:read_file(Path),
  {ok, Model} = erllama:load_model(#{
      backend => erllama_model_llama,
      model_path => Path,
      fingerprint => crypto:hash(sha256, Bin)
  }),
  {ok, #{reply := Reply, finish_key := FK}} =
      erllama:complete(Model, <<"hello">>),
  %% On the next turn, pass FK as parent_key for token-exact warm
  %% restore:
  {ok, #{reply := Reply2}} =
      erllama:complete(Model, <<"hello world">>, #{parent_key => FK}),
  ok = erllama:unload(Model),
  ?assert(is_binary(Reply) andalso byte_size(Reply) > 0),
  ?assert(is_binary(Reply2) andalso byte_size(Reply2) > 0),
  %% Below 512 tokens the original's policy saves nothing; then there is no key.
  ?assertEqual(undefined, FK).

%% With a policy that saves short contexts the key is there, and is worth something.
next_turn() ->
    {ok, Model} = erllama:load_model(#{
        backend => erllama_model_llama,
        model_path => erllama_test_env:model(),
        %% Nobody else's cache: the first turn is to be cold.
        fingerprint => crypto:strong_rand_bytes(32),
        policy => #{
            min_tokens => 16,
            cold_min_tokens => 16,
            boundary_trim_tokens => 0,
            boundary_align_tokens => 1
        }
    }),
    Prompt = <<"The cat sat on the mat and looked at the moon, because the night was clear.">>,
    Short = #{response_tokens => 12},
    {ok, #{reply := Reply, finish_key := FK, cache_hit_kind := cold, context_tokens := Context}} =
        erllama:complete(Model, Prompt, Short),
    ?assertEqual(32, byte_size(FK)),
    Next = <<Prompt/binary, Reply/binary, " And then">>,
    {ok, #{cache_hit_kind := Kind, context_tokens := Longer}} =
        erllama:complete(Model, Next, Short#{parent_key => FK}),
    ?assertEqual(partial, Kind),
    ?assertMatch(#{kind := partial, prefix_len := N} when N >= 16, erllama:last_cache_hit(Model)),
    ?assert(lists:prefix(lists:sublist(Context, 16), Longer)),
    {ok, #{cache_hit_kind := exact}} = erllama:complete(Model, Prompt, Short),
    {ok, Cached} = erllama:list_cached_prefixes(Model, Context),
    ?assert(Cached >= 16),
    ok = erllama:unload(Model).
