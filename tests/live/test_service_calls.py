"""Real nodes call every function of erllama, in every way: results term for term."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from erl_bridge.service.heads import FUNCTIONS
from erllama_py.testing import stub_model
from tests.live.erlnode import ErlangFailure, ErlNode
from tests.live.serving import MODEL, Serving

STUB = "#{backend => erllama_model_stub, in_process => true}"
NO_PID = frozenset({"load_model", "cancel", "queue_depth", "pending_len", "phase"})
"""Functions whose first argument is no model that could be a pid."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    (folder / "broken.gguf").write_bytes(b"GGUF and nothing else")
    return folder


@pytest.fixture(scope="module")
def llm(peer: ErlNode, root: Path) -> Iterator[Serving]:
    """The node, with a stub model ``m`` of 256 cells and two slots."""
    serving = Serving(peer, roots=[root])
    # A fingerprint of its own: the next release's node finds nothing cached.
    context = {"n_ctx": 256, "n_seq_max": 2}
    with stub_model("m", context_opts=context, fingerprint=os.urandom(32)):
        yield serving
    serving.stop()


RESULT = (
    "cache_delta,cache_hit_kind,committed_tokens,context_tokens,finish_key,finish_reason,generated,"
    "reply,stats"
)
STATS = (
    "cache_delta,cache_hit_kind,cancelled,committed_tokens,completion_tokens,finish_key,finish_reason,"
    "generation_ms,prefill_ms,prompt_tokens"
)
INFO = (
    "backend,context_size,fingerprint,id,last_cache_hit,loaded_at_monotonic,model_id,pending_len,"
    "phase,pid,quant_bits,quant_tag,quant_type,status,tier,vram_estimate_b"
)
COUNTERS = (
    "bytes_disk,bytes_ram,bytes_ramfile,corrupt_files,duplicate_dropped,evictions,hits_exact,"
    "hits_longest_prefix,hits_resume,load_total_ns,longest_prefix_ns,longest_prefix_probes,misses,"
    "pack_total_ns,saves_cold,saves_continued,saves_dropped,saves_evict,saves_finish,saves_shutdown"
)
KEYS = "fun(Map) -> lists:sort(maps:keys(Map)) end"
INFO_OF = f"""
    fun(#{{pid := Pid, fingerprint := <<_:32/binary>>, loaded_at_monotonic := At}} = Info)
            when is_pid(Pid), node(Pid) =:= N, is_integer(At) ->
        #{{id := {MODEL}, model_id := {MODEL}, status := idle, phase := idle, pending_len := 0,
          backend := erllama_model_stub, context_size := 4096, quant_type := f16, quant_bits := 16,
          quant_tag := <<"f16">>, tier := ram, vram_estimate_b := 0}} = Info,
        ({KEYS})(Info)
    end
"""
COMPLETION = f"""
    fun({{ok, #{{reply := Reply, generated := [T, T], context_tokens := [_, _, T, T],
                committed_tokens := 4, finish_key := undefined, finish_reason := length,
                stats := Stats}} = Result}}) when is_binary(Reply), is_integer(T) ->
        Reply = iolist_to_binary([integer_to_list(T), " ", integer_to_list(T)]),
        #{{prompt_tokens := 2, completion_tokens := 2, cancelled := false, committed_tokens := 4,
          finish_key := undefined, finish_reason := length, cache_hit_kind := Kind}} = Stats,
        #{{cache_hit_kind := Kind}} = Result,
        true = lists:member(Kind, [cold, exact]),
        {{({KEYS})(Result), ({KEYS})(Stats)}}
    end
"""

