"""External Term Format: Erlang terms to bytes and back.

Pure: no I/O, no clock, nothing but the standard library.

============================  =====================================================
Erlang                        Python
============================  =====================================================
integer, float                ``int``, ``float``
binary                        ``bytes``
bit string (no whole bytes)   :class:`BitString`
atom (also true, undefined)   :class:`Atom`
list, improper list           ``list``, :class:`ImproperList`
tuple                         ``tuple``
map                           ``dict``; :class:`Map` where a dict would merge or refuse keys
pid, port, reference          :class:`Pid`, :class:`Port`, :class:`Reference`
fun, ``fun M:F/A``            :class:`Fun` (opaque), :class:`Export`
============================  =====================================================

The encoder also takes ``bool`` (atoms), ``None`` (``undefined``), ``bytearray`` and
``memoryview`` (binaries), ``array.array`` and numpy arrays (lists of numbers) and
:class:`Encoded` (bytes spliced in).  It refuses ``str``: whether text is a binary or an
atom is for the caller to say.
"""

from __future__ import annotations

from erl_bridge.etf.decode import decode, decode_prefix
from erl_bridge.etf.encode import binary_term, encode, encode_body, tuple_head
from erl_bridge.etf.errors import DecodeError, EncodeError, EtfError
from erl_bridge.etf.limits import DEFAULT_LIMITS, Limits
from erl_bridge.etf.terms import (
    FALSE,
    TRUE,
    UNDEFINED,
    Atom,
    BitString,
    Encoded,
    Export,
    Fun,
    ImproperList,
    Map,
    Pid,
    Port,
    Reference,
)
from erl_bridge.etf.text import term_to_text

__all__ = (
    "DEFAULT_LIMITS",
    "FALSE",
    "TRUE",
    "UNDEFINED",
    "Atom",
    "BitString",
    "DecodeError",
    "EncodeError",
    "Encoded",
    "EtfError",
    "Export",
    "Fun",
    "ImproperList",
    "Limits",
    "Map",
    "Pid",
    "Port",
    "Reference",
    "binary_term",
    "decode",
    "decode_prefix",
    "encode",
    "encode_body",
    "term_to_text",
    "tuple_head",
)
