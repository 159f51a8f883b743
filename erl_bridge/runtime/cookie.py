"""The shared secret of nodes that may talk: ``~/.erlang.cookie``."""

from __future__ import annotations

import os
import secrets
import stat
import string
from pathlib import Path

__all__ = ("CookieError", "cookie_bytes", "read_cookie")

#: What ``erl`` writes: 20 capital letters, 94 bits.
COOKIE_LETTERS = 20


class CookieError(ValueError):
    """The cookie file cannot be used; the message says what to do."""


def read_cookie(path: Path | None = None) -> str:
    """Return the cookie of this user, making one as ``erl`` does where there is none.

    :param path: the file, by default ``~/.erlang.cookie``.
    :raises CookieError: others may read the file, or there is nothing in it.
    :raises OSError: it can be neither read nor made.
    """
    path = path or Path.home() / ".erlang.cookie"
    try:
        info = path.stat()
    except FileNotFoundError:
        return _make(path)
    if info.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise CookieError(f"{path} may be read by others: chmod 400 {path}")
    text = path.read_bytes().decode("latin-1").split("\n", 1)[0].strip("\r")
    if not text:
        raise CookieError(f"{path} is empty: write a cookie into it, or delete it")
    return text


def cookie_bytes(cookie: str | bytes) -> bytes:
    """Return a cookie as it goes into digests.

    :raises CookieError: it is empty, or has characters no cookie atom hashes to.
    """
    try:
        data = cookie.encode("latin-1") if isinstance(cookie, str) else bytes(cookie)
    except UnicodeEncodeError:
        raise CookieError("a cookie has Latin-1 characters only") from None
    if not data:
        raise CookieError("the cookie is empty")
    return data


def _make(path: Path) -> str:
    letters = string.ascii_uppercase
    cookie = "".join(secrets.choice(letters) for _ in range(COOKIE_LETTERS))
    # Written aside and linked: of two nodes starting at once, both must end up with the
    # same cookie, and neither may read a half-written one.
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(cookie.encode())
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return read_cookie(path)
    finally:
        draft.unlink()
    return cookie
