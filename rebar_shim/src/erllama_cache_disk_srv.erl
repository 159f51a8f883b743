%% The functions of erllama_cache_disk_srv, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_cache_disk_srv).

-export([
    abort_tmp/1,
    delete/2,
    dir/1,
    load/2,
    publish/1,
    publish/4,
    save/3,
    scan/1,
    start_link/2,
    start_link/3,
    touch_hits/2,
    write_tmp/3
]).

-spec abort_tmp(term()) -> term().
abort_tmp(A1) ->
    erllama_call:call(?MODULE, abort_tmp, [A1]).

-spec delete(term(), term()) -> term().
delete(A1, A2) ->
    erllama_call:call(?MODULE, delete, [A1, A2]).

-spec dir(term()) -> term().
dir(A1) ->
    erllama_call:call(?MODULE, dir, [A1]).

-spec load(term(), term()) -> term().
load(A1, A2) ->
    erllama_call:call(?MODULE, load, [A1, A2]).

-spec publish(term()) -> term().
publish(A1) ->
    erllama_call:call(?MODULE, publish, [A1]).

-spec publish(term(), term(), term(), term()) -> term().
publish(A1, A2, A3, A4) ->
    erllama_call:call(?MODULE, publish, [A1, A2, A3, A4]).

-spec save(term(), term(), term()) -> term().
save(A1, A2, A3) ->
    erllama_call:call(?MODULE, save, [A1, A2, A3]).

-spec scan(term()) -> term().
scan(A1) ->
    erllama_call:call(?MODULE, scan, [A1]).

-spec start_link(term(), term()) -> term().
start_link(A1, A2) ->
    erllama_call:linked(?MODULE, start_link, [A1, A2]).

-spec start_link(term(), term(), term()) -> term().
start_link(A1, A2, A3) ->
    erllama_call:linked(?MODULE, start_link, [A1, A2, A3]).

-spec touch_hits(term(), term()) -> term().
touch_hits(A1, A2) ->
    erllama_call:call(?MODULE, touch_hits, [A1, A2]).

-spec write_tmp(term(), term(), term()) -> term().
write_tmp(A1, A2, A3) ->
    erllama_call:call(?MODULE, write_tmp, [A1, A2, A3]).
