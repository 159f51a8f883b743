"""What real templates use, and the shapes a chat is put into for them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from erllama_py._templates.child import Templates
from erllama_py._templates.request import read_chat

TOOL = {"name": "weather", "description": "now", "schema": {"type": "object", "properties": {}}}


def answer(template: str, messages: Any = (), **request: Any) -> bytes:
    chat = read_chat({"messages": list(messages), **request})
    variables = {"bos_token": "<s>", "eos_token": "</s>"} | chat.variables
    job = chat._asdict() | {"template": template, "variables": variables}
    return Templates().answer(json.dumps(job).encode())


def rendered(template: str, messages: Any = (), **request: Any) -> str:
    got = answer(template, messages, **request)
    assert got[:1] == b"T", got
    return got[1:].decode()


def refused(template: str, messages: Any = (), **request: Any) -> tuple[str, str]:
    got = answer(template, messages, **request)
    assert got[:1] == b"E", got
    reason, words, _ = json.loads(got[1:])
    return reason, words


USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "be kind"}
SAY = "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}"


class TestFeatures:
    def test_special_tokens_and_the_opening(self) -> None:
        template = "{{ bos_token }}{% if add_generation_prompt %}A:{% endif %}{{ eos_token }}"
        assert rendered(template) == "<s>A:</s>"
        assert rendered(template, add_generation_prompt=False) == "<s></s>"

    def test_blocks_take_their_lines_whitespace(self) -> None:
        assert rendered("a\n  {% if true %}\nb\n  {% endif %}\nc\n") == "a\nb\nc"

    def test_break_continue_and_namespace(self) -> None:
        template = (
            "{% set n = namespace(sum=0) %}{% for i in range(9) %}{% if i == 2 %}{% continue %}"
            "{% endif %}{% if i == 5 %}{% break %}{% endif %}{% set n.sum = n.sum + i %}"
            "{% endfor %}{{ n.sum }}"
        )
        assert rendered(template) == "8"

    def test_generation_marks_and_says_the_same(self) -> None:
        assert rendered("a{% generation %}{{ 'b' }}{% endgeneration %}c") == "abc"
        assert refused("{% generation %}")[0] == "template_failed"

    def test_json_is_as_models_know_it(self) -> None:
        value = {"chat_template_kwargs": {"v": {"z": "<é>&'", "a": [1, 2.5, True, None]}}}
        assert rendered("{{ v | tojson }}", **value) == (
            '{"z": "<é>&\'", "a": [1, 2.5, true, null]}'
        )
        assert rendered("{{ v | tojson(indent=1) }}", **value).startswith('{\n "z"')
        assert rendered("{{ v.a | tojson(separators=(',', ':')) }}", **value) == "[1,2.5,true,null]"
        assert "\\u00e9" in rendered("{{ v | tojson(ensure_ascii=true) }}", **value)
        assert rendered("{{ v | tojson(sort_keys=true) }}", **value).startswith('{"a"')

    def test_a_date(self) -> None:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", rendered("{{ strftime_now('%Y-%m-%d') }}"))

    def test_variables_of_the_callers(self) -> None:
        template = (
            "{% if enable_thinking is defined and not enable_thinking %}no{% else %}yes{% endif %}"
        )
        assert rendered(template) == "yes"
        assert rendered(template, chat_template_kwargs={"enable_thinking": False}) == "no"
        taken = {"messages": [], "bos_token": "?", "add_generation_prompt": False}
        assert rendered(SAY, [USER], chat_template_kwargs=taken) == "[user: hi]"

    def test_bytes_that_are_no_text_come_out_as_they_went_in(self) -> None:
        assert answer(SAY, [{"role": "user", "content": b"\xff\xfe"}]) == b"T[user: \xff\xfe]"


class TestRefusals:
    def test_a_template_says_why_in_its_own_words(self) -> None:
        template = "{{ raise_exception('Roles must alternate!') }}"
        assert refused(template) == ("template_failed", "Roles must alternate!")
        assert len(refused("{{ raise_exception('a' * 100000) }}")[1]) == 1000

    def test_a_template_that_is_none_names_the_line(self) -> None:
        reason, words = refused("one\n{% if %}")
        assert (reason, words[:7]) == ("template_failed", "line 2:")

    @pytest.mark.parametrize(
        "template",
        [
            "{{ ''.__class__.__mro__ }}",
            "{{ cycler.__init__.__globals__ }}",
            "{{ lipsum.__globals__ }}",
            "{{ self.__init__.__globals__ }}",
            "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
            "{{ messages.append(1) }}",
            "{% for m in messages %}{{ messages.append(m) }}{% endfor %}",
            "{{ messages[0].update(role='system') }}",
            "{{ (messages | map(attribute='__class__') | first).mro() }}",
            "{% include '/etc/passwd' %}",
            "{% import 'os' as os %}",
            "{% for i in range(10 ** 9) %}{% endfor %}",
            "{{ 'a' * 10 ** 5 }}" * 100,
            "{{ raise_exception.__globals__['json'] }}",
            "{{ strftime_now.__code__.co_consts }}",
        ],
    )
    def test_what_it_must_not_reach_it_does_not(self, template: str) -> None:
        assert refused(template, [USER])[0] in ("template_failed", "too_large")

    @pytest.mark.parametrize(
        "template",
        [
            "{{ '' | attr('__class__') }}",
            "{{ '{0.__class__}'.format(1) }}",
            "{{ '{a.__class__}'.format_map({'a': 1}) }}",
            "{{ ''['__class__'] }}",
            "{{ raise_exception.__globals__ }}",
        ],
    )
    def test_an_attribute_is_nothing_where_it_is_only_shown(self, template: str) -> None:
        assert rendered(template) == ""


class TestShapes:
    def test_a_system_text_is_the_first_message(self) -> None:
        assert rendered(SAY, [SYSTEM, USER], system="first") == (
            "[system: first][system: be kind][user: hi]"
        )

    def test_system_text_that_is_refused_or_left_out_stands_before_the_users(self) -> None:
        strict = (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}"
            "{% endif %}" + SAY
        )
        deaf = SAY.replace("in messages", "in messages if m.role != 'system'")
        for template in (strict, deaf):
            assert rendered(template, [SYSTEM, USER]) == "[user: be kind\n\nhi]"
            assert rendered(template, [SYSTEM, USER], system="a") == "[user: a\n\nbe kind\n\nhi]"
            assert rendered(template, [SYSTEM]) == "[user: be kind]"
            said = {"role": "assistant", "content": "yes"}
            assert rendered(template, [SYSTEM, said, USER]) == (
                "[user: be kind][assistant: yes][user: hi]"
            )

    def test_tools_go_where_the_template_knows_them(self) -> None:
        knows = "{% for t in tools %}{{ t | tojson }}{% endfor %}" + SAY
        seen = rendered(knows, [USER], tools=[TOOL], system="be kind")
        said, _, rest = seen.partition("[")
        assert json.loads(said)["function"]["name"] == "weather"
        assert rest == "system: be kind][user: hi]"

    def test_tools_are_listed_where_it_does_not(self) -> None:
        tools = [TOOL, {"name": "g"}]
        assert rendered(SAY, [], tools=tools, system="be nice") == (
            "[system: be nice\n\nAvailable tools:\n  - weather: now\n  - g\n]"
        )
        assert rendered(SAY, [], tools=[]) == "[system: Available tools:\n]"
        mentions = "{# tools #}" + SAY
        assert "Available tools" in rendered(mentions, [], tools=tools)

    def test_blocks_for_a_template_that_knows_nothing_else(self) -> None:
        blocks = (
            "{% for m in messages %}{% for b in m.content %}({{ b.text }}){% endfor %}{% endfor %}"
        )
        assert rendered(blocks, [USER, SYSTEM]) == "(hi)(be kind)"

    def test_arguments_are_what_the_template_shows_well(self) -> None:
        head = "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        tail = "{% endfor %}{% endfor %}"
        as_map = head + "{{ c.function.arguments | tojson }}" + tail
        as_text = head + "{{ c.function.arguments }}" + tail
        for given in ({"city": "Ulm"}, '{"city": "Ulm"}'):
            call = {"id": "c", "function": {"name": "f", "arguments": given}}
            asked = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
            for template in (as_map, as_text):
                assert rendered(template, asked) == '{"city": "Ulm"}'

    def test_a_call_without_content(self) -> None:
        call = {"function": {"name": "f", "arguments": {}}}
        asked = [USER, {"role": "assistant", "tool_calls": [call]}]
        careless = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
        assert rendered(careless, asked) == "[hi][]"
        careful = (
            "{% for m in messages %}{% if m.content is none %}calls "
            "{{ m.tool_calls[0].function.name }}{% else %}[{{ m.content }}]{% endif %}{% endfor %}"
        )
        assert rendered(careful, asked) == "[hi]calls f"
