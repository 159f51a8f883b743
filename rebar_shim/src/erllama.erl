%% The functions of erllama, forwarded to the node that serves the models.
%%
%% Names, arguments and results are erllama 0.3.0's, and a call looks like a local one:
%% see erllama_call for how failures come through.  The guards are the original's, so
%% what it refuses in the caller is refused in the caller here, without asking the node.
-module(erllama).

-if(?OTP_RELEASE >= 27).
-define(MODULEDOC(Text), -moduledoc(Text)).
-define(DOC(Text), -doc(Text)).
-else.
%% An attribute that is allowed anywhere and says nothing.
-define(MODULEDOC(Text), -compile([])).
-define(DOC(Text), -compile([])).
-endif.

?MODULEDOC("llama.cpp models with a token-exact KV cache, served by an erllama node.").

-export([
    apply_chat_template/2,
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
    status/1,
    tokenize/2,
    unload/1,
    unload_adapter/2,
    unload_model/1,
    verify/4,
    vram_info/0
]).

-export_type([
    cache_delta/0,
    cache_hit_kind/0,
    cache_key/0,
    chat_request/0,
    completion_result/0,
    finish_reason/0,
    infer_params/0,
    model/0,
    model_id/0,
    model_info/0,
    phase/0,
    prefill_params/0,
    prefill_result/0,
    stats/0,
    token_id/0
]).

-type model() :: model_id() | pid().
-type model_id() :: binary().
-type token_id() :: non_neg_integer().
-type cache_key() :: <<_:256>>.
-type cache_hit_kind() :: exact | partial | sticky | cold.
-type cache_delta() :: #{read := non_neg_integer(), created := non_neg_integer()}.
-type finish_reason() :: stop | length | cancelled.
-type phase() :: idle | prefilling | generating.

-type stats() :: #{
    prompt_tokens := non_neg_integer(),
    completion_tokens := non_neg_integer(),
    prefill_ms := non_neg_integer(),
    generation_ms := non_neg_integer(),
    cache_hit_kind := cache_hit_kind(),
    finish_reason := finish_reason(),
    cancelled := boolean(),
    finish_key := cache_key() | undefined,
    committed_tokens := non_neg_integer(),
    cache_delta := cache_delta(),
    stop_sequence => binary()
}.

-type completion_result() :: #{
    reply := binary(),
    generated := [token_id()],
    context_tokens := [token_id()],
    committed_tokens := non_neg_integer(),
    finish_key := cache_key() | undefined,
    cache_hit_kind := cache_hit_kind(),
    cache_delta := cache_delta(),
    finish_reason := finish_reason(),
    stats := stats(),
    stop_sequence => binary()
}.

-type prefill_result() :: #{
    context_tokens := [token_id()],
    committed_tokens := non_neg_integer(),
    finish_key := cache_key() | undefined,
    cache_hit_kind := cache_hit_kind(),
    cache_delta := cache_delta()
}.

-type prefill_params() :: #{
    parent_key => cache_key() | undefined,
    session_id => term(),
    atom() => term()
}.

-type model_info() :: #{
    id := model_id(),
    model_id := model_id(),
    pid := pid() | undefined,
    status := phase(),
    phase := phase(),
    pending_len := non_neg_integer(),
    last_cache_hit := cache_hit() | undefined,
    backend := module(),
    context_size := non_neg_integer(),
    quant_type := atom(),
    quant_bits := non_neg_integer(),
    quant_tag := binary(),
    tier := ram | ram_file | disk,
    fingerprint := <<_:256>>,
    loaded_at_monotonic := integer(),
    vram_estimate_b := non_neg_integer()
}.

-type cache_hit() :: #{kind := cache_hit_kind(), prefix_len := non_neg_integer()}.