CALLS = [
    ("models", "", "fun([Pid]) -> is_pid(Pid) end", "true"),
    ("counters", "", KEYS, f"[{COUNTERS}]"),
    ("queue_depth", "", "fun(Depth) -> Depth end", "0"),
    ("queue_depth", MODEL, "fun(Depth) -> Depth end", "0"),
    ("pending_len", MODEL, "fun(Length) -> Length end", "0"),
    ("phase", MODEL, "fun(Phase) -> Phase end", "idle"),
    ("status", MODEL, "fun(Status) -> Status end", "idle"),
    (
        "last_cache_hit",
        MODEL,
        """fun(undefined) -> true;
              (#{kind := K, prefix_len := L} = Hit) ->
                   is_atom(K) andalso is_integer(L) andalso map_size(Hit) =:= 2 end""",
        "true",
    ),
    ("model_info", MODEL, INFO_OF, f"[{INFO}]"),
    ("list_models", "", f"fun([Info]) -> ({INFO_OF})(Info) end", f"[{INFO}]"),
    ("vram_info", "", "fun(Info) -> Info end", "{error,no_gpu}"),
    ("tokenize", f'{MODEL}, <<"a b">>', "fun({ok, Tokens}) -> length(Tokens) end", "2"),
    ("tokenize", f"{MODEL}, <<>>", "fun(Answer) -> Answer end", "{ok,[]}"),
    ("detokenize", f"{MODEL}, [1, 200000]", "fun(Answer) -> Answer end", '{ok,<<"1 200000">>}'),
    (
        "draft_tokens",
        f"{MODEL}, [1], #{{max => 3}}",
        "fun({ok, Tokens}) -> [is_integer(T) || T <- Tokens] end",
        "[true,true,true]",
    ),
    ("draft_tokens", "self(), [], max", "fun(Answer) -> Answer end", "{error,empty_prefix}"),
    (
        "embed",
        f"{MODEL}, [1, 2, 3]",
        "fun({ok, [V | _] = Vector}) -> {length(Vector), round(V * 65535)} end",
        f"{{16,{133891508 & 0xFFFF}}}",
    ),
    (
        "apply_chat_template",
        f'{MODEL}, #{{messages => [#{{role => <<"user">>, content => <<"hi">>}}]}}',
        "fun({ok, Tokens}) -> length(Tokens) end",
        "2",
    ),
    ("list_cached_prefixes", f"{MODEL}, [999999, 1]", "fun(Answer) -> Answer end", "{ok,0}"),
    (
        "complete",
        f'{MODEL}, <<"one two">>, #{{response_tokens => 2}}',
        COMPLETION,
        f"{{[{RESULT}],[{STATS}]}}",
    ),
    (
        "complete",
        f'{MODEL}, <<"one two">>, #{{response_tokens => 2, speculate => lookup}}',
        # The stub has no logits to check a draft by.
        """fun({ok, #{generated := [T, T], stats := #{speculation := Facts}}}) ->
                   [maps:get(Key, Facts) || Key <- [drafted, accepted, acceptance_rate, plain]]
               end""",
        "[0,0,0.0,not_supported]",
    ),
    (
        "complete",
        f'{MODEL}, <<"one">>, #{{speculate => #{{draft => <<"nobody">>, max => 5}}}}',
        """fun({error, {invalid, speculate, Value}}) ->
                   [maps:get(Key, Value) || Key <- [draft, max]] end""",
        '[<<"nobody">>,5]',
    ),
    (
        "complete",
        f'{MODEL}, <<"one">>, #{{speculate => #{{lookup => 0}}}}',
        "fun(Answer) -> Answer end",
        "{error,{invalid,speculate,#{lookup => 0}}}",
    ),
    (
        "complete",
        f'{MODEL}, <<"to the end">>',
        # Without a limit: until the 256 cells are full.  Above min_tokens, so there is a key.
        """fun({ok, #{generated := T, finish_key := <<_:32/binary>>, finish_reason := length}}) ->
                   length(T) end""",
        "253",
    ),
    (
        "prefill_only",
        f"{MODEL}, [1, 2, 3]",
        """fun({ok, #{cache_delta := #{read := 0, created := 0}} = Result}) ->
                   Rest = maps:without([cache_hit_kind, cache_delta], Result),
                   lists:sort(maps:to_list(Rest)) end""",
        "[{committed_tokens,3},{context_tokens,[1,2,3]},{finish_key,undefined}]",
    ),
    (
        "prefill_only",
        f"{MODEL}, lists:seq(1, 40), #{{parent_key => undefined}}",
        "fun({ok, #{cache_delta := #{read := R, created := C}}}) -> R + C end",
        "40",
    ),
    ("end_session", f"{MODEL}, [make_ref() | {{self()}}]", "fun(Answer) -> Answer end", "ok"),
    (
        "infer",
        f"{MODEL}, [1, 2], #{{response_tokens => 1}}, self()",
        """fun({ok, Ref}) when is_reference(Ref), node(Ref) =:= N ->
                   receive {erllama_done, Ref, #{completion_tokens := C}} -> C
                   after 5000 -> none end end""",
        "1",
    ),
    ("cancel", "make_ref()", "fun(Answer) -> Answer end", "ok"),
    ("load_model", f"{MODEL}, {STUB}", "fun(Answer) -> Answer end", "{error,already_loaded}"),
    ("load_model", STUB, "fun({ok, Id}) when is_binary(Id) -> erllama:unload(Id) end", "ok"),
    ("unload", '<<"nobody">>', "fun(Answer) -> Answer end", "{error,not_found}"),
    ("unload_model", '<<"nobody">>', "fun(Answer) -> Answer end", "{error,not_found}"),
    ("load_adapter", f'{MODEL}, "elsewhere.gguf"', "fun(Answer) -> Answer end", "{error,eacces}"),
    ("unload_adapter", f"{MODEL}, make_ref()", "fun(Answer) -> Answer end", "ok"),
    (
        "set_adapter_scale",
        f"{MODEL}, make_ref(), 0.5",
        "fun(Answer) -> Answer end",
        "{error,not_found}",
    ),
    ("list_adapters", MODEL, "fun(Answer) -> Answer end", "[]"),
    ("evict", MODEL, "fun(Answer) -> Answer end", "ok"),
    ("shutdown", MODEL, "fun(Answer) -> Answer end", "ok"),
    *(
        (function, args, "fun(Answer) -> Answer end", "{error,not_supported}")
        for function, args in [
            ("verify", f"{MODEL}, [1], [2], 1"),
        ]
    ),
]
"""Function, arguments, what is made of the answer, and what that comes to."""


