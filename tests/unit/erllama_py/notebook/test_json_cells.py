"""``%%erllama --json-schema``: the parsed reply is what is bound; ``--logprobs`` is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from erllama_py import api
from erllama_py._notebook.args import BadUsage
from erllama_py.errors import ErllamaError
from tests.models import mamba_path

SCHEMA = {"properties": {"a": {"enum": ["yes", "no"]}, "b": {"const": 7}}, "required": ["a", "b"]}


@pytest.fixture(scope="module")
def noise() -> Iterator[api.Model]:
    """A model that says nothing by itself: all sense in a reply is the schema's."""
    config = {"model_path": mamba_path(), "context_opts": {"n_ctx": 512, "n_threads": 1}}
    with api.load_model("noise", config) as loaded:
        yield loaded


@pytest.mark.parametrize("form", ["variable", "text", "file", "class"])
def test_the_name_is_bound_to_the_object(form: str, shell: Any, noise: Any, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))

    class Pydantic:
        @staticmethod
        def model_json_schema() -> dict[str, Any]:
            return SCHEMA

    forms = {"variable": SCHEMA, "text": json.dumps(SCHEMA), "class": Pydantic}
    shell.ip.user_ns["wanted"] = forms.get(form)
    named = path if form == "file" else "wanted"
    shell.run(f"%%erllama --model noise --json-schema {named} -o answer --logprobs 2\nwell?")
    answer = shell.ip.user_ns["answer"]
    assert answer in ({"a": "yes", "b": 7}, {"a": "no", "b": 7})
    assert shell.shown[0]["data"]["application/json"] == answer
    reply = shell.ip.user_ns["_erllama"]
    assert json.loads(reply.text) == answer
    assert [one["token"] for one in reply.logprobs] == reply.tokens
    assert {len(one["top"]) for one in reply.logprobs} == {2}


def test_a_reply_that_was_cut_binds_nothing_and_is_kept(shell: Any, noise: Any) -> None:
    shell.ip.user_ns |= {"wanted": SCHEMA, "answer": "before"}
    error = shell.error("%%erllama --model noise --json-schema wanted -o answer --max 3\nwell?")
    assert isinstance(error, ErllamaError)
    assert "cut after 3 tokens" in str(error)
    assert shell.ip.user_ns["answer"] == "before"
    assert len(shell.ip.user_ns["_erllama"].tokens) == 3


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "it is None"),
        ({"type": "thing"}, "#/type: type must be one of"),
        ("no json", "it is no JSON"),
    ],
)
def test_what_is_no_schema_is_refused(shell: Any, noise: Any, value: Any, words: str) -> None:
    shell.ip.user_ns["wanted"] = value
    assert words in str(shell.error("%%erllama --model noise --json-schema wanted\nwell?"))


def test_a_name_that_is_neither_variable_nor_file(shell: Any, noise: Any) -> None:
    error = shell.error("%%erllama --model noise --json-schema nowhere.json\nwell?")
    assert isinstance(error, BadUsage)
    assert "nowhere.json: No such file" in str(error)