-type infer_params() :: #{
    response_tokens => non_neg_integer(),
    parent_key => cache_key() | undefined,
    session_id => term(),
    stop_sequences => [binary()],
    thinking => enabled | disabled,
    thinking_budget_tokens => pos_integer(),
    tool_calls => enabled | disabled,
    temperature => number(),
    top_p => number(),
    top_k => pos_integer(),
    min_p => number(),
    repetition_penalty => number(),
    seed => non_neg_integer(),
    grammar => binary(),
    atom() => term()
}.

-type chat_request() :: #{
    messages := [chat_message()],
    system => iodata() | undefined,
    tools => [#{name := iodata(), description => iodata(), schema => map()}] | undefined,
    chat_template => binary() | atom(),
    chat_template_kwargs => map(),
    add_generation_prompt => boolean(),
    parse_special => boolean()
}.

%% Other keys, such as tool_call_id, are the template's.
-type chat_message() :: #{
    role := iodata(),
    content => iodata() | [#{type := text | binary(), text := iodata()}],
    tool_calls => [map()],
    atom() => term()
}.

-define(IS_MODEL(Model), (is_binary(Model) orelse is_pid(Model))).

%% -- models ----------------------------------------------------------------------------

?DOC("Load a model with an auto-generated id. Its file must be readable by the node.").
-spec load_model(map()) -> {ok, model_id()} | {error, term()}.
load_model(Config) when is_map(Config) ->
    erllama_call:call(load_model, [Config]).

?DOC("Load a model with an explicit id.").
-spec load_model(model_id(), map()) -> {ok, model_id()} | {error, term()}.
load_model(ModelId, Config) when is_binary(ModelId), is_map(Config) ->
    erllama_call:call(load_model, [ModelId, Config]).

?DOC("Unload a model. Its live streams get an erllama_error, its monitors a 'DOWN'.").
-spec unload(model()) -> ok | {error, term()}.
unload(Model) when ?IS_MODEL(Model) ->
    erllama_call:call(unload, [Model]).

?DOC("Alias for unload/1.").
-spec unload_model(model()) -> ok | {error, term()}.
unload_model(Model) when ?IS_MODEL(Model) ->
    erllama_call:call(unload_model, [Model]).

?DOC("The pids of the loaded models.").
-spec models() -> [pid()].
models() ->
    erllama_call:call(models, []).

?DOC("What each loaded model is and does.").
-spec list_models() -> [model_info()].
list_models() ->
    erllama_call:call(list_models, []).

?DOC("What one model is and does. Exits with noproc if it is not loaded.").
-spec model_info(model()) -> model_info().
model_info(Model) when ?IS_MODEL(Model) ->
    erllama_call:call(model_info, [Model]).

?DOC("idle, prefilling or generating. Exits with noproc if the model is not loaded.").
-spec status(model()) -> phase().
status(Model) when ?IS_MODEL(Model) ->
    erllama_call:call(status, [Model]).

?DOC("Save the model's live KV state and release it; requests go on.").
-spec evict(model()) -> ok | {error, term()}.
evict(Model) when ?IS_MODEL(Model) ->
    erllama_call:call(evict, [Model]).

?DOC("Save the model's live KV state before a stop.").
-spec shutdown(model()) -> ok | {error, term()}.
shutdown(Model) when ?IS_MODEL(Model) ->
    erllama_call:call(shutdown, [Model]).

%% -- generation ------------------------------------------------------------------------

?DOC("Run a completion. Waits until the reply is whole, which has no time limit.").
-spec complete(model(), binary()) -> {ok, completion_result()} | {error, term()}.
complete(Model, Prompt) when ?IS_MODEL(Model), is_binary(Prompt) ->
    erllama_call:call(complete, [Model, Prompt]).

?DOC("Run a completion with options: response_tokens, parent_key, stop_sequences, sampling.").
-spec complete(model(), binary(), infer_params()) -> {ok, completion_result()} | {error, term()}.
complete(Model, Prompt, Opts) when ?IS_MODEL(Model), is_binary(Prompt), is_map(Opts) ->
    erllama_call:call(complete, [Model, Prompt, Opts]).

