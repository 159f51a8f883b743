%% The functions of erllama_scheduler, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_scheduler).

-export([
    enable/1,
    force_check/0,
    sample/0,
    set_pressure_source/1,
    set_thresholds/2,
    status/0,
    validate_config/1
]).

-spec enable(term()) -> term().
enable(A1) ->
    erllama_call:call(?MODULE, enable, [A1]).

-spec force_check() -> term().
force_check() ->
    erllama_call:call(?MODULE, force_check, []).

-spec sample() -> term().
sample() ->
    erllama_call:call(?MODULE, sample, []).

-spec set_pressure_source(term()) -> term().
set_pressure_source(A1) ->
    erllama_call:call(?MODULE, set_pressure_source, [A1]).

-spec set_thresholds(term(), term()) -> term().
set_thresholds(A1, A2) ->
    erllama_call:call(?MODULE, set_thresholds, [A1, A2]).

-spec status() -> term().
status() ->
    erllama_call:call(?MODULE, status, []).

-spec validate_config(term()) -> term().
validate_config(A1) ->
    erllama_call:call(?MODULE, validate_config, [A1]).
