"""Our renderings beside llama.cpp's, which knows some fifty formats by heart."""

from __future__ import annotations

import ctypes
import json

import llama_cpp.llama_cpp as native
import pytest

from erllama_py._templates.child import Templates
from erllama_py._templates.families import FAMILIES
from tests.models import smollm2_path

SYSTEM, USER, REPLY, AGAIN = (
    {"role": "system", "content": "Be brief.\nAnd kind."},
    {"role": "user", "content": 'Who\'s there? <b>"quoted"</b> & {{ braces }}'},
    {"role": "assistant", "content": "Zoë, {% naturally %}."},
    {"role": "user", "content": "Zoë who? 🙂"},
)
PADDED = [{**one, "content": f"  {one['content']} \n"} for one in (SYSTEM, USER, REPLY, AGAIN)]
CONVERSATIONS = {
    "a question": [USER],
    "a system text": [SYSTEM, USER],
    "turns": [USER, REPLY, AGAIN],
    "turns after a system text": [SYSTEM, USER, REPLY, AGAIN],
    "whitespace around": PADDED,
    "nothing said": [{"role": "user", "content": ""}],
}


def by_llama_cpp(template: str, messages: list[dict[str, str]], *, opening: bool = True) -> str:
    """What ``llama_chat_apply_template`` makes of it."""
    kept = [(one["role"].encode(), one["content"].encode()) for one in messages]
    array = (native.llama_chat_message * len(kept))(*(native.llama_chat_message(*k) for k in kept))
    buffer = ctypes.create_string_buffer(1 << 14)
    size = native.llama_chat_apply_template(
        template.encode(), array, len(kept), opening, buffer, len(buffer)
    )
    assert 0 <= size < len(buffer), f"llama.cpp does not render {template!r}"
    return buffer.raw[:size].decode()


def by_us(template: str, messages: list[dict[str, str]], *, opening: bool = True) -> str:
    """What the sandbox makes of it."""
    variables = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": opening}
    chat = {"template": template, "messages": messages, "system": None, "tools": None}
    answer = Templates().answer(json.dumps({**chat, "variables": variables}).encode())
    assert answer[:1] == b"T", answer
    return answer[1:].decode()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_format_by_name_is_llama_cpps(family: str) -> None:
    for what, messages in CONVERSATIONS.items():
        for opening in (True, False):
            ours = by_us(FAMILIES[family], messages, opening=opening)
            assert ours == by_llama_cpp(family, messages, opening=opening), (what, opening)


@pytest.fixture(scope="module")
def smollm2_template() -> str:
    """The template in SmolLM2's file."""
    native.llama_backend_init()
    params = native.llama_model_default_params()
    params.vocab_only = True
    model = native.llama_model_load_from_file(smollm2_path().encode(), params)
    try:
        text: bytes = native.llama_model_chat_template(model, None)
        return text.decode()
    finally:
        native.llama_model_free(model)


@pytest.mark.model
def test_a_files_template_is_llama_cpps_and_says_more_where_it_says_more(
    smollm2_template: str,
) -> None:
    """It has a system text of its own for chats without one, which llama.cpp leaves out."""
    own = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n"
    )
    for what, messages in CONVERSATIONS.items():
        theirs = by_llama_cpp(smollm2_template, messages)
        without = messages[0]["role"] != "system"
        assert by_us(smollm2_template, messages) == (own if without else "") + theirs, what


# What published templates of these formats do in their own words, as short as they can be.
SAID_BY_JINJA = {
    # Raises for system texts: they go before the user's, where llama.cpp puts them.
    "gemma": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}{{ '<start_of_turn>' + "
        "('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + "
        "'<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    # Wants users and assistants by turns, and knows nobody else.
    "mistral-v1": (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
        "{% if m.role == 'user' %}{{ ' [INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    ),
    # Knows blocks only, as templates of models that see pictures do.
    "llama3": (
        "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
        "{% for b in m.content %}{% if b.type == 'text' %}{{ b.text | trim }}{% endif %}"
        "{% endfor %}{{ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    # Splits a leading system text off, and joins it to what the user says first.
    "llama2-sys": (
        "{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\n' + messages[0].content + "
        "'\n<</SYS>>\n\n' %}{% set rest = messages[1:] %}{% else %}{% set s = '' %}"
        "{% set rest = messages %}{% endif %}{% for m in rest %}"
        "{% if m.role == 'user' %}{{ '[INST] ' + (s if loop.first else '') + m.content + "
        "' [/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("family", SAID_BY_JINJA)
@pytest.mark.parametrize("what", [one for one in CONVERSATIONS if one != "whitespace around"])
def test_a_template_that_needs_a_shape_of_its_own_says_the_same(family: str, what: str) -> None:
    messages = CONVERSATIONS[what]
    assert by_us(SAID_BY_JINJA[family], messages) == by_llama_cpp(family, messages)


def test_where_they_differ_by_design() -> None:
    """``trim`` is Jinja's, of any whitespace; llama.cpp's knows that of ASCII."""
    messages = [{"role": "user", "content": "hi\N{NO-BREAK SPACE}"}]
    ours, theirs = by_us(FAMILIES["llama3"], messages), by_llama_cpp("llama3", messages)
    assert theirs == ours.replace("hi", "hi\N{NO-BREAK SPACE}")
