%% The functions of erllama_cache_ramfile_srv, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_cache_ramfile_srv).

-export([
    delete/2,
    dir/1,
    load/2,
    save/3,
    scan/1,
    start_link/2
]).

-spec delete(term(), term()) -> term().
delete(A1, A2) ->
    erllama_call:call(?MODULE, delete, [A1, A2]).

-spec dir(term()) -> term().
dir(A1) ->
    erllama_call:call(?MODULE, dir, [A1]).

-spec load(term(), term()) -> term().
load(A1, A2) ->
    erllama_call:call(?MODULE, load, [A1, A2]).

-spec save(term(), term(), term()) -> term().
save(A1, A2, A3) ->
    erllama_call:call(?MODULE, save, [A1, A2, A3]).

-spec scan(term()) -> term().
scan(A1) ->
    erllama_call:call(?MODULE, scan, [A1]).

-spec start_link(term(), term()) -> term().
start_link(A1, A2) ->
    erllama_call:linked(?MODULE, start_link, [A1, A2]).
