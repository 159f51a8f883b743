-module(erllama_app).
-behaviour(application).

-export([start/2, stop/1]).

-spec start(application:start_type(), term()) -> {ok, pid()} | {error, term()}.
start(_Type, _Args) ->
    case erllama_sup:start_link() of
        {ok, Pid} -> {ok, Pid};
        {error, {shutdown, {failed_to_start_child, _, Reason}}} -> {error, Reason};
        {error, Reason} -> {error, Reason};
        ignore -> {error, ignore}
    end.

-spec stop(term()) -> ok.
stop(_State) ->
    ok.
