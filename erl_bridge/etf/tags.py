"""The tag bytes of the External Term Format, named as the Erlang documentation names them."""

from __future__ import annotations

from typing import Final

__all__ = ()

VERSION: Final = 131  # first byte of every encoded term

NEW_FLOAT: Final = 70
BIT_BINARY: Final = 77
COMPRESSED: Final = 80
ATOM_CACHE_REF: Final = 82
NEW_PID: Final = 88
NEW_PORT: Final = 89
NEWER_REFERENCE: Final = 90
SMALL_INTEGER: Final = 97
INTEGER: Final = 98
FLOAT: Final = 99
ATOM: Final = 100
REFERENCE: Final = 101
PORT: Final = 102
PID: Final = 103
SMALL_TUPLE: Final = 104
LARGE_TUPLE: Final = 105
NIL: Final = 106
STRING: Final = 107
LIST: Final = 108
BINARY: Final = 109
SMALL_BIG: Final = 110
LARGE_BIG: Final = 111
NEW_FUN: Final = 112
EXPORT: Final = 113
NEW_REFERENCE: Final = 114
SMALL_ATOM: Final = 115
MAP: Final = 116
FUN: Final = 117
ATOM_UTF8: Final = 118
SMALL_ATOM_UTF8: Final = 119
V4_PORT: Final = 120
LOCAL: Final = 121

MAX_REFERENCE_WORDS: Final = 5  # three until OTP 23, five since (OTP 28's aliases use them)
MAX_ATOM_CHARS: Final = 255
MAX_STRING: Final = 65_535  # STRING_EXT has a 16-bit length
