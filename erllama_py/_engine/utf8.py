"""Whole characters out of a stream of token fragments.  Pure."""

from __future__ import annotations

import codecs

__all__ = ("Utf8Assembler",)

_new_decoder = codecs.getincrementaldecoder("utf-8")


class Utf8Assembler:
    """Join byte fragments into ``str`` without ever splitting a character.

    A token may be half a character.  Bytes that can still become one are kept for the
    next fragment; bytes that never will are shown as U+FFFD, as every terminal does.
    """

    def __init__(self) -> None:
        self._decoder = _new_decoder(errors="replace")

    def feed(self, fragment: bytes) -> str:
        """Return the characters completed by this fragment; may be empty."""
        return self._decoder.decode(fragment)

    def flush(self) -> str:
        """Return what an unfinished last character amounts to: U+FFFD or nothing."""
        return self._decoder.decode(b"", final=True)
