"""Paths as Erlang has them: a binary, a charlist, or a list of such (``file:name_all()``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from erl_bridge.service.convert import bytes_of

__all__ = ("file_path",)


def file_path(term: Any) -> bytes | None:
    """Return the bytes of a path; ``None`` for what is none.

    The numbers of a charlist are characters, as for ``file:open/2``: ``"modèle.gguf"`` is
    what it says.  Where no file has that name they may be bytes, which
    ``binary_to_list(Path)`` makes of a path that is a binary.
    """
    if not isinstance(term, list):
        return term if isinstance(term, bytes) else None
    try:
        path = b"".join(_parts(term))
    except ValueError:
        return None
    plain = bytes_of(term)
    if plain is None or plain == path or b"\0" in path or os.path.lexists(path):
        return path
    return plain


def _parts(term: list[Any]) -> Iterator[bytes]:
    """Give the encoded parts of a list.

    :raises ValueError: there is something else in it.
    """
    waiting = [iter(term)]  # its own stack: a peer decides how deep the lists are
    while waiting:
        for part in waiting[-1]:
            if type(part) is int:
                yield _encoded(part)
            elif isinstance(part, bytes):
                yield part
            elif isinstance(part, list):
                waiting.append(iter(part))
                break
            else:
                raise ValueError("neither a character nor a text")
        else:
            waiting.pop()


def _encoded(char: int) -> bytes:
    if not 0 <= char < 0x110000:
        raise ValueError("no character")
    return chr(char).encode()  # half of a pair has no bytes, and is a ValueError too
