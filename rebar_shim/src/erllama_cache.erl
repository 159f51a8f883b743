%% The functions of erllama_cache, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_cache).

-export([
    evict_bytes/1,
    evict_bytes/2,
    gc/0,
    get_counters/0,
    lookup_longest_prefix/2,
    lookup_longest_prefix/4,
    reset_counters/0
]).

-spec evict_bytes(term()) -> term().
evict_bytes(A1) ->
    erllama_call:call(?MODULE, evict_bytes, [A1]).

-spec evict_bytes(term(), term()) -> term().
evict_bytes(A1, A2) ->
    erllama_call:call(?MODULE, evict_bytes, [A1, A2]).

-spec gc() -> term().
gc() ->
    erllama_call:call(?MODULE, gc, []).

-spec get_counters() -> term().
get_counters() ->
    erllama_call:call(?MODULE, get_counters, []).

-spec lookup_longest_prefix(term(), term()) -> term().
lookup_longest_prefix(A1, A2) ->
    erllama_call:call(?MODULE, lookup_longest_prefix, [A1, A2]).

-spec lookup_longest_prefix(term(), term(), term(), term()) -> term().
lookup_longest_prefix(A1, A2, A3, A4) ->
    erllama_call:call(?MODULE, lookup_longest_prefix, [A1, A2, A3, A4]).

-spec reset_counters() -> term().
reset_counters() ->
    erllama_call:call(?MODULE, reset_counters, []).
