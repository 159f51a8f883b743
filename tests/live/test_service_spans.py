"""Thinking and tool calls over the wire: the messages a peer gets, and in which order."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator

import pytest

from erllama_py import api
from erllama_py.config import EVERYDAY_POLICY
from erllama_py.testing import stub_model
from tests.live.erlnode import ErlNode
from tests.live.serving import Serving
from tests.live.test_service_streams import COLLECT
from tests.thinkers import thinker_path

SIGNATURE = "4e3eaa89b237fca14269a3636403dd53a6b2067c36825f5497dd40af083833de"
"""The original stub's, of sequence 0."""


@pytest.fixture(scope="module")
def llm(peer: ErlNode) -> Iterator[Serving]:
    """The node with stubs that think, call tools, and do both."""
    serving = Serving(peer)
    with (
        stub_model("thinks", thinking_capable=True),
        stub_model("calls", tool_call_capable=True),
        stub_model("both", thinking_capable=True, tool_call_payload_capable=True),
    ):
        yield serving
    serving.stop()


def names(llm: Serving, model: str, params: str) -> str:
    """Return the messages of a stream by what tells them apart, texts and stats left out."""
    return llm.eval(f"""begin
        {{ok, R}} = erllama:infer(<<"{model}">>, [1, 2, 3], {params}, self()),
        Name = fun({{erllama_token, {{Kind, Bin}}}}) when is_binary(Bin) -> Kind;
                  ({{erllama_token, Bin}}) when is_binary(Bin) -> token;
                  ({{erllama_token_id, Id}}) when is_integer(Id) -> id;
                  ({{Kind, _}}) -> Kind end,
        lists:map(Name, ({COLLECT})(R))
    end""")


def test_thinking_is_closed_before_the_reply(llm: Serving) -> None:
    asked = "#{response_tokens => 2, thinking => enabled}"
    assert names(llm, "thinks", asked) == (
        "[thinking_delta,thinking_delta,erllama_thinking_end,token,id,token,id,erllama_done]"
    )


def test_the_stub_signs_as_the_original_s_does(llm: Serving) -> None:
    seen = llm.eval(f"""begin
        Params = #{{response_tokens => 1, thinking => enabled}},
        {{ok, R}} = erllama:infer(<<"thinks">>, [1], Params, self()),
        [{{erllama_token, {{thinking_delta, <<"1">>}}}}, {{erllama_token, {{thinking_delta, A}}}},
         {{erllama_thinking_end, Sig}} | _] = ({COLLECT})(R),
        {{A, binary_to_list(binary:encode_hex(Sig))}}
    end""")
    assert seen == f'{{<<"2">>,"{SIGNATURE.upper()}"}}'


def test_thinking_and_a_tool_call(llm: Serving) -> None:
    asked = "#{response_tokens => 2, thinking => enabled}"
    assert names(llm, "both", asked) == (
        "[thinking_delta,thinking_delta,erllama_thinking_end,"
        "tool_call_delta,tool_call_delta,tool_call_delta,tool_call_delta,erllama_tool_call_end,"
        "token,id,token,id,erllama_done]"
    )


def test_a_call_is_its_deltas(llm: Serving) -> None:
    seen = llm.eval(f"""begin
        {{ok, R}} = erllama:infer(<<"calls">>, [1], #{{response_tokens => 1}}, self()),
        Seen = ({COLLECT})(R),
        [Full] = [F || {{erllama_tool_call_end, F}} <- Seen],
        Full = iolist_to_binary([D || {{erllama_token, {{tool_call_delta, D}}}} <- Seen])
    end""")
    assert seen == '<<"34">>'


def test_a_budget_and_one_close(llm: Serving) -> None:
    asked = "#{response_tokens => 3, thinking => enabled, thinking_budget_tokens => 1}"
    assert names(llm, "thinks", asked) == (
        "[thinking_delta,erllama_thinking_end,token,id,token,id,token,id,erllama_done]"
    )


@pytest.mark.parametrize("thinking", ["disabled", "true", '<<"enabled">>'])
def test_without_the_option_it_is_text(llm: Serving, thinking: str) -> None:
    asked = f"#{{response_tokens => 2, thinking => {thinking}}}"
    assert names(llm, "thinks", asked) == "[token,id,token,id,erllama_done]"


def test_a_completion_has_the_documented_keys_and_the_answer_alone(llm: Serving) -> None:
    seen = llm.eval("""begin
        Asked = #{response_tokens => 1, thinking => enabled},
        {ok, #{reply := Reply, generated := [Id], context_tokens := All, stats := Stats} = Map} =
            erllama:complete(<<"both">>, <<"a b">>, Asked),
        Reply = integer_to_binary(Id),
        {maps:size(Map), maps:size(Stats), length(All)}
    end""")
    # Two of the prompt, three of thinking, five of the call, one of the answer.
    assert seen == "{9,10,11}"


@pytest.mark.model
def test_a_model_with_markers_in_its_load_config(
    llm: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERLLAMA_THINKING_SIGNING_KEY", "of the node")
    config = {
        "model_path": thinker_path("plain"),
        "policy": EVERYDAY_POLICY,
        "context_opts": {"n_threads": 1, "n_threads_batch": 1},
        "thinking_markers": {"start": "<think>", "end": "</think>"},
        "tool_call_markers": {"start": "<tool_call>", "end": "</tool_call>"},
    }
    with api.load_model("toy", config):
        seen = llm.eval(f"""begin
            Grammar = <<"root ::= \\"<think>\\" [0-9]{{4}} \\"</think>\\" \\" ok\\" ",
                        "\\"<tool_call>\\" \\"{{\\" [a-z]{{3}} \\"}}\\" \\"</tool_call>\\"">>,
            {{ok, Tokens}} = erllama:tokenize(<<"toy">>, <<"Once upon a time">>),
            Params = #{{grammar => Grammar, thinking => enabled, response_tokens => 30}},
            {{ok, R}} = erllama:infer(<<"toy">>, Tokens, Params, self()),
            Seen = ({COLLECT})(R),
            [{{erllama_thinking_end, Sig}}] = [E || {{erllama_thinking_end, _}} = E <- Seen],
            [Full] = [F || {{erllama_tool_call_end, F}} <- Seen],
            Of = fun(Kind) -> [D || {{erllama_token, {{K, D}}}} <- Seen, K =:= Kind] end,
            Text = iolist_to_binary([T || {{erllama_token, T}} <- Seen, is_binary(T)]),
            Thought = iolist_to_binary(Of(thinking_delta)),
            Full = iolist_to_binary(Of(tool_call_delta)),
            {{Text, Thought, Full, binary_to_list(binary:encode_hex(Sig))}}
        end""")
    found = re.fullmatch(r'\{<<" ok">>,<<"(\d{4})">>,<<"\{[a-z]{3}\}">>,"([0-9A-F]{64})"\}', seen)
    assert found, seen
    expected = hmac.digest(b"of the node", found[1].encode(), hashlib.sha256)
    assert found[2] == expected.hex().upper()
