"""The cookie file, made and read as erl does."""

from __future__ import annotations

import re
import stat
import threading
from pathlib import Path

import pytest

from erl_bridge import CookieError, Node, read_cookie
from erl_bridge.runtime.cookie import cookie_bytes


def test_one_is_made_and_kept(tmp_path: Path) -> None:
    """Twenty capital letters, readable by nobody else."""
    path = tmp_path / "cookie"
    cookie = read_cookie(path)
    assert re.fullmatch("[A-Z]{20}", cookie)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert read_cookie(path) == cookie
    assert [entry.name for entry in tmp_path.iterdir()] == ["cookie"], "no drafts are left"


def test_two_that_make_one_at_once_agree(tmp_path: Path) -> None:
    """The loser reads the winner's."""
    path = tmp_path / "cookie"
    found: set[str] = set()
    threads = [threading.Thread(target=lambda: found.add(read_cookie(path))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1


def test_the_first_line_counts(tmp_path: Path) -> None:
    """Editors add a newline."""
    path = tmp_path / "cookie"
    path.write_bytes(b"abc\r\nrest\n")
    path.chmod(0o600)
    assert read_cookie(path) == "abc"


def test_others_may_not_read_it(tmp_path: Path) -> None:
    """With the command that mends it."""
    path = tmp_path / "cookie"
    path.write_text("abc")
    path.chmod(0o644)
    with pytest.raises(CookieError, match=f"chmod 400 {path}"):
        read_cookie(path)


def test_an_empty_file(tmp_path: Path) -> None:
    """Not the same as none: somebody meant something."""
    path = tmp_path / "cookie"
    path.touch(0o400)
    with pytest.raises(CookieError, match="is empty"):
        read_cookie(path)


def test_bytes_of_cookies() -> None:
    """As their atom's Latin-1 characters, which is what digests are made of."""
    assert cookie_bytes("é") == b"\xe9"
    assert cookie_bytes(b"x") == b"x"
    for bad in ("", "日本"):
        with pytest.raises(CookieError):
            cookie_bytes(bad)


def test_a_node_takes_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is told another."""
    monkeypatch.setenv("HOME", str(tmp_path))
    Node("a")
    assert (tmp_path / ".erlang.cookie").exists()
