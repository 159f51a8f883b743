"""Our renderings beside llama.cpp's, which knows some fifty formats by heart."""

from __future__ import annotations

import ctypes
import json

import llama_cpp.llama_cpp as native
import pytest

from erllama_py._templates.child import Templates
from erllama_py._templates.families import FAMILIES

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
