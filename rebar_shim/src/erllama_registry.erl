%% The functions of erllama_registry, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_registry).

-export([
    all/0,
    register_name/2,
    send/2,
    unregister_name/1,
    whereis_name/1
]).

-spec all() -> term().
all() ->
    erllama_call:call(?MODULE, all, []).

-spec register_name(term(), term()) -> term().
register_name(A1, A2) ->
    erllama_call:call(?MODULE, register_name, [A1, A2]).

-spec send(term(), term()) -> term().
send(A1, A2) ->
    erllama_call:call(?MODULE, send, [A1, A2]).

-spec unregister_name(term()) -> term().
unregister_name(A1) ->
    erllama_call:call(?MODULE, unregister_name, [A1]).

-spec whereis_name(term()) -> term().
whereis_name(A1) ->
    erllama_call:call(?MODULE, whereis_name, [A1]).
