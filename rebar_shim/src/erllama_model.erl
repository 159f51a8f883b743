%% The functions of erllama_model, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_model).

-export([
    apply_chat_template/2,
    cache_key_meta/1,
    cancel/1,
    complete/2,
    complete/3,
    counters/0,
    detokenize/2,
    draft_tokens/3,
    embed/2,
    end_session/2,
    evict/1,
    infer/4,
    last_cache_hit/1,
    list_adapters/1,
    list_cached_prefixes/2,
    list_models/0,
    load_adapter/2,
    load_model/1,
    load_model/2,
    model_info/1,
    models/0,
    pending_len/1,
    phase/1,
    prefill_only/2,
    prefill_only/3,
    queue_depth/0,
    queue_depth/1,
    set_adapter_scale/3,
    shutdown/1,
    start_link/2,
    status/1,
    stop/1,
    tokenize/2,
    unload/1,
    unload_adapter/2,
    unload_model/1,
    verify/4,
    vram_info/0
]).

-spec apply_chat_template(term(), term()) -> term().
apply_chat_template(A1, A2) ->
    erllama_call:call(?MODULE, apply_chat_template, [A1, A2]).

-spec cache_key_meta(term()) -> term().
cache_key_meta(A1) ->
    erllama_call:call(?MODULE, cache_key_meta, [A1]).

-spec cancel(term()) -> term().
cancel(A1) ->
    erllama_call:call(?MODULE, cancel, [A1]).

-spec complete(term(), term()) -> term().
complete(A1, A2) ->
    erllama_call:call(?MODULE, complete, [A1, A2]).

-spec complete(term(), term(), term()) -> term().
complete(A1, A2, A3) ->
    erllama_call:call(?MODULE, complete, [A1, A2, A3]).

-spec counters() -> term().
counters() ->
    erllama_call:call(?MODULE, counters, []).

-spec detokenize(term(), term()) -> term().
detokenize(A1, A2) ->
    erllama_call:call(?MODULE, detokenize, [A1, A2]).

-spec draft_tokens(term(), term(), term()) -> term().
draft_tokens(A1, A2, A3) ->
    erllama_call:call(?MODULE, draft_tokens, [A1, A2, A3]).

-spec embed(term(), term()) -> term().
embed(A1, A2) ->
    erllama_call:call(?MODULE, embed, [A1, A2]).

-spec end_session(term(), term()) -> term().
end_session(A1, A2) ->
    erllama_call:call(?MODULE, end_session, [A1, A2]).

-spec evict(term()) -> term().
evict(A1) ->
    erllama_call:call(?MODULE, evict, [A1]).

-spec infer(term(), term(), term(), term()) -> term().
infer(A1, A2, A3, A4) ->
    erllama_call:call(?MODULE, infer, [A1, A2, A3, A4]).

-spec last_cache_hit(term()) -> term().
last_cache_hit(A1) ->
    erllama_call:call(?MODULE, last_cache_hit, [A1]).

-spec list_adapters(term()) -> term().
list_adapters(A1) ->
    erllama_call:call(?MODULE, list_adapters, [A1]).

-spec list_cached_prefixes(term(), term()) -> term().
list_cached_prefixes(A1, A2) ->
    erllama_call:call(?MODULE, list_cached_prefixes, [A1, A2]).

-spec list_models() -> term().
list_models() ->
    erllama_call:call(?MODULE, list_models, []).

-spec load_adapter(term(), term()) -> term().
load_adapter(A1, A2) ->
    erllama_call:call(?MODULE, load_adapter, [A1, A2]).

-spec load_model(term()) -> term().
load_model(A1) ->
    erllama_call:call(?MODULE, load_model, [A1]).

-spec load_model(term(), term()) -> term().
load_model(A1, A2) ->
    erllama_call:call(?MODULE, load_model, [A1, A2]).

-spec model_info(term()) -> term().
model_info(A1) ->
    erllama_call:call(?MODULE, model_info, [A1]).

-spec models() -> term().
models() ->
    erllama_call:call(?MODULE, models, []).

-spec pending_len(term()) -> term().
pending_len(A1) ->
    erllama_call:call(?MODULE, pending_len, [A1]).

-spec phase(term()) -> term().
phase(A1) ->
    erllama_call:call(?MODULE, phase, [A1]).

-spec prefill_only(term(), term()) -> term().
prefill_only(A1, A2) ->
    erllama_call:call(?MODULE, prefill_only, [A1, A2]).

-spec prefill_only(term(), term(), term()) -> term().
prefill_only(A1, A2, A3) ->
    erllama_call:call(?MODULE, prefill_only, [A1, A2, A3]).

-spec queue_depth() -> term().
queue_depth() ->
    erllama_call:call(?MODULE, queue_depth, []).

-spec queue_depth(term()) -> term().
queue_depth(A1) ->
    erllama_call:call(?MODULE, queue_depth, [A1]).

-spec set_adapter_scale(term(), term(), term()) -> term().
set_adapter_scale(A1, A2, A3) ->
    erllama_call:call(?MODULE, set_adapter_scale, [A1, A2, A3]).

-spec shutdown(term()) -> term().
shutdown(A1) ->
    erllama_call:call(?MODULE, shutdown, [A1]).

-spec start_link(term(), term()) -> term().
start_link(A1, A2) ->
    erllama_call:linked(?MODULE, start_link, [A1, A2]).

-spec status(term()) -> term().
status(A1) ->
    erllama_call:call(?MODULE, status, [A1]).

-spec stop(term()) -> term().
stop(A1) ->
    erllama_call:call(?MODULE, stop, [A1]).

-spec tokenize(term(), term()) -> term().
tokenize(A1, A2) ->
    erllama_call:call(?MODULE, tokenize, [A1, A2]).

-spec unload(term()) -> term().
unload(A1) ->
    erllama_call:call(?MODULE, unload, [A1]).

-spec unload_adapter(term(), term()) -> term().
unload_adapter(A1, A2) ->
    erllama_call:call(?MODULE, unload_adapter, [A1, A2]).

-spec unload_model(term()) -> term().
unload_model(A1) ->
    erllama_call:call(?MODULE, unload_model, [A1]).

-spec verify(term(), term(), term(), term()) -> term().
verify(A1, A2, A3, A4) ->
    erllama_call:call(?MODULE, verify, [A1, A2, A3, A4]).

-spec vram_info() -> term().
vram_info() ->
    erllama_call:call(?MODULE, vram_info, []).
