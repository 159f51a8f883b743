%% The functions of erllama_pressure, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_pressure).

-export([
    available_sources/0,
    sample/1
]).

-spec available_sources() -> term().
available_sources() ->
    erllama_call:call(?MODULE, available_sources, []).

-spec sample(term()) -> term().
sample(A1) ->
    erllama_call:call(?MODULE, sample, [A1]).