def by_pid(function: str, args: str) -> bool:
    """Whether a call may go to the model's process as well."""
    ids_only = {*NO_PID, "last_cache_hit", "list_cached_prefixes", "draft_tokens", "verify"}
    return args.startswith(MODEL) and function not in ids_only


WAYS = [
    pytest.param(via, *call, id=f"{via}-{call[0]}-{number}")
    for number, call in enumerate(CALLS)
    for via in ("rpc", "erpc", "name", "pid")
    if via != "pid" or by_pid(call[0], call[1])
]


@pytest.mark.parametrize(("via", "function", "args", "made", "value"), WAYS)
def test_every_function(
    llm: Serving, via: str, function: str, args: str, made: str, value: str
) -> None:
    assert llm.eval(f"({made})({llm.ask(via, function, args)})") == value


def test_every_function_is_among_them() -> None:
    tested = {(name, arity(args)) for name, args, _, _ in CALLS}
    assert tested == FUNCTIONS


def arity(args: str) -> int:
    """Count the arguments, which are commas outside brackets."""
    depth, commas = 0, 0
    for char in args:
        depth += (char in "([{") - (char in ")]}")
        commas += char == "," and depth == 0
    return commas + 1 if args else 0


def test_ping(llm: Serving) -> None:
    assert (
        llm.eval("{net_adm:ping(N), lists:member(N, nodes(hidden)), nodes()}") == "{pong,true,[]}"
    )


CAUGHT = "try {value, %s} catch C:R -> {C, R} end"
NOT_FOUND = '{noproc,{erllama_model,not_found,<<"nobody">>}}'


