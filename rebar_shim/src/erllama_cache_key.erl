%% The functions of erllama_cache_key, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_cache_key).

-export([
    decode_tokens/1,
    effective_fingerprint/2,
    encode_tokens/1,
    make/1,
    make/4,
    quant_atom/1,
    quant_byte/1,
    quant_tag/2
]).

-spec decode_tokens(term()) -> term().
decode_tokens(A1) ->
    erllama_call:call(?MODULE, decode_tokens, [A1]).

-spec effective_fingerprint(term(), term()) -> term().
effective_fingerprint(A1, A2) ->
    erllama_call:call(?MODULE, effective_fingerprint, [A1, A2]).

-spec encode_tokens(term()) -> term().
encode_tokens(A1) ->
    erllama_call:call(?MODULE, encode_tokens, [A1]).

-spec make(term()) -> term().
make(A1) ->
    erllama_call:call(?MODULE, make, [A1]).

-spec make(term(), term(), term(), term()) -> term().
make(A1, A2, A3, A4) ->
    erllama_call:call(?MODULE, make, [A1, A2, A3, A4]).

-spec quant_atom(term()) -> term().
quant_atom(A1) ->
    erllama_call:call(?MODULE, quant_atom, [A1]).

-spec quant_byte(term()) -> term().
quant_byte(A1) ->
    erllama_call:call(?MODULE, quant_byte, [A1]).

-spec quant_tag(term(), term()) -> term().
quant_tag(A1, A2) ->
    erllama_call:call(?MODULE, quant_tag, [A1, A2]).