?DOC("Compute a prompt into the cache; its finish_key serves as parent_key later on.").
-spec prefill_only(model(), [token_id()]) -> {ok, prefill_result()} | {error, term()}.
prefill_only(Model, Tokens) when ?IS_MODEL(Model), is_list(Tokens) ->
    erllama_call:call(prefill_only, [Model, Tokens]).

?DOC("prefill_only/2 with parent_key and session_id as options.").
-spec prefill_only(model(), [token_id()], prefill_params()) ->
    {ok, prefill_result()} | {error, term()}.
prefill_only(Model, Tokens, Opts) when ?IS_MODEL(Model), is_list(Tokens), is_map(Opts) ->
    erllama_call:call(prefill_only, [Model, Tokens, Opts]).

?DOC("Give up a session: its sequence leaves the context. One that is busy is left alone.").
-spec end_session(model(), term()) -> ok.
end_session(Model, Session) when ?IS_MODEL(Model) ->
    erllama_call:call(end_session, [Model, Session]).

?DOC(
     "Stream a completion to CallerPid: {erllama_token, Ref, Bin}, {erllama_token_id, Ref, Id} "
     "and at the end {erllama_done, Ref, Stats} or {erllama_error, Ref, Reason}. They may "
     "arrive before this function returns Ref. When CallerPid ends, so does the stream. With "
     "thinking => enabled: {erllama_token, Ref, {thinking_delta, Bin}} and "
     "{erllama_thinking_end, Ref, Sig}; of tool calls {erllama_token, Ref, {tool_call_delta, "
     "Bin}} and {erllama_tool_call_end, Ref, Full}.").
-spec infer(model(), [token_id()], infer_params(), pid()) -> {ok, reference()} | {error, term()}.
infer(Model, Tokens, Params, CallerPid) when
    ?IS_MODEL(Model), is_list(Tokens), is_map(Params), is_pid(CallerPid)
->
    erllama_call:call(infer, [Model, Tokens, Params, CallerPid]).

?DOC("Stop a stream; its erllama_done follows. Always ok and at once.").
-spec cancel(reference()) -> ok.
cancel(Ref) when is_reference(Ref) ->
    erllama_call:cast(cancel, [Ref]).

