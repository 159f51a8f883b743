%% The functions of erllama_cache_meta_srv, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module(erllama_cache_meta_srv).

-export([
    announce_saved/4,
    announce_saved/5,
    cancel_reservation/2,
    check_reservation/2,
    checkin/1,
    checkout/2,
    dump/0,
    dump/1,
    evict_bytes/1,
    evict_bytes/2,
    gc/0,
    insert_available/5,
    insert_available/6,
    lookup_exact/1,
    lookup_exact_or_wait/2,
    lookup_longest_prefix/4,
    mark_published/3,
    reserve_save/3
]).

-spec announce_saved(term(), term(), term(), term()) -> term().
announce_saved(A1, A2, A3, A4) ->
    erllama_call:call(?MODULE, announce_saved, [A1, A2, A3, A4]).

-spec announce_saved(term(), term(), term(), term(), term()) -> term().
announce_saved(A1, A2, A3, A4, A5) ->
    erllama_call:call(?MODULE, announce_saved, [A1, A2, A3, A4, A5]).

-spec cancel_reservation(term(), term()) -> term().
cancel_reservation(A1, A2) ->
    erllama_call:call(?MODULE, cancel_reservation, [A1, A2]).

-spec check_reservation(term(), term()) -> term().
check_reservation(A1, A2) ->
    erllama_call:call(?MODULE, check_reservation, [A1, A2]).

-spec checkin(term()) -> term().
checkin(A1) ->
    erllama_call:call(?MODULE, checkin, [A1]).

-spec checkout(term(), term()) -> term().
checkout(A1, A2) ->
    erllama_call:call(?MODULE, checkout, [A1, A2]).

-spec dump() -> term().
dump() ->
    erllama_call:call(?MODULE, dump, []).

-spec dump(term()) -> term().
dump(A1) ->
    erllama_call:call(?MODULE, dump, [A1]).

-spec evict_bytes(term()) -> term().
evict_bytes(A1) ->
    erllama_call:call(?MODULE, evict_bytes, [A1]).

-spec evict_bytes(term(), term()) -> term().
evict_bytes(A1, A2) ->
    erllama_call:call(?MODULE, evict_bytes, [A1, A2]).

-spec gc() -> term().
gc() ->
    erllama_call:call(?MODULE, gc, []).

-spec insert_available(term(), term(), term(), term(), term()) -> term().
insert_available(A1, A2, A3, A4, A5) ->
    erllama_call:call(?MODULE, insert_available, [A1, A2, A3, A4, A5]).

-spec insert_available(term(), term(), term(), term(), term(), term()) -> term().
insert_available(A1, A2, A3, A4, A5, A6) ->
    erllama_call:call(?MODULE, insert_available, [A1, A2, A3, A4, A5, A6]).

-spec lookup_exact(term()) -> term().
lookup_exact(A1) ->
    erllama_call:call(?MODULE, lookup_exact, [A1]).

-spec lookup_exact_or_wait(term(), term()) -> term().
lookup_exact_or_wait(A1, A2) ->
    erllama_call:call(?MODULE, lookup_exact_or_wait, [A1, A2]).

-spec lookup_longest_prefix(term(), term(), term(), term()) -> term().
lookup_longest_prefix(A1, A2, A3, A4) ->
    erllama_call:call(?MODULE, lookup_longest_prefix, [A1, A2, A3, A4]).

-spec mark_published(term(), term(), term()) -> term().
mark_published(A1, A2, A3) ->
    erllama_call:call(?MODULE, mark_published, [A1, A2, A3]).

-spec reserve_save(term(), term(), term()) -> term().
reserve_save(A1, A2, A3) ->
    erllama_call:call(?MODULE, reserve_save, [A1, A2, A3]).