class TestFailures:
    """As section 2.1 of the API has them."""

    def test_an_unknown_model_exits(self, llm: Serving) -> None:
        args = '<<"nobody">>, <<"a">>'
        rpc = llm.ask("rpc", "complete", args)
        assert llm.eval(rpc) == f"{{badrpc,{{'EXIT',{NOT_FOUND}}}}}"
        erpc = llm.ask("erpc", "complete", args)
        assert llm.eval(CAUGHT % erpc) == f"{{exit,{{exception,{NOT_FOUND}}}}}"
        name = llm.ask("name", "complete", args)
        assert llm.eval(f"element(1, element(2, {CAUGHT % name}))") == NOT_FOUND

    def test_a_wrong_kind_of_argument_has_no_clause(self, llm: Serving) -> None:
        stack = "[{erllama,phase,[mm],[]}]"
        assert llm.eval(llm.ask("rpc", "phase", "mm")) == (
            f"{{badrpc,{{'EXIT',{{function_clause,{stack}}}}}}}"
        )
        assert llm.eval(CAUGHT % llm.ask("erpc", "phase", "mm")) == (
            f"{{error,{{exception,function_clause,{stack}}}}}"
        )
        name = CAUGHT % llm.ask("name", "phase", "mm")
        assert llm.eval(f"element(1, element(2, {name}))") == f"{{function_clause,{stack}}}"

    @pytest.mark.parametrize("function", ["phase", "pending_len", "queue_depth", "last_cache_hit"])
    def test_the_pid_of_a_model_is_no_id(self, llm: Serving, function: str) -> None:
        caught = llm.eval(
            f"begin P = hd(erllama:models()),"
            f" try erllama:{function}(P) catch error:{{exception, R, [{{M, F, [A], []}}]}} ->"
            f" {{R, M, F, A =:= P}} end end"
        )
        assert caught == f"{{function_clause,erllama,{function},true}}"

    @pytest.mark.parametrize(
        ("function", "args", "request_term"),
        [
            ("status", "P", "status"),
            ("complete", 'P, <<"a">>, #{seed => 1}', '{complete,<<"a">>,#{seed => 1}}'),
            ("prefill_only", "P, [70000]", "{prefill_only,[70000]}"),
            ("tokenize", 'P, <<"a">>', '{tokenize,<<"a">>}'),
        ],
    )
    def test_a_dead_pid_exits_as_gen_statem_does(
        self, llm: Serving, function: str, args: str, request_term: str
    ) -> None:
        gone = f"""begin
            {{ok, M}} = erllama:load_model({STUB}),
            #{{pid := P}} = erllama:model_info(M),
            ok = erllama:unload(P),
            {{noproc, {{gen_statem, call, [P, Request, infinity]}}}} =
                try erllama:{function}({args}) catch exit:{{exception, R}} -> R end,
            ok = erllama:unload(P),
            Request
        end"""
        assert llm.eval(gone) == request_term

    @pytest.mark.parametrize(
        "call",
        [
            'os, cmd, ["true"]',
            "erlang, halt, []",
            "erlang, apply, [os, cmd, []]",
            "erllama, module_info, []",
            "erllama, complete, [one]",
            "erllama, start, [1, 2]",
            "code, load_binary, [a, b, c]",
            'file, read_file, ["/etc/passwd"]',
            "init, stop, []",
        ],
    )
    def test_everything_else_is_undef(self, llm: Serving, call: str) -> None:
        module, function, args = call.split(", ", 2)
        stack = f"[{{{module},{function},{args.replace(', ', ',')},[]}}]"
        undef = f"{{badrpc,{{'EXIT',{{undef,{stack}}}}}}}"
        assert llm.eval(f"rpc:call(N, {call})") == undef

    def test_a_fun_is_not_run(self, llm: Serving) -> None:
        with pytest.raises(ErlangFailure, match="undef"):
            llm.eval('erpc:call(N, fun() -> file:write_file("ran", <<>>) end)')

    @pytest.mark.parametrize("request_term", ["5", "{5}", "<<>>", "{}", "[complete]"])
    def test_what_is_no_request_fails_its_caller_only(
        self, llm: Serving, request_term: str
    ) -> None:
        caught = llm.eval(CAUGHT % f"gen_server:call({{erllama, N}}, {request_term})")
        assert caught.startswith(f"{{exit,{{{{bad_call,{request_term}}}")
        assert llm.eval("gen_server:call({erllama, N}, queue_depth)") == "0"


class TestFiles:
    """Remote callers open files below the roots."""

    @pytest.mark.parametrize("key", ["model_path", '<<"model_path">>'])
    @pytest.mark.parametrize(
        "path", ['"/etc/passwd"', '<<"{root}/../x.gguf">>', '["/etc/", <<"x">>]']
    )
    def test_no_other_file_is_opened(self, llm: Serving, root: Path, key: str, path: str) -> None:
        path = path.replace("{root}", str(root))
        assert llm.eval(f"erllama:load_model(#{{{key} => {path}}})") == "{error,eacces}"

    @pytest.mark.parametrize("name", ["broken.gguf", "missing.gguf"])
    def test_what_is_no_model_does_not_load(self, llm: Serving, root: Path, name: str) -> None:
        loaded = f'erllama:load_model(#{{model_path => "{root}/{name}"}})'
        assert llm.eval(loaded) == "{error,load_failed}"

    def test_adapters_are_files_too(self, llm: Serving, root: Path) -> None:
        (root / "lora.gguf").write_bytes(b"any file will do for a stub")
        seen = llm.eval(f"""begin
            {{error, enoent}} = erllama:load_adapter({MODEL}, "{root}/none.gguf"),
            {{ok, A}} = erllama:load_adapter({MODEL}, "{root}/lora.gguf"),
            {{ok, B}} = erllama:load_adapter({MODEL}, <<"{root}/lora.gguf">>),
            true = is_reference(A) andalso is_reference(B) andalso node(A) =:= N,
            ok = erllama:set_adapter_scale({MODEL}, A, 2),
            [#{{handle := B, scale := 1.0}}, #{{handle := A, scale := 2.0}} = Last] =
                erllama:list_adapters({MODEL}),
            ok = erllama:unload_adapter({MODEL}, A),
            ok = erllama:unload_adapter({MODEL}, A),
            ok = erllama:unload_adapter({MODEL}, B),
            {{maps:size(Last), erllama:list_adapters({MODEL})}}
        end""")
        assert seen == "{2,[]}"


