%% The functions of erllama_inflight, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_inflight).

-export([
    all/0,
    lookup/1,
    obs_delete/1,
    obs_get/1,
    obs_put/2,
    queue_depth/0,
    queue_depth/1,
    register/2,
    unregister/1
]).

-spec all() -> term().
all() ->
    erllama_call:call(?MODULE, all, []).

-spec lookup(term()) -> term().
lookup(A1) ->
    erllama_call:call(?MODULE, lookup, [A1]).

-spec obs_delete(term()) -> term().
obs_delete(A1) ->
    erllama_call:call(?MODULE, obs_delete, [A1]).

-spec obs_get(term()) -> term().
obs_get(A1) ->
    erllama_call:call(?MODULE, obs_get, [A1]).

-spec obs_put(term(), term()) -> term().
obs_put(A1, A2) ->
    erllama_call:call(?MODULE, obs_put, [A1, A2]).

-spec queue_depth() -> term().
queue_depth() ->
    erllama_call:call(?MODULE, queue_depth, []).

-spec queue_depth(term()) -> term().
queue_depth(A1) ->
    erllama_call:call(?MODULE, queue_depth, [A1]).

-spec register(term(), term()) -> term().
register(A1, A2) ->
    erllama_call:call(?MODULE, register, [A1, A2]).

-spec unregister(term()) -> term().
unregister(A1) ->
    erllama_call:call(?MODULE, unregister, [A1]).
