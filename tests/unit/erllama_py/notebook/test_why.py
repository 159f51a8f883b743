"""``%erllama why``: the latest cell's hit or miss in words."""

from __future__ import annotations

from typing import Any

from erllama_py import api, testing
from erllama_py._notebook.args import BadUsage
from erllama_py._notebook.why import why_report

ANSWER = {
    "reason": "diverged",
    "why": "150 of 153 tokens were found; token 150 is '<a|b>', where …",
    "kind": "partial",
    "via": "longest_prefix",
    "prompt_tokens": 153,
    "prefix_len": 150,
    "exactness": "token",
    "tiers": {"disk": 50, "ram": 100},
    "lookup_ms": 0.44,
    "restore_ms": 1.26,
    "nearest_row": {"key": b"\xab" * 32, "tokens": 200, "shared": 150},
    "first_difference": {
        "index": 150,
        "prompt_token": 1,
        "prompt_text": "<a|b>",
        "cached_token": 2,
        "cached_text": b"\xc3",
        "before": "the lamp\n",
    },
    "evicted_row": {"key": b"\xcd" * 32, "tokens": 160},
    "other_keys": [
        {"shared": 152, "differs": {"file": ("a" * 64, "b" * 64), "flash_attn": ("on", "")}}
    ],
}
COLD = {
    **ANSWER,
    **dict.fromkeys(("lookup_ms", "restore_ms", "nearest_row", "first_difference")),
    **dict.fromkeys(("evicted_row", "other_keys")),
    "why": "nothing is cached for this model",
    "kind": "cold",
    "prefix_len": 0,
    "tiers": {},
}


def test_the_report_says_what_was_hit_and_shows_the_fork() -> None:
    plain, markdown = why_report(ANSWER, "m")
    lines = plain.splitlines()
    assert lines[0] == (
        "partial on m: 150 of 153 tokens from RAM and disk · lookup 0.4 ms, restore 1.3 ms."
    )
    assert lines[1] == "150 of 153 tokens were found; token 150 is '<a|b>', where …."
    cells = [line.split("  ") for line in lines[5:]]
    assert [[cell.strip() for cell in line if cell] for line in cells] == [
        ["before it", r"'the lamp\n'", r"'the lamp\n'"],
        ["token 150", "'<a|b>' (1)", "'\N{REPLACEMENT CHARACTER}' (2)"],
        ["row abababab", "150 shared", "200 tokens"],
        ["row cdcdcdcd", "160 tokens of it", "evicted"],
        ["file", "a" * 23 + "…", "b" * 23 + "…"],
        ["flash_attn", "on", "not set"],
    ]
    assert r"\<a\|b\>" in markdown
    assert "<" not in markdown.replace(r"\<", "")


def test_a_context_that_ends_and_one_that_is_not_there() -> None:
    fork = {**ANSWER["first_difference"], "cached_token": None, "cached_text": None, "before": ""}
    (row,) = why_report({**COLD, "first_difference": fork}, "m").plain.splitlines()[5:]
    assert row.split() == ["token", "150", "'<a|b>'", "(1)", "ends"]
    (row,) = why_report({**COLD, "first_difference": {**fork, "index": 0}}, "m").plain.split("\n")[
        5:
    ]
    assert row.split()[-1] == "-"
    assert why_report(COLD, "m").plain == (
        "cold on m: 0 of 153 tokens.\nNothing is cached for this model."
    )


def test_the_latest_cell_is_explained(shell: Any, stub: Any) -> None:
    words = " ".join(f"y{n}" for n in range(60))
    shell.run(f"%%erllama --max 1 --raw -o first\n{words}")
    shell.run(f"%%erllama --max 1 --raw\n{words} and more")
    (plain,) = shell.run("%erllama why")
    assert plain.startswith("partial on stub: 60 of 62 tokens from RAM · lookup ")
    assert "60 of 62 tokens were found" in plain
    assert "token 60" in plain
    assert set(shell.shown[0]["data"]) == {"text/plain", "text/markdown"}
    (plain,) = shell.run("%erllama why first")
    assert plain.startswith("cold on stub: 0 of 60 tokens")
    shell.run(f"%%erllama --max 1 --raw\n{words}")
    (plain,) = shell.run("%erllama why")
    assert "All 60 tokens are cached, as a row of exactly these." in plain


def test_the_reply_says_which_model(shell: Any, stub: Any) -> None:
    shell.run("%%erllama --max 1\nhi")
    with testing.stub_model("second"):
        assert " on stub: " in shell.run("%erllama why")[0]
    api.unload("stub")
    assert "'stub'" in str(shell.error("%erllama why"))


def test_without_a_reply_it_says_how_to_get_one(shell: Any, stub: Any) -> None:
    error = shell.error("%erllama why")
    assert isinstance(error, BadUsage)
    assert "%%erllama" in error.hint
    shell.ip.user_ns["x"] = 5
    for name in ("x", "missing"):
        assert f"{name!r} is no reply" in str(shell.error(f"%erllama why {name}"))
