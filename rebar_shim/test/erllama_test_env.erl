%% Where the live node for the tests is: named by environment variables.
-module(erllama_test_env).
-behaviour(supervisor).

-export([cookie/0, drain/0, host/0, model/0, node_name/0, start/0, start/1, stop/1, stub/2]).
-export([collect/1, init/1, until/1]).

%% Start the application as a release would, from its environment.
start() ->
    start(#{}).

start(Settings) ->
    %% Some tests are about starts that fail, which is reported at length.
    ok = logger:set_primary_config(level, none),
    stop(ok),
    _ = application:load(erllama),
    Defaults = #{
        node => node_name(), cookie => cookie(), required => false, connect_timeout => 5000
    },
    maps:foreach(
        fun(Key, Value) -> ok = application:set_env(erllama, Key, Value) end,
        maps:merge(Defaults, Settings)
    ),
    application:ensure_all_started(erllama).

stop(_) ->
    _ = application:stop(erllama),
    ok.

node_name() ->
    list_to_atom(variable("ERLLAMA_TEST_NODE")).

cookie() ->
    list_to_atom(variable("ERLLAMA_TEST_COOKIE")).

%% A GGUF file that the node may open.
model() ->
    variable("ERLLAMA_TEST_MODEL").

host() ->
    [_, Host] = string:split(atom_to_list(node_name()), "@"),
    Host.

%% Run a test with a stub model of its own.
stub(Options, Test) ->
    {ok, Model} = erllama:load_model(Options#{backend => erllama_model_stub}),
    try
        Test(Model)
    after
        _ = erllama:unload(Model),
        drain()
    end.

%% All messages of a stream, the last one included.
collect(Ref) ->
    receive
        {Kind, Ref, _} = Message when Kind =:= erllama_done; Kind =:= erllama_error -> [Message];
        Message when element(2, Message) =:= Ref -> [Message | collect(Ref)]
    after 20000 -> [timeout]
    end.

%% The supervisor of some tests: it has the children it is given.
init(Children) ->
    {ok, {#{intensity => 3, period => 5}, Children}}.

%% Ask until the answer is not false, and return it.
until(Ask) ->
    until(Ask, erlang:monotonic_time(millisecond) + 10000).

until(Ask, Deadline) ->
    case Ask() of
        false ->
            true = erlang:monotonic_time(millisecond) < Deadline,
            timer:sleep(5),
            until(Ask, Deadline);
        Answer ->
            Answer
    end.

drain() ->
    receive
        _ -> drain()
    after 0 -> ok
    end.

variable(Name) ->
    case os:getenv(Name) of
        false -> error({set_this_variable, Name, "README.md says how to run the tests"});
        Value -> Value
    end.
