"""``PATH[:SCALE]``: what is a scale, and what a part of the path."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama_py.config import parse_loras
from erllama_py.errors import ErllamaError


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("/a.gguf", "/a.gguf", 1.0),
        ("/a.gguf:0.5", "/a.gguf", 0.5),
        ("/a.gguf:2", "/a.gguf", 2.0),
        ("/a.gguf:-.5e-1", "/a.gguf", -0.05),
        ("/a.gguf:+1.", "/a.gguf", 1.0),
        ("/run:7/a.gguf", "/run:7/a.gguf", 1.0),
        ("/run:7", "/run", 7.0),
        ("/run:7:1", "/run:7", 1.0),
        ("/run:7b", "/run:7b", 1.0),
        ("/a:", "/a:", 1.0),
        ("/a:nan", "/a:nan", 1.0),
        ("/a:inf", "/a:inf", 1.0),
        ("/a:1_0", "/a:1_0", 1.0),
        ("/a:٣", "/a:٣", 1.0),
        ("/a b.gguf:1", "/a b.gguf", 1.0),
    ],
)
def test_a_number_behind_the_last_colon_is_the_scale(text: str, path: str, scale: float) -> None:
    assert parse_loras([text]) == [(path, scale)]


def test_a_drive_s_colon_is_no_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_loras([r"C:\lora\a.gguf:0.25"]) == [(str(tmp_path / r"C:\lora\a.gguf"), 0.25)]
    assert parse_loras([r"C:\a.gguf"]) == [(str(tmp_path / r"C:\a.gguf"), 1.0)]


def test_paths_are_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/nowhere/somebody")
    assert parse_loras(["a.gguf:3", "~/b.gguf", "~no-such-user/c.gguf"]) == [
        (str(tmp_path / "a.gguf"), 3.0),
        ("/nowhere/somebody/b.gguf", 1.0),
        (str(tmp_path / "~no-such-user/c.gguf"), 1.0),
    ]


def test_one_file_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for other in ("a", "a:0.5", "link", f"../{tmp_path.name}/a:2"):
        with pytest.raises(ErllamaError, match="twice") as caught:
            parse_loras([str(tmp_path / "a"), f"{tmp_path}/{other}"])
        assert caught.value.reason == "badarg"
    assert parse_loras([]) == []


@pytest.mark.parametrize("text", ["", " ", ":1", " :0.5", "a\0b", "\0:1"])
def test_no_path_is_an_error_that_shows_one(text: str) -> None:
    with pytest.raises(ErllamaError, match="there is no path") as caught:
        parse_loras([text])
    assert "FILE.gguf:0.5" in caught.value.hint


@given(
    st.text(min_size=1).filter(lambda name: name.strip() and "\0" not in name),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_scale_that_is_given_leaves_the_path_alone(name: str, scale: float) -> None:
    (plain,), (scaled,) = parse_loras([f"/{name}:1"]), parse_loras([f"/{name}:{scale!r}"])
    assert scaled == (plain.path, scale)
    assert plain.path.startswith("/")
