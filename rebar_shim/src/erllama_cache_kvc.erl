%% The functions of erllama_cache_kvc, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_cache_kvc).

-export([
    build/2,
    parse/2,
    parse_meta/1
]).

-spec build(term(), term()) -> term().
build(A1, A2) ->
    erllama_call:call(?MODULE, build, [A1, A2]).

-spec parse(term(), term()) -> term().
parse(A1, A2) ->
    erllama_call:call(?MODULE, parse, [A1, A2]).

-spec parse_meta(term()) -> term().
parse_meta(A1) ->
    erllama_call:call(?MODULE, parse_meta, [A1]).
