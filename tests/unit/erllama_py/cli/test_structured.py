"""``erllama complete --json-schema`` and ``--logprobs``, on a model that talks noise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models import mamba_path


@pytest.fixture
def schema(tmp_path: Path) -> str:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object", "properties": {"ok": {"const": true}}, "required": ["ok"]}')
    return str(path)


def test_the_reply_satisfies_the_schema(erllama, schema: str) -> None:
    told = erllama("complete", "well?", "--model", mamba_path(), "--json-schema", schema)
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout) == {"ok": True}


def test_log_probabilities_for_scripts_and_people(erllama, schema: str) -> None:
    asked = ("complete", "well?", "--model", mamba_path(), "--json-schema", schema)
    facts = json.loads(erllama(*asked, "--logprobs", "2", "--json").stdout)
    assert len(facts["logprobs"]) == facts["tokens"]
    assert facts["logprobs"][0]["text"] == "{"
    assert len(facts["logprobs"][0]["top"]) == 2
    lines = erllama(*asked, "--logprobs", "1").stdout.splitlines()
    shown = [line for line in lines if line.startswith("'{' -")]
    assert len(shown) == 1
    plain = json.loads(erllama(*asked, "--json").stdout)
    assert "logprobs" not in plain


def test_a_reply_that_was_cut_is_an_error(erllama, schema: str) -> None:
    told = erllama(
        "complete", "well?", "--model", mamba_path(), "--json-schema", schema, "--max", "2"
    )
    assert told.exit_code == 1
    assert told.stdout.startswith("{")
    assert "cut after 2 tokens" in told.stderr


def test_bad_values_are_named(erllama, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"not": {}}')
    told = erllama("complete", "x", "--model", mamba_path(), "--json-schema", str(bad))
    assert told.exit_code == 1
    assert "#/not: not is not supported" in told.stderr
    assert erllama("complete", "x", "--json-schema", str(tmp_path / "none")).exit_code == 2
    assert erllama("complete", "x", "--logprobs", "21").exit_code == 2
