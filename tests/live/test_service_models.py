"""A real model over the wire: what the stub cannot show."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from erllama_py import api
from erllama_py.config import EVERYDAY_POLICY
from tests.live.erlnode import ErlNode
from tests.live.serving import Serving
from tests.models import smollm2_path

pytestmark = pytest.mark.model

SMOL = '<<"smol">>'
OUT_OF_VOCABULARY = 49152
CONTEXT = 1024


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    with Path(smollm2_path()).open("rb") as whole:
        (folder / "truncated.gguf").write_bytes(whole.read(4 << 20))
    return folder


@pytest.fixture(scope="module")
def llm(peer: ErlNode, root: Path) -> Iterator[Serving]:
    serving = Serving(peer, roots=[root])
    config = {
        "model_path": "smollm2",
        "policy": EVERYDAY_POLICY,
        # One thread: threads that wait for each other make no way on a busy machine.
        "context_opts": {"n_seq_max": 2, "n_ctx": CONTEXT, "n_threads": 1, "n_threads_batch": 1},
        # The two releases' nodes find nothing of each other's.
        "fingerprint": os.urandom(32),
    }
    with api.load_model("smol", config):
        yield serving
    serving.stop()


def test_the_second_time_is_exact_and_the_next_turn_warm(llm: Serving) -> None:
    seen = llm.eval(f"""begin
        Prompt = iolist_to_binary(lists:duplicate(20, <<"The cat sat on the mat. ">>)),
        Short = #{{response_tokens => 8}},
        {{ok, Cold}} = erllama:complete({SMOL}, Prompt, Short),
        #{{cache_hit_kind := cold, finish_key := Key, reply := Reply}} = Cold,
        {{ok, #{{cache_hit_kind := exact, finish_key := Key, reply := Reply}}}} =
            erllama:complete({SMOL}, Prompt, Short),
        {{ok, #{{context_tokens := Tokens}}}} = {{ok, Cold}},
        {{ok, R}} = erllama:infer({SMOL}, Tokens ++ [1, 2], Short#{{parent_key => Key}}, self()),
        receive {{erllama_done, R, #{{cache_hit_kind := Kind, prompt_tokens := All}}}} -> ok end,
        #{{kind := Kind, prefix_len := Prefix}} = erllama:last_cache_hit({SMOL}),
        {{byte_size(Key), is_binary(Reply), Kind, All - Prefix}}
    end""")
    assert seen == "{32,true,partial,2}"


def test_what_streams_is_what_is_answered(llm: Serving) -> None:
    seen = llm.eval(
        f"""begin
        Prompt = <<"Smileys: \\\\x{{1F600}} \\\\x{{1F601}} \\\\x{{1F602}}"/utf8>>,
        {{ok, Tokens}} = erllama:tokenize({SMOL}, Prompt),
        {{ok, Prompt}} = erllama:detokenize({SMOL}, Tokens),
        Options = #{{response_tokens => 24}},
        {{ok, #{{reply := Reply, generated := Ids}}}} =
            erllama:complete({SMOL}, Prompt, Options),
        {{ok, R}} = erllama:infer({SMOL}, Tokens, Options, self()),
        Collect = fun Collect(Texts, Seen) ->
            receive
                {{erllama_token, R, Text}} -> Collect([Texts, Text], Seen);
                {{erllama_token_id, R, Id}} -> Collect(Texts, [Id | Seen]);
                {{erllama_done, R, _}} -> {{iolist_to_binary(Texts), lists:reverse(Seen)}}
            end
        end,
        Collect([], []) =:= {{Reply, Ids}}
    end""".replace("\\\\x", "\\x")
    )
    assert seen == "true"


def test_a_grammar_constrains_and_a_broken_one_is_refused(llm: Serving) -> None:
    seen = llm.eval(f"""begin
        Only = #{{grammar => <<"root ::= \\"yes\\" | \\"no\\"">>, response_tokens => 8}},
        {{ok, #{{reply := Reply}}}} = erllama:complete({SMOL}, <<"Is water wet?">>, Only),
        Broken = #{{grammar => <<"root ::= (">>}},
        {{lists:member(Reply, [<<"yes">>, <<"no">>]),
          erllama:complete({SMOL}, <<"Is it?">>, Broken),
          erllama:infer({SMOL}, [1, 2], Broken, self())}}
    end""")
    assert seen == "{true,{error,grammar_failed},{error,grammar_failed}}"


def test_a_chat_is_rendered_by_the_models_template(llm: Serving) -> None:
    seen = llm.eval(f"""begin
        User = #{{role => <<"user">>, content => <<"Hi">>}},
        Request = #{{system => "Be brief.", messages => [User]}},
        {{ok, Tokens}} = erllama:apply_chat_template({SMOL}, Request),
        erllama:detokenize({SMOL}, Tokens)
    end""")
    # Control tokens render empty.
    assert seen == r'{ok,<<"system\nBe brief.\nuser\nHi\nassistant\n">>}'


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_a_chat_has_blocks_tools_calls_and_a_template_of_its_own(llm: Serving) -> None:
    seen = llm.eval(f"""begin
        Text = fun(Request) ->
            {{ok, Tokens}} = erllama:apply_chat_template({SMOL}, Request),
            {{ok, Bin}} = erllama:detokenize({SMOL}, Tokens),
            Bin
        end,
        User = #{{role => <<"user">>, content => [#{{type => text, text => <<"Hi">>}},
                                                 #{{type => <<"text">>, text => "you"}}]}},
        Tool = #{{name => <<"dig">>, description => "deep", schema => #{{type => <<"object">>}}}},
        Call = #{{id => <<"c1">>, name => <<"dig">>, arguments => #{{depth => 3}}}},
        Asked = #{{role => <<"assistant">>, tool_calls => [Call]}},
        Told = #{{role => <<"tool">>, tool_call_id => <<"c1">>, content => <<"done">>}},
        Calls = <<"{{% for m in messages %}}{{% for c in m.tool_calls or [] %}}"
                  "{{{{ c.function.arguments | tojson }}}}{{% endfor %}}{{% endfor %}}">>,
        Kwargs = #{{enable_thinking => false, n => undefined}},
        Shown = <<"{{{{ enable_thinking }}}} {{{{ n is none }}}}">>,
        [Text(#{{messages => [User], tools => [Tool], system => undefined}}),
         Text(#{{messages => [User, Asked, Told], chat_template => Calls}}),
         Text(#{{messages => [], chat_template => Shown, chat_template_kwargs => Kwargs}}),
         Text(#{{messages => [User], chat_template => zephyr, add_generation_prompt => false}})]
    end""")
    # SmolLM2's template knows no tools; zephyr's end of a text is a control token here.
    assert seen == (
        r'[<<"system\nAvailable tools:\n  - dig: deep\n\nuser\nHi\nyou\nassistant\n">>,'
        r'<<"{\"depth\": 3}">>,<<"False True">>,<<"<|user|>\nHi\nyou\n">>]'
    )


def test_a_draft_is_verified_and_a_text_embedded(llm: Serving) -> None:
    seen = llm.eval(f"""begin
        {{ok, T}} = erllama:tokenize({SMOL}, <<"One, two, three,">>),
        {{ok, [A, B, C | _]}} = erllama:draft_tokens({SMOL}, T, #{{max => 4}}),
        {{ok, 2, C}} = erllama:verify({SMOL}, T, [A, B, 77], 3),
        {{ok, 1, B}} = erllama:verify({SMOL}, T, [A, B, C], 1),
        {{ok, Vector}} = erllama:embed({SMOL}, T),
        {{length(Vector), lists:all(fun erlang:is_float/1, Vector)}}
    end""")
    assert seen == "{576,true}"


BAD_CALLS = {
    f"erllama:embed({SMOL}, [])": "invalid_token",
    f"erllama:embed({SMOL}, [{OUT_OF_VOCABULARY}])": "invalid_token",
    f"erllama:embed({SMOL}, lists:duplicate({CONTEXT}, 1))": "context_overflow",
    f"erllama:verify({SMOL}, [], [1], 1)": "empty_prefix",
    f"erllama:verify({SMOL}, [1], [1], 1)": "busy",
    f"erllama:draft_tokens({SMOL}, [], #{{}})": "empty_prefix",
    f"erllama:prefill_only({SMOL}, [{OUT_OF_VOCABULARY}])": "invalid_token",
    f"erllama:infer({SMOL}, [1, {OUT_OF_VOCABULARY}], #{{}}, self())": "invalid_token",
    f"erllama:detokenize({SMOL}, [{OUT_OF_VOCABULARY}])": "invalid_token",
    f"erllama:complete({SMOL}, <<>>)": "empty_prompt",
    f'erllama:complete({SMOL}, binary:copy(<<"x ">>, {CONTEXT}))': "context_overflow",
    f"erllama:complete({SMOL}, binary:copy(<<$x>>, 4194305))": "too_large",
    f"erllama:apply_chat_template({SMOL}, #{{}})": "badarg",
    f"erllama:apply_chat_template({SMOL}, #{{messages => [#{{role => <<>>}}]}})": "badarg",
    f"erllama:apply_chat_template({SMOL}, #{{messages => [#{{role => u, content => <<>>}}]}})": (
        "badarg"
    ),
    f"erllama:apply_chat_template({SMOL}, #{{messages => [#{{role => <<>>, content => 5}}]}})": (
        "invalid_content"
    ),
    f"erllama:apply_chat_template({SMOL}, #{{messages => [#{{role => <<>>, "
    "content => [#{type => image}]}]})": "invalid_content",
    f"erllama:apply_chat_template({SMOL}, #{{messages => [], chat_template_kwargs => 5}})": (
        "{invalid,chat_template_kwargs,5}"
    ),
    f"erllama:apply_chat_template({SMOL}, #{{messages => [], chat_template => nothing}})": (
        "no_template"
    ),
    f"erllama:load_model({SMOL}, #{{model_path => smollm2}})": "already_loaded",
}


def test_bad_input_is_refused_while_a_stream_goes_on(llm: Serving) -> None:
    calls = ",".join(BAD_CALLS)
    seen = llm.eval(f"""begin
        {{ok, R}} = erllama:infer({SMOL}, [504, 2644], #{{response_tokens => 900}}, self()),
        receive {{erllama_token_id, R, _}} -> ok end,
        Answers = [{calls}],
        (fun Flush() -> receive {{_, R, _}} -> Flush() after 0 -> ok end end)(),
        receive {{erllama_token_id, R, _}} -> ok after 20000 -> exit(stopped) end,
        ok = erllama:cancel(R),
        receive {{erllama_done, R, #{{finish_reason := cancelled}}}} -> Answers
        after 20000 -> late end
    end""")
    assert seen == f"[{','.join(f'{{error,{reason}}}' for reason in BAD_CALLS.values())}]"


def test_a_template_that_loops_is_stopped_while_a_stream_goes_on(llm: Serving) -> None:
    seen = llm.eval(f"""begin
        {{ok, R}} = erllama:infer({SMOL}, [504, 2644], #{{response_tokens => 900}}, self()),
        receive {{erllama_token_id, R, _}} -> ok end,
        Self = self(),
        Loops = #{{messages => [], chat_template => <<"{LOOP}">>}},
        spawn(fun() -> Self ! {{answer, erllama:apply_chat_template({SMOL}, Loops)}} end),
        Answer = receive {{answer, Given}} -> Given after 20000 -> late end,
        {{message_queue_len, Seen}} = process_info(self(), message_queue_len),
        ok = erllama:cancel(R),
        receive {{erllama_done, R, _}} -> {{Answer, Seen > 20}} after 20000 -> late end
    end""")
    assert seen == "{{error,template_failed},true}"


def test_cancel_in_prefill(llm: Serving) -> None:
    seen = llm.eval(f"""begin
        Prompt = lists:map(fun(I) -> 1000 + I * 7 end, lists:seq(1, 1000)),
        {{ok, R}} = erllama:infer({SMOL}, Prompt, #{{}}, self()),
        ok = erllama:cancel(R),
        receive
            {{erllama_done, R, #{{cancelled := true, completion_tokens := 0, prompt_tokens := 1000,
                                 committed_tokens := C}}}} -> C < 1000
        after 20000 -> late end
    end""")
    assert seen == "true"


def test_a_truncated_file_harms_nobody(llm: Serving, root: Path) -> None:
    seen = llm.eval(f"""begin
        {{error, Why}} = erllama:load_model(#{{model_path => "{root}/truncated.gguf"}}),
        {{ok, _}} = erllama:complete({SMOL}, <<"still here">>, #{{response_tokens => 1}}),
        Why
    end""")
    assert seen in ("load_failed", "malformed_gguf")


def test_a_schema_is_a_map_or_text_and_its_reply_satisfies_it(llm: Serving) -> None:
    seen = llm.eval(f"""begin
        Map = #{{type => object, <<"properties">> => #{{<<"a">> => #{{enum => [<<"x">>, null]}}}},
                required => [<<"a">>]}},
        Text = <<"{{\\"type\\": \\"object\\", \\"properties\\": {{\\"a\\": {{\\"enum\\": "
                 "[\\"x\\", null]}}}}, \\"required\\": [\\"a\\"]}}">>,
        Ask = fun(Schema) ->
            {{ok, #{{reply := Reply, finish_reason := stop}}}} =
                erllama:complete({SMOL}, <<"JSON: ">>, #{{json_schema => Schema}}),
            Reply
        end,
        Same = Ask(Map) =:= Ask(Text),
        Bad = erllama:complete({SMOL}, <<"JSON: ">>, #{{json_schema => #{{'not' => true}}}}),
        Both = erllama:complete({SMOL}, <<"JSON: ">>,
                                #{{json_schema => true, grammar => <<"root ::= \\"a\\"">>}}),
        {{ok, Tokens}} = erllama:tokenize({SMOL}, <<"JSON: ">>),
        Stream = erllama:infer({SMOL}, Tokens, #{{json_schema => #{{type => text}}}}, self()),
        {{Same, Bad, element(1, element(2, Both)), element(1, Stream)}}
    end""")
    assert seen == (
        '{true,{error,{invalid,json_schema,<<"#/not: not is not supported">>}},invalid,error}'
    )


def test_log_probabilities_are_maps_of_floats(llm: Serving) -> None:
    seen = llm.eval(f"""begin
        Prompt = <<"The capital of France is">>,
        Opts = #{{response_tokens => 2, logprobs => 3}},
        {{ok, #{{logprobs := Told, generated := Ids, stats := Stats}}}} =
            erllama:complete({SMOL}, Prompt, Opts),
        [#{{token := T, text := Text, logprob := P, top := Top}} | _] = Told,
        #{{token := T, text := Text, logprob := P}} = hd(Top),
        {{ok, Tokens}} = erllama:tokenize({SMOL}, Prompt),
        {{ok, R}} = erllama:infer({SMOL}, Tokens, Opts, self()),
        Collect = fun C() ->
            receive
                {{erllama_token, R, _}} -> C();
                {{erllama_done, R, _}} -> [];
                {{Kind, R, What}} -> [{{Kind, What}} | C()]
            end
        end,
        [{{erllama_token_id, T}}, {{erllama_logprobs, #{{token := T, logprob := Again}}}} | _] =
            Collect(),
        {{[maps:get(token, One) || One <- Told] =:= Ids, is_binary(Text), is_float(P), P =< 0.0,
          length(Top), abs(P - Again) < 0.5, maps:is_key(logprobs, Stats),
          erllama:complete({SMOL}, Prompt, #{{logprobs => 21}})}}
    end""")
    assert seen == "{true,true,true,true,3,true,false,{error,{invalid,logprobs,21}}}"
