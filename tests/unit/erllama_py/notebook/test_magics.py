"""The cell magic on the stub model, in a shell without a front end."""

from __future__ import annotations

from typing import Any

import pytest
from IPython.core.error import UsageError

from erllama_py import api, testing
from erllama_py.errors import ErllamaError
from erllama_py.types import Event, Ref


class Spy:
    """Stands before the façade and notes the prompts that reach it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.raw: list[str] = []
        self.chats: list[dict[str, Any]] = []
        self.options: list[dict[str, Any]] = []
        tokenize, chat, infer = api.tokenize, api.apply_chat_template, api.infer

        def spy_tokenize(model: Any, text: Any) -> Any:
            self.raw.append(text)
            return tokenize(model, text)

        def spy_chat(model: Any, request: Any) -> Any:
            self.chats.append(request)
            return chat(model, request)

        def spy_infer(model: Any, tokens: Any, params: Any) -> Any:
            self.options.append(params)
            return infer(model, tokens, params)

        monkeypatch.setattr(api, "tokenize", spy_tokenize)
        monkeypatch.setattr(api, "apply_chat_template", spy_chat)
        monkeypatch.setattr(api, "infer", spy_infer)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """What reaches the façade, which then works as ever."""
    return Spy(monkeypatch)


# -- the cell magic ------------------------------------------------------------------------


def test_a_cell_is_one_chat_message(shell: Any, stub: Any, spy: Spy) -> None:
    reply, summary = shell.run("%%erllama --max 3\nhello there")
    assert spy.chats == [{"messages": [{"role": "user", "content": "hello there"}]}]
    assert reply == shell.ip.user_ns["_erllama"].text != ""
    assert "cold" in summary
    assert "stopped at the limit of 3 tokens (--max)" in summary


def test_the_reply_is_displayed_once_with_its_metadata(shell: Any, stub: Any) -> None:
    shell.run("%%erllama --max 3\nhello there")
    first = shell.shown[0]
    assert set(first["data"]) == {"text/plain", "text/markdown"}
    metadata = first["metadata"]["erllama"]
    assert metadata["model"] == "stub"
    assert metadata["fingerprint"] == "00" * 32
    assert (metadata["finish_reason"], metadata["completion_tokens"]) == ("length", 3)
    assert (metadata["cache_hit_kind"], metadata["prefix_len"]) == ("cold", 0)
    assert len(shell.shown) == 2  # the reply and the line under it


def test_a_long_prompt_is_warm_the_second_time(shell: Any, stub: Any) -> None:
    cell = "%%erllama --max 3 -o answer\n" + " ".join(f"a{n}" for n in range(200))
    shell.run(cell)
    first = shell.ip.user_ns["answer"]
    *_, summary = shell.run(cell)
    second = shell.ip.user_ns["answer"]
    assert (first.hit, second.hit) == ("cold", "exact")
    assert second.prefix_len == second.prompt_tokens == first.prompt_tokens
    assert f"warm (exact): all {second.prompt_tokens} prompt tokens from the cache" in summary


@pytest.mark.parametrize(
    "body",
    [
        "braces {x} {{x}} {In[3]} {",
        "$HOME and $x and ${x} and `ls` and !ls and ?",
        """quotes ' " ''' \\" and \\n backslashes \\\\""",
        "naïve 日本 🙂 \u200d e\u0301",
        "%load_ext x\n%%bash\n# comment\n  indented\n\ttab",
        "two\n\nempty lines at the end\n\n",
        "x" * 300_000,
    ],
)
def test_the_body_reaches_the_model_to_the_byte(
    body: str, shell: Any, stub: Any, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erllama_py._notebook.magics.in_kernel", lambda shell: True)
    shell.ip.user_ns["x"] = "expanded"
    shell.run("%%erllama --raw --max 1\n" + body + "\n")
    assert spy.raw == [body]


def test_at_a_terminal_empty_lines_only_end_the_cell(shell: Any, stub: Any, spy: Spy) -> None:
    shell.run("%%erllama --raw --max 1\nhello\n\n\n")
    assert spy.raw == ["hello"]


def test_a_prompt_of_a_megabyte_is_refused_with_its_size(shell: Any, stub: Any) -> None:
    error = shell.error("%%erllama --raw\n" + "ab " * 350_000)
    assert isinstance(error, ErllamaError)
    assert "350000 tokens" in str(error)
    shell.run("%%erllama --max 1\nstill there?")


def test_options_reach_the_request(shell: Any, stub: Any, spy: Spy) -> None:
    shell.run(
        "%%erllama --max 4 --temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --seed 7 "
        "--repetition-penalty 1.2 --stop a --stop '\\n' --exactness bit\nhi"
    )
    assert spy.options == [
        {
            "response_tokens": 4,
            "temperature": 0.5,
            "top_k": 3,
            "top_p": 0.9,
            "min_p": 0.1,
            "seed": 7,
            "repetition_penalty": 1.2,
            "stop_sequences": ["a", "\n"],
            "exactness": "bit",
            "thinking": "enabled",
        }
    ]


def test_a_cell_may_draft_ahead(shell: Any, stub: Any, spy: Spy) -> None:
    shell.run("%%erllama --max 2 --speculate lookup\nhi")
    assert spy.options[0]["speculate"] == "lookup"
    assert "no model 'nobody' is loaded" in str(shell.error("%%erllama --speculate nobody\nhi"))
    shell.run("%%erllama --max 2 --speculate false\nhi")
    assert [options["speculate"] for options in spy.options[1:]] == [{"draft": "nobody"}, "false"]


def test_replies_stop_at_512_tokens_unless_configured(shell: Any, stub: Any, spy: Spy) -> None:
    shell.run("%%erllama\nhi")
    shell.run("%config ErllamaMagics.max_tokens = 5")
    *_, summary = shell.run("%%erllama\nhi")
    assert [options["response_tokens"] for options in spy.options] == [512, 5]
    assert "limit of 5 tokens" in summary


def test_a_full_context_is_not_called_a_limit(shell: Any) -> None:
    with testing.stub_model("small", context_opts={"n_ctx": 128}):
        *_, summary = shell.run("%%erllama --max 500\nhi")
    assert "the context is full" in summary


def test_a_stop_text_ends_the_reply(shell: Any, stub: Any) -> None:
    digit = shell.run("%%erllama --max 1 --raw\nhi")[0][0]
    *_, summary = shell.run(f"%%erllama --max 9 --raw --stop {digit}\nhi")
    assert shell.ip.user_ns["_erllama"].finish_reason == "stop"
    assert summary.endswith(f"stop at {digit!r}")


def test_system_and_chat(shell: Any, stub: Any, spy: Spy) -> None:
    shell.run("%%erllama --chat --system 'be brief' --max 1\nhi")
    assert spy.chats[0]["system"] == "be brief"


@pytest.mark.parametrize("option", ["--chat", "--system x"])
def test_raw_is_not_a_chat(option: str, shell: Any, stub: Any) -> None:
    assert "exclude each other" in str(shell.error(f"%%erllama --raw {option}\nhi"))


def test_without_a_template_the_text_goes_as_it_is(
    shell: Any, stub: Any, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: Any, request: Any) -> Any:
        raise ErllamaError("no_template")

    monkeypatch.setattr(api, "apply_chat_template", refuse)
    shell.run("%%erllama --max 1\nhi")
    assert spy.raw == ["hi"]
    assert shell.error("%%erllama --max 1 --chat\nhi").reason == "no_template"
    assert shell.error("%%erllama --max 1 --system s\nhi").reason == "no_template"


def test_variables_go_before_the_cell(shell: Any, stub: Any, spy: Spy) -> None:
    shell.ip.user_ns |= {"a": "text {a}", "b": 5}
    shell.run("%%erllama -i a -i b --raw --max 1\nquestion")
    shell.run("%%erllama -i a --raw --max 1")
    shell.run("%%erllama -i a --raw --max 1\n")
    assert spy.raw == ["text {a}\n\n5\n\nquestion", "text {a}", "text {a}"]


def test_a_reply_can_be_sent_on(shell: Any, stub: Any, spy: Spy) -> None:
    shell.run("%%erllama --max 1 -o first\nhi")
    shell.run("%%erllama --raw --max 1 -i first --fill\nand {{first}}")
    text = shell.ip.user_ns["first"].text
    assert spy.raw == [f"{text}\n\nand {text}"]


def test_fill_is_asked_for(shell: Any, stub: Any, spy: Spy) -> None:
    shell.ip.user_ns |= {"who": "Ada"}
    shell.run("%%erllama --fill --system 'for {{who}}' --max 1\nhi {{who}} {who}")
    assert spy.chats[0] == {
        "messages": [{"role": "user", "content": "hi Ada {who}"}],
        "system": "for Ada",
    }
    assert "not defined: x, y" in str(shell.error("%%erllama --fill\n{{x}} {{y}} {{who}}"))


def test_missing_variables_are_named_together(shell: Any, stub: Any) -> None:
    assert "not defined: nope, nor" in str(shell.error("%%erllama -i nope -i nor\nhi"))


@pytest.mark.parametrize("cell", ["%%erllama", "%%erllama\n", "%%erllama --max 3\n  \n\n"])
def test_an_empty_cell_is_an_error_that_counts(cell: str, shell: Any, stub: Any) -> None:
    error = shell.error(cell)
    assert not isinstance(error, UsageError)
    assert "the cell is empty" in str(error)


@pytest.mark.parametrize("name", ["2x", "a b", "for", ""])
def test_the_output_name_must_be_one(name: str, shell: Any, stub: Any) -> None:
    assert "cannot be the name of a variable" in str(shell.error(f"%%erllama -o '{name}'\nhi"))


def test_without_a_model_a_cell_says_how_to_load_one(shell: Any) -> None:
    error = shell.error("%%erllama\nhi")
    assert "no model is loaded" in str(error)
    assert "%erllama load smollm2" in str(error)


def test_an_unknown_model_names_the_loaded_ones(shell: Any, stub: Any) -> None:
    assert "loaded: stub" in str(shell.error("%%erllama --model other\nhi"))
    assert "did you mean stub?" in str(shell.error("%%erllama --model stubb\nhi"))
    assert "%erllama load smollm2" in str(shell.error("%%erllama --model smollm2\nhi"))


def test_the_newest_model_answers_unless_another_is_in_use(shell: Any, stub: Any) -> None:
    with testing.stub_model("second"):
        shell.run("%%erllama --max 1\nhi")
        assert shell.ip.user_ns["_erllama"].model == "second"
        assert shell.run("%erllama use stub") == ["Cells talk to stub now."]
        shell.run("%%erllama --max 1\nhi")
        assert shell.ip.user_ns["_erllama"].model == "stub"
        shell.run("%%erllama --max 1 --model second\nhi")
        assert shell.ip.user_ns["_erllama"].model == "second"


def test_a_model_that_dies_leaves_the_partial_reply_and_an_error(shell: Any) -> None:
    options = {"crash_at_step": 6, "step_delay_ms": 1.0}
    with testing.stub_model("frail", in_process=False, stub_opts=options):
        error = shell.error("%%erllama --max 50 -o part\nhi")
        assert isinstance(error, ErllamaError)
        assert "ended" in str(error)
        assert 0 < len(shell.ip.user_ns["part"].tokens) < 50
        assert shell.shown[0]["data"]["text/plain"] == shell.ip.user_ns["part"].text


# -- how replies and errors look -----------------------------------------------------------


class FakeStream(api.Stream):
    """A stream of given fragments, to show what the stub's digits cannot."""

    def __init__(self, fragments: list[bytes]) -> None:
        self._events = [
            *(
                event
                for data in fragments
                for event in (
                    Event("token", Ref(0), data=data),
                    Event("token_id", Ref(0), token_id=1),
                )
            ),
            Event("done", Ref(0), stats={"finish_reason": "stop", "cache_hit_kind": "cold"}),
        ]
        self._over = True
        self.ref = Ref(0)

    def get(self, timeout: float) -> Event | None:
        if not self._events:
            raise StopIteration
        return self._events.pop(0)

    @property
    def error(self) -> None:
        return None


def test_characters_cut_between_tokens_arrive_whole(
    shell: Any, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ["é".encode()[:1], "é".encode()[1:] + b" \xf0\x9f", b"\x99\x82 \x1b[1m", b"\xe6"]
    monkeypatch.setattr(api, "infer", lambda *_: FakeStream(parts))
    reply, _ = shell.run("%%erllama\nhi")
    assert reply == "é 🙂 [1m\N{REPLACEMENT CHARACTER}"


def test_json_is_shown_as_json(shell: Any, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "infer", lambda *_: FakeStream([b'```json\n{"a": ', b"[1]}\n```"]))
    shell.run("%%erllama -f json\nhi")
    assert shell.shown[0]["data"]["application/json"] == {"a": [1]}
    monkeypatch.setattr(api, "infer", lambda *_: FakeStream([b"not json"]))
    shell.run("%%erllama -f json\nhi")
    assert shell.shown[0]["data"] == {"text/plain": "not json"}


def test_text_is_shown_as_text(shell: Any, stub: Any) -> None:
    shell.run("%%erllama -f text --max 2\nhi")
    assert set(shell.shown[0]["data"]) == {"text/plain"}


def test_errors_are_short_and_whole_on_demand(shell: Any, stub: Any) -> None:
    short = shell.error("%%erllama --model nope\nhi")._render_traceback_()
    assert len(short) == 2
    assert short[1].startswith("  hint: ")
    whole = shell.error("%%erllama --traceback --model nope\nhi")._render_traceback_()
    assert any("models.py" in line for line in whole)


def test_the_reply_object(shell: Any, stub: Any) -> None:
    prompt = " ".join(f"w{n}" for n in range(30))
    shell.run(f"%%erllama --max 4 -o answer\n{prompt}")
    answer = shell.ip.user_ns["answer"]
    assert len(answer.tokens) == 4
    assert answer.finish_reason == "length"
    assert len(answer.finish_key) == 32
    assert answer.stats["completion_tokens"] == 4
    assert str(answer) == answer.text
    assert "4 tokens" in repr(answer)
    data, metadata = answer._repr_mimebundle_()
    assert data["text/markdown"] == answer.text
    assert metadata["erllama"]["completion_tokens"] == 4


# -- thinking ------------------------------------------------------------------------------


@pytest.fixture
def thinker() -> Any:
    """A stub that thinks, and calls a tool."""
    with testing.stub_model("thinker", thinking_capable=True, tool_call_capable=True) as model:
        yield model


def test_thinking_is_shown_above_the_reply_and_kept_beside_it(shell: Any, thinker: Any) -> None:
    shown, summary = shell.run("%%erllama --max 2 -o answer\nhello there")
    answer = shell.ip.user_ns["answer"]
    assert (answer.thinking, answer.tool_calls) == ("12", ["34"])
    assert shown == f"| 12\n\ntool call: 34\n\n{answer.text}"
    assert len(answer.tokens) == 2
    assert "thought for 3 tokens" in summary
    assert answer._repr_mimebundle_()[0]["text/plain"] == shown


def test_thinking_hidden_off_and_with_a_budget(shell: Any, thinker: Any) -> None:
    shown, _ = shell.run("%%erllama --max 2 --thinking hide -o answer\nhi")
    assert shown == f"tool call: 34\n\n{shell.ip.user_ns['answer'].text}"
    shell.run("%%erllama --max 2 --thinking off -o answer\nhi")
    assert shell.ip.user_ns["answer"].text == "<think>12"
    shell.run("%%erllama --max 2 --thinking-budget 1 -o answer\nhi")
    assert shell.ip.user_ns["answer"].thinking == "1"
    assert "MODE" not in str(shell.error("%%erllama --thinking loud\nhi"))
