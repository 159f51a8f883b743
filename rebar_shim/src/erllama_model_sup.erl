%% The functions of erllama_model_sup, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_model_sup).

-export([
    models/0,
    start_model/2,
    stop_model/1
]).

-spec models() -> term().
models() ->
    erllama_call:call(?MODULE, models, []).

-spec start_model(term(), term()) -> term().
start_model(A1, A2) ->
    erllama_call:call(?MODULE, start_model, [A1, A2]).

-spec stop_model(term()) -> term().
stop_model(A1) ->
    erllama_call:call(?MODULE, stop_model, [A1]).