?DOC("Draft tokens for speculative decoding.").
-spec draft_tokens(model_id(), [token_id()], #{max => pos_integer(), atom() => term()}) ->
    {ok, [token_id()]} | {error, term()}.
draft_tokens(_ModelId, [], _Opts) ->
    {error, empty_prefix};
draft_tokens(ModelId, Prefix, Opts) when is_binary(ModelId), is_list(Prefix), is_map(Opts) ->
    erllama_call:call(draft_tokens, [ModelId, Prefix, Opts]).

?DOC("Verify drafted tokens in one forward pass.").
-spec verify(model_id(), [token_id()], [token_id()], pos_integer()) ->
    {ok, non_neg_integer(), token_id() | eos} | {error, term()}.
verify(ModelId, Prefix, Candidates, K) when
    is_binary(ModelId), is_list(Prefix), is_list(Candidates), is_integer(K), K > 0
->
    erllama_call:call(verify, [ModelId, Prefix, Candidates, K]).

%% -- text and tokens -------------------------------------------------------------------

?DOC("Tokenise a text as a prompt.").
-spec tokenize(model(), binary()) -> {ok, [token_id()]} | {error, term()}.
tokenize(Model, Text) when ?IS_MODEL(Model), is_binary(Text) ->
    erllama_call:call(tokenize, [Model, Text]).

?DOC("The text of tokens.").
-spec detokenize(model(), [token_id()]) -> {ok, binary()} | {error, term()}.
detokenize(Model, Tokens) when ?IS_MODEL(Model), is_list(Tokens) ->
    erllama_call:call(detokenize, [Model, Tokens]).

?DOC("Render a chat request through the model's chat template and tokenise it.").
-spec apply_chat_template(model(), chat_request()) -> {ok, [token_id()]} | {error, term()}.
apply_chat_template(Model, Request) when ?IS_MODEL(Model), is_map(Request) ->
    erllama_call:call(apply_chat_template, [Model, Request]).

?DOC("The embedding of a text's tokens.").
-spec embed(model(), [token_id()]) -> {ok, [float()]} | {error, term()}.
embed(Model, Tokens) when ?IS_MODEL(Model), is_list(Tokens) ->
    erllama_call:call(embed, [Model, Tokens]).

%% -- adapters --------------------------------------------------------------------------

?DOC("Attach a LoRA adapter from a GGUF file that the node can read.").
-spec load_adapter(model(), file:filename_all()) -> {ok, term()} | {error, term()}.
load_adapter(Model, Path) when ?IS_MODEL(Model) ->
    erllama_call:call(load_adapter, [Model, Path]).

?DOC("Detach an adapter.").
-spec unload_adapter(model(), term()) -> ok | {error, term()}.
unload_adapter(Model, Handle) when ?IS_MODEL(Model) ->
    erllama_call:call(unload_adapter, [Model, Handle]).

?DOC("Change an attached adapter's scale.").
-spec set_adapter_scale(model(), term(), number()) -> ok | {error, term()}.
set_adapter_scale(Model, Handle, Scale) when ?IS_MODEL(Model), is_number(Scale) ->
    erllama_call:call(set_adapter_scale, [Model, Handle, Scale]).

?DOC("The attached adapters with their scales.").
-spec list_adapters(model()) -> [#{handle := term(), scale := float()}] | {error, term()}.
list_adapters(Model) when ?IS_MODEL(Model) ->
    erllama_call:call(list_adapters, [Model]).

%% -- observability ---------------------------------------------------------------------

?DOC("The number of admitted streams on the node.").
-spec queue_depth() -> non_neg_integer().
queue_depth() ->
    erllama_call:call(queue_depth, []).

?DOC("The number of a model's admitted streams; 0 if it is not loaded.").
-spec queue_depth(model_id()) -> non_neg_integer().
queue_depth(ModelId) when is_binary(ModelId) ->
    erllama_call:call(queue_depth, [ModelId]).

?DOC("The number of requests queued in a model; 0 if it is not loaded.").
-spec pending_len(model_id()) -> non_neg_integer().
pending_len(ModelId) when is_binary(ModelId) ->
    erllama_call:call(pending_len, [ModelId]).

?DOC("idle, prefilling or generating; idle if the model is not loaded.").
-spec phase(model_id()) -> phase().
phase(ModelId) when is_binary(ModelId) ->
    erllama_call:call(phase, [ModelId]).

?DOC("How the model's latest request was admitted; undefined if none was.").
-spec last_cache_hit(model_id()) -> cache_hit() | undefined.
last_cache_hit(ModelId) when is_binary(ModelId) ->
    erllama_call:call(last_cache_hit, [ModelId]).

?DOC("How many leading tokens of a prompt are cached for a model.").
-spec list_cached_prefixes(model_id(), [token_id()]) -> {ok, non_neg_integer()} | {error, term()}.
list_cached_prefixes(_ModelId, []) ->
    {ok, 0};
list_cached_prefixes(ModelId, Tokens) when is_binary(ModelId), is_list(Tokens) ->
    erllama_call:call(list_cached_prefixes, [ModelId, Tokens]).

?DOC("The cache's counters: 20 of them.").
-spec counters() -> #{atom() => non_neg_integer()}.
counters() ->
    erllama_call:call(counters, []).

?DOC("Total, free and used bytes over the node's GPUs; {error, no_gpu} where there is none.").
-spec vram_info() ->
    {ok, #{
        total_b := non_neg_integer(), free_b := non_neg_integer(), used_b := non_neg_integer()
    }}
    | {error, atom()}.
vram_info() ->
    erllama_call:call(vram_info, []).
