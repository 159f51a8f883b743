"""Chat formats by name, for files that have no template, and one that is named only.

The names are llama.cpp's, and so is what comes out (``tests/unit/erllama_py/templates/
test_parity.py`` compares); the templates are written here, each as short as its format lets
it be.  Tokens that mark the end of a reply are spelt out, as the formats have them; BOS is the
tokenizer's.
"""

# ruff: noqa: RUF001 - DeepSeek's tokens are spelt with such bars

from __future__ import annotations

from typing import Final

__all__ = ("FAMILIES",)


def _turns(turn: str, opening: str, *, first: str = "") -> str:
    """Return a template that says every message alike.

    :param turn: what it says; ``r`` is the role, ``c`` the content.
    """
    return (
        first
        + "{%- for m in messages %}{% set r = m['role'] %}{% set c = m['content'] %}"
        + turn
        + "{%- endfor %}"
        + _opening(opening)
    )


def _opening(text: str) -> str:
    return "{%- if add_generation_prompt %}{{ '" + text + "' }}{% endif %}"


def _by_role(opening: str, *, system: str, user: str, assistant: str, first: str = "") -> str:
    """Return a template that says each role in its own way."""
    return _turns(
        f"{{%- if r == 'system' %}}{{{{ {system} }}}}"
        f"{{%- elif r == 'user' %}}{{{{ {user} }}}}"
        f"{{%- else %}}{{{{ {assistant} }}}}{{% endif %}}",
        opening,
        first=first,
    )


def _mistral(before: str, after: str, said: str = "c") -> str:
    """Return the older formats: a system text stands inside of the next instruction."""
    return "{%- set n = namespace(inside=false) %}" + _turns(
        f"{{%- if not n.inside %}}{{{{ '{before}[INST]{after}' }}}}"
        "{% set n.inside = true %}{% endif %}"
        "{%- if r == 'system' %}{{ c + '\\n\\n' }}"
        f"{{%- elif r == 'user' %}}{{{{ c + '{before}[/INST]' }}}}"
        f"{{%- else %}}{{{{ '{after}' + {said} + '</s>' }}}}"
        "{% set n.inside = false %}{% endif %}",
        "",
    )


def _mistral_v7(space: str) -> str:
    return _by_role(
        "",
        system=f"'[SYSTEM_PROMPT]{space}' + c + '[/SYSTEM_PROMPT]'",
        user=f"'[INST]{space}' + c + '[/INST]'",
        assistant=f"'{space}' + c + '</s>'",
    )


def _llama2(*, system: str, bos: str = "", said: str = "c") -> str:
    return "{{- '[INST] ' }}{%- set n = namespace(inside=true) %}" + _turns(
        f"{{%- set c = {said} %}}"
        f"{{%- if not n.inside %}}{{{{ '{bos}[INST] ' }}}}{{% set n.inside = true %}}{{% endif %}}"
        f"{{%- if r == 'system' %}}{{{{ {system} }}}}"
        "{%- elif r == 'user' %}{{ c + ' [/INST]' }}"
        "{%- else %}{{ c + '</s>' }}{% set n.inside = false %}{% endif %}",
        "",
    )


_SYS: Final = "'<<SYS>>\\n' + c + '\\n<</SYS>>\\n\\n'"

_GEMMA: Final = "{%- set n = namespace(system='') %}" + _turns(
    "{%- if r == 'system' %}{% set n.system = n.system + c | trim %}{% else %}"
    "{{- '<start_of_turn>' + ('model' if r == 'assistant' else r) + '\\n' }}"
    "{%- if n.system and r != 'assistant' %}{{ n.system + '\\n\\n' }}"
    "{% set n.system = '' %}{% endif %}"
    "{{- c | trim + '<end_of_turn>\\n' }}{% endif %}",
    "<start_of_turn>model\\n",
)

_ORION: Final = "{%- set n = namespace(system='') %}" + _turns(
    "{%- if r == 'system' %}{% set n.system = n.system + c %}"
    "{%- elif r == 'user' %}{{ 'Human: ' + (n.system + '\\n\\n' if n.system else '') + c"
    " + '\\n\\nAssistant: </s>' }}{% set n.system = '' %}"
    "{%- else %}{{ c + '</s>' }}{% endif %}",
    "",
)

_COMMAND_R: Final = _turns(
    "{{- '<|START_OF_TURN_TOKEN|><|' + {'system': 'SYSTEM', 'user': 'USER'}.get(r, 'CHATBOT')"
    " + '_TOKEN|>' + c | trim + '<|END_OF_TURN_TOKEN|>' }}",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
)

