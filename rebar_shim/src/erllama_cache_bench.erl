%% The functions of erllama_cache_bench, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_cache_bench).

-export([
    save_load/3
]).

-spec save_load(term(), term(), term()) -> term().
save_load(A1, A2, A3) ->
    erllama_call:call(?MODULE, save_load, [A1, A2, A3]).