class TestTerms:
    def test_small_tokens_come_as_strings(self, llm: Serving) -> None:
        """STRING_EXT: a list of bytes is sent so, and may come back as either."""
        prefill = f'{{ok, #{{context_tokens := T}}}} = erllama:prefill_only({MODEL}, "tokens")'
        assert llm.eval(f"begin {prefill}, T end") == '"tokens"'
        assert llm.eval(f"erllama:detokenize({MODEL}, [1,2,255])") == '{ok,<<"1 2 255">>}'
        assert llm.eval(f'erllama:list_cached_prefixes({MODEL}, "zzz")') == "{ok,0}"

    def test_many_tokens_come_as_lists(self, llm: Serving) -> None:
        text = f"{{ok, B}} = erllama:detokenize({MODEL}, lists:duplicate(70000, 1))"
        assert llm.eval(f"begin {text}, byte_size(B) end") == str(2 * 70000 - 1)

    @pytest.mark.parametrize("absent", ["undefined", "nil"])
    def test_undefined_is_absent(self, llm: Serving, absent: str) -> None:
        options = f"#{{parent_key => {absent}, stop_sequences => {absent}, response_tokens => 1}}"
        generated = f'{{ok, #{{generated := G}}}} = erllama:complete({MODEL}, <<"a">>, {options})'
        assert llm.eval(f"begin {generated}, length(G) end") == "1"

    def test_keys_may_be_binaries(self, llm: Serving) -> None:
        """As they come out of JSON."""
        options = '#{<<"response_tokens">> => 3}'
        generated = f'{{ok, #{{generated := G}}}} = erllama:complete({MODEL}, <<"a">>, {options})'
        assert llm.eval(f"begin {generated}, length(G) end") == "3"

    def test_prefills_chain(self, llm: Serving) -> None:
        chained = f"""begin
            A = lists:seq(7000, 7019), B = [1, 2, 3],
            {{ok, #{{finish_key := K, cache_delta := #{{read := 0, created := 20}}}}}} =
                erllama:prefill_only({MODEL}, A, #{{}}),
            {{ok, #{{cache_hit_kind := Kind, cache_delta := #{{read := R, created := C}}}}}} =
                erllama:prefill_only({MODEL}, A ++ B, #{{parent_key => K}}),
            {{Kind, R, C}}
        end"""
        assert llm.eval(chained) == "{partial,20,3}"

    @pytest.mark.parametrize(
        "session",
        [
            *("a", "1", "1.0", '<<"a">>', '"charlist"', "{a, #{[1.0] => b, 2 => c}}", "[]"),
            *("self()", "false", "[a | b]", "<<1:3>>", "fun erllama:models/0"),
        ],
    )
    def test_a_session_is_named_by_any_term(self, llm: Serving, session: str) -> None:
        going_on = f"""begin
            S = {session},
            L = lists:seq(8000, 8014),
            {{ok, #{{cache_hit_kind := First}}}} =
                erllama:prefill_only({MODEL}, L, #{{session_id => S}}),
            true = First =/= sticky,
            {{ok, R}} = erllama:infer({MODEL}, L ++ [1, 2],
                                      #{{session_id => S, response_tokens => 2}}, self()),
            #{{cache_hit_kind := Kind, cache_delta := #{{read := Read, created := Created}}}} =
                receive {{erllama_done, R, Stats}} -> Stats after 5000 -> late end,
            #{{kind := sticky, prefix_len := 15}} = erllama:last_cache_hit({MODEL}),
            ok = erllama:end_session({MODEL}, S),
            {{Kind, Read, Created}}
        end"""
        assert llm.eval(going_on) == "{sticky,15,4}"

    def test_warm_is_said(self, llm: Serving) -> None:
        """A reply does not wait for the save of its end."""
        said = f"""begin
            L = lists:seq(5000, 5099),
            {{ok, #{{finish_key := K, cache_hit_kind := cold}}}} =
                erllama:prefill_only({MODEL}, L),
            (fun Saved() ->
                case erllama:list_cached_prefixes({MODEL}, L) of {{ok, 100}} -> ok; _ -> Saved() end
            end)(),
            {{ok, #{{finish_key := K, cache_hit_kind := exact}}}} =
                erllama:prefill_only({MODEL}, L),
            {{ok, #{{cache_hit_kind := partial}}}} = erllama:prefill_only({MODEL}, L ++ [1]),
            #{{kind := Kind, prefix_len := Length}} = erllama:last_cache_hit({MODEL}),
            {{byte_size(K), Kind, Length}}
        end"""
        assert llm.eval(said) == "{32,partial,100}"
