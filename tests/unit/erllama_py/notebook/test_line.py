"""The line magic on the stub model, in a shell without a front end."""

from __future__ import annotations

from typing import Any

import pytest
from IPython.core.error import UsageError

from erllama_py import api, testing
from erllama_py._notebook import report


def test_help_lists_every_command(shell: Any) -> None:
    for code in ("%erllama", "%erllama help", "%erllama --help"):
        (text,) = shell.run(code)
        for word in ("load MODEL", "cache", "why [REPLY]", "%%erllama", "--temperature", "--fill"):
            assert word in text
    for code in ("%erllama help load", "%erllama load --help", "%erllama load smollm2 -h"):
        (text,) = shell.run(code)
        assert "--n-ctx" in text
    (text,) = shell.run("%%erllama --max 3 --help\nnobody is to hear this")
    assert "--temperature" in text
    assert "load MODEL" in shell.ip.find_line_magic("erllama").__doc__
    assert "there is no command 'lod'" in str(shell.error("%erllama help lod"))


def test_an_unknown_command_is_an_error(shell: Any) -> None:
    error = shell.error("%erllama lod smollm2")
    assert not isinstance(error, UsageError)
    assert "did you mean load?" in str(error)


def test_load_configures_for_short_prompts(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    load_model = api.load_model

    def load(model_id: str, config: Any) -> Any:
        seen.append((model_id, config))
        return load_model(model_id, {"backend": "stub", "in_process": True})

    monkeypatch.setattr(api, "load_model", load)
    line = "%erllama load 'some dir/Some.Q4.gguf' --n-ctx 2048 --slots 2 --threads 1"
    line += " --chat-template chatml"
    assert "Some.Q4 is ready" in shell.run(f"{line} --exactness bit")[0]
    api.unload("Some.Q4")
    ((model_id, config),) = seen
    assert model_id == "Some.Q4"
    assert config["model_path"] == "some dir/Some.Q4.gguf"
    assert config["exactness"] == "bit"
    assert config["chat_template"] == "chatml"
    assert config["context_size"] == 2048
    assert config["context_opts"] == {
        "n_ctx": 2048,
        "n_seq_max": 2,
        "n_threads": 1,
        "n_threads_batch": 1,
    }
    assert config["policy"]["min_tokens"] == config["policy"]["cold_min_tokens"] == 16


def test_loading_again_is_no_error_and_no_second_load(
    shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_model = api.load_model
    stub = {"backend": "stub", "in_process": True}
    monkeypatch.setattr(api, "load_model", lambda name, _: load_model(name, stub))
    assert "ready" in shell.run("%erllama load a.gguf --as one")[0]
    pid = api.model_info("one")["pid"]
    assert shell.run("%erllama load a.gguf --as one") == ["one is loaded already."]
    assert api.model_info("one")["pid"] == pid
    error = shell.error("%erllama load b.gguf --as one")
    assert error.reason == "already_loaded"
    assert "%erllama unload one" in str(error)
    assert shell.run("%erllama unload one") == ["one is unloaded."]
    assert "ready" in shell.run("%erllama load b.gguf --as one")[0]
    assert shell.run("%erllama unload") == ["one is unloaded."]
    assert "no model is loaded" in str(shell.error("%erllama unload"))


def test_a_file_that_is_not_there_is_named(shell: Any) -> None:
    assert "missing.gguf" in str(shell.error("%erllama load missing.gguf"))


def test_status_models_and_version(shell: Any, stub: Any) -> None:
    with testing.stub_model("b|c"):
        (plain,) = shell.run("%erllama status")
        assert "in use" in plain.splitlines()[-1]
        assert "b\\|c" in shell.shown[0]["data"]["text/markdown"]
        assert "smollm2" in shell.run("%erllama models")[0]
    assert "erllama-py 0." in shell.run("%erllama version")[0]
    api.unload("stub")
    assert shell.run("%erllama status") == ["No model is loaded."]


def test_the_cache_in_words_and_rows(shell: Any, stub: Any) -> None:
    cell = "%%erllama --max 2\n" + " ".join(f"c{n}" for n in range(120))
    before = api.counters()
    shell.run(cell)
    shell.run(cell)
    (plain,) = shell.run("%erllama cache")
    hits = before["hits_exact"] + before["hits_longest_prefix"] + before["hits_resume"] + 1
    assert f"{hits} hit" in plain
    assert f"({before['hits_exact'] + 1} exact" in plain
    assert "RAM: " in plain
    assert "after the prompt" in plain
    assert "<" not in shell.shown[0]["data"]["text/markdown"]


def test_without_a_front_end_the_live_view_is_a_table(shell: Any, stub: Any) -> None:
    table, words = shell.run("%erllama cache --live")
    assert "RAM: " in table
    assert "needs a notebook" in words


FOUND = {
    "equal": True,
    "same_tokens": True,
    "largest_difference": 0.0,
    "positions": 32,
    "kind": "exact",
    "prefix_len": 240,
    "exactness": "bit",
    "tier": "disk",
}


HIT = "(exact hit of 240 tokens, exactness bit, Disk)."


@pytest.mark.parametrize(
    ("differs", "words"),
    [
        ({}, "Bit for bit equal over 32 tokens " + HIT),
        (
            {"equal": False, "largest_difference": 1.11494, "exactness": "token"},
            "The same 32 tokens; their logits differ by up to 1.11 " + HIT.replace("bit", "token"),
        ),
        (
            {"equal": False, "same_tokens": False, "positions": 4, "largest_difference": 0.5},
            "Another token after 3; the logits differ by up to 0.5 " + HIT,
        ),
        ({"kind": "cold"}, "Bit for bit equal over 32 tokens (nothing found in the cache)."),
    ],
)
def test_what_two_runs_have_in_common_is_a_sentence(differs: dict[str, Any], words: str) -> None:
    assert report.verify_words({**FOUND, **differs}) == words


def test_a_text_is_verified_on_the_model_in_use(shell: Any, stub: Any) -> None:
    text = " ".join(f"v{n}" for n in range(40))
    (plain,) = shell.run(f'%erllama verify "{text}" --max 3')
    # The stub says something else in each run.
    assert plain.startswith("Another token after 0; ")
    assert "exact hit of 40 tokens" in plain
    assert shell.error('%erllama verify ""').reason == "empty_prompt"
