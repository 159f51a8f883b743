%% The functions of erllama_cache_policy, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_cache_policy).

-export([
    cold_save_split/2,
    should_continued_save/3,
    should_finish_save/2,
    trim_boundary/3,
    validate_config/1
]).

-spec cold_save_split(term(), term()) -> term().
cold_save_split(A1, A2) ->
    erllama_call:call(?MODULE, cold_save_split, [A1, A2]).

-spec should_continued_save(term(), term(), term()) -> term().
should_continued_save(A1, A2, A3) ->
    erllama_call:call(?MODULE, should_continued_save, [A1, A2, A3]).

-spec should_finish_save(term(), term()) -> term().
should_finish_save(A1, A2) ->
    erllama_call:call(?MODULE, should_finish_save, [A1, A2]).

-spec trim_boundary(term(), term(), term()) -> term().
trim_boundary(A1, A2, A3) ->
    erllama_call:call(?MODULE, trim_boundary, [A1, A2, A3]).

-spec validate_config(term()) -> term().
validate_config(A1) ->
    erllama_call:call(?MODULE, validate_config, [A1]).
