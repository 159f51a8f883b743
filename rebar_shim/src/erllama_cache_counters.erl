%% The functions of erllama_cache_counters, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_cache_counters).

-export([
    add/2,
    get/1,
    incr/1,
    incr/2,
    init/0,
    reset/0,
    snapshot/0
]).

-spec add(term(), term()) -> term().
add(A1, A2) ->
    erllama_call:call(?MODULE, add, [A1, A2]).

-spec get(term()) -> term().
get(A1) ->
    erllama_call:call(?MODULE, get, [A1]).

-spec incr(term()) -> term().
incr(A1) ->
    erllama_call:call(?MODULE, incr, [A1]).

-spec incr(term(), term()) -> term().
incr(A1, A2) ->
    erllama_call:call(?MODULE, incr, [A1, A2]).

-spec init() -> term().
init() ->
    erllama_call:call(?MODULE, init, []).

-spec reset() -> term().
reset() ->
    erllama_call:call(?MODULE, reset, []).

-spec snapshot() -> term().
snapshot() ->
    erllama_call:call(?MODULE, snapshot, []).