FAMILIES: Final[dict[str, str]] = {
    "chatml": _turns(
        "{{- '<|im_start|>' + r + '\\n' + c + '<|im_end|>\\n' }}", "<|im_start|>assistant\\n"
    ),
    "chatglm4": _turns("{{- '<|' + r + '|>\\n' + c }}", "<|assistant|>\\n", first="[gMASK]<sop>"),
    "command-r": _COMMAND_R,
    "deepseek": _by_role(
        "### Response:\\n",
        system="c",
        user="'### Instruction:\\n' + c + '\\n'",
        assistant="'### Response:\\n' + c + '\\n<|EOT|>\\n'",
    ),
    "deepseek2": _by_role(
        "Assistant:",
        system="c + '\\n\\n'",
        user="'User: ' + c + '\\n\\n'",
        assistant="'Assistant: ' + c + '<｜end▁of▁sentence｜>'",
    ),
    "deepseek3": _by_role(
        "<｜Assistant｜>",
        system="c + '\\n\\n'",
        user="'<｜User｜>' + c",
        assistant="'<｜Assistant｜>' + c + '<｜end▁of▁sentence｜>'",
    ),
    "exaone3": _by_role(
        "[|assistant|]",
        system="'[|system|]' + c | trim + '[|endofturn|]\\n'",
        user="'[|user|]' + c | trim + '\\n'",
        assistant="'[|assistant|]' + c | trim + '[|endofturn|]\\n'",
    ),
    "falcon3": _turns("{{- '<|' + r + '|>\\n' + c + '\\n' }}", "<|assistant|>\\n"),
    "gemma": _GEMMA,
    "granite": _turns(
        "{{- '<|start_of_role|>' + r + '<|end_of_role|>' + c + '<|end_of_text|>\\n' }}",
        "<|start_of_role|>assistant<|end_of_role|>",
    ),
    "llama2": _llama2(system="c + '\\n'"),
    "llama2-sys": _llama2(system=_SYS),
    "llama2-sys-bos": _llama2(system=_SYS, bos="<s>"),
    "llama2-sys-strip": _llama2(system=_SYS, said="c | trim"),
    "llama3": _turns(
        "{{- '<|start_header_id|>' + r + '<|end_header_id|>\\n\\n' + c | trim + '<|eot_id|>' }}",
        "<|start_header_id|>assistant<|end_header_id|>\\n\\n",
    ),
    "llama4": _turns(
        "{{- '<|header_start|>' + r + '<|header_end|>\\n\\n' + c | trim + '<|eot|>' }}",
        "<|header_start|>assistant<|header_end|>\\n\\n",
    ),
    "megrez": _turns(
        "{{- '<|role_start|>' + r + '<|role_end|>' + c + '<|turn_end|>' }}",
        "<|role_start|>assistant<|role_end|>",
    ),
    "minicpm": _by_role(
        "", system="c | trim", user="'<用户>' + c | trim + '<AI>'", assistant="c | trim"
    ),
    "mistral-v1": _mistral(" ", " "),
    "mistral-v3": _mistral("", " ", "c | trim"),
    "mistral-v3-tekken": _mistral("", ""),
    "mistral-v7": _mistral_v7(" "),
    "mistral-v7-tekken": _mistral_v7(""),
    "monarch": _turns(
        "{{- ('' if loop.first else '<s>') + r + '\\n' + c + '</s>\\n' }}", "<s>assistant\\n"
    ),
    "openchat": _by_role(
        "GPT4 Correct Assistant:",
        system="c + '<|end_of_turn|>'",
        user="'GPT4 Correct User: ' + c + '<|end_of_turn|>'",
        assistant="'GPT4 Correct Assistant: ' + c + '<|end_of_turn|>'",
    ),
    "orion": _ORION,
    "phi3": _turns("{{- '<|' + r + '|>\\n' + c + '<|end|>\\n' }}", "<|assistant|>\\n"),
    "phi4": _turns(
        "{{- '<|im_start|>' + r + '<|im_sep|>' + c + '<|im_end|>' }}",
        "<|im_start|>assistant<|im_sep|>",
    ),
    "smolvlm": _by_role(
        "Assistant:",
        system="c + '\\n\\n'",
        user="'User: ' + c + '<end_of_utterance>\\n'",
        assistant="'Assistant: ' + c + '<end_of_utterance>\\n'",
        first="<|im_start|>",
    ),
    "vicuna": _by_role(
        "ASSISTANT:",
        system="c + '\\n\\n'",
        user="'USER: ' + c + '\\n'",
        assistant="'ASSISTANT: ' + c + '</s>\\n'",
    ),
    "vicuna-orca": _by_role(
        "ASSISTANT:",
        system="'SYSTEM: ' + c + '\\n'",
        user="'USER: ' + c + '\\n'",
        assistant="'ASSISTANT: ' + c + '</s>\\n'",
    ),
    "zephyr": _turns("{{- '<|' + r + '|>\\n' + c + '<|endoftext|>\\n' }}", "<|assistant|>\\n"),
}
"""Templates by llama.cpp's names for their formats."""
