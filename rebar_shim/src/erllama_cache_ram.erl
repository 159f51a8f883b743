%% The functions of erllama_cache_ram, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_cache_ram).

-export([
    delete/1,
    load/1,
    put/3,
    size_bytes/0
]).

-spec delete(term()) -> term().
delete(A1) ->
    erllama_call:call(?MODULE, delete, [A1]).

-spec load(term()) -> term().
load(A1) ->
    erllama_call:call(?MODULE, load, [A1]).

-spec put(term(), term(), term()) -> term().
put(A1, A2, A3) ->
    erllama_call:call(?MODULE, put, [A1, A2, A3]).

-spec size_bytes() -> term().
size_bytes() ->
    erllama_call:call(?MODULE, size_bytes, []).
