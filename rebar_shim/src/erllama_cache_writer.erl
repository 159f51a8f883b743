%% The functions of erllama_cache_writer, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_cache_writer).

-export([
    acquire/1,
    current/0,
    max_concurrent/0,
    release/0,
    save/4,
    save/5,
    set_max_concurrent/1
]).

-spec acquire(term()) -> term().
acquire(A1) ->
    erllama_call:call(?MODULE, acquire, [A1]).

-spec current() -> term().
current() ->
    erllama_call:call(?MODULE, current, []).

-spec max_concurrent() -> term().
max_concurrent() ->
    erllama_call:call(?MODULE, max_concurrent, []).

-spec release() -> term().
release() ->
    erllama_call:call(?MODULE, release, []).

-spec save(term(), term(), term(), term()) -> term().
save(A1, A2, A3, A4) ->
    erllama_call:call(?MODULE, save, [A1, A2, A3, A4]).

-spec save(term(), term(), term(), term(), term()) -> term().
save(A1, A2, A3, A4, A5) ->
    erllama_call:call(?MODULE, save, [A1, A2, A3, A4, A5]).

-spec set_max_concurrent(term()) -> term().
set_max_concurrent(A1) ->
    erllama_call:call(?MODULE, set_max_concurrent, [A1]).
