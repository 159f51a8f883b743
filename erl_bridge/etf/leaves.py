"""Readers of the items that contain no arbitrary term, for the decoder's table.

Each takes the buffer, the offset of the item's *tag*, the end and the limits, and returns
the value with the offset behind it.  Running off the end shows as ``IndexError`` or
``struct.error``, or is checked where a slice would be cut off silently.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from erl_bridge.etf import tags
from erl_bridge.etf.errors import DecodeError
from erl_bridge.etf.limits import Limits
from erl_bridge.etf.terms import Atom, BitString, Export, Pid, Port, Reference

__all__ = ("LEAVES", "Bytes", "Reader", "cut_off", "read_atom")

Bytes: TypeAlias = bytes | memoryview
Reader: TypeAlias = Callable[[Bytes, int, int, Limits], tuple[Any, int]]

_u16: Final = struct.Struct(">H").unpack_from
_u32: Final = struct.Struct(">I").unpack_from
_pid: Final = struct.Struct(">III").unpack_from
_old_pid: Final = struct.Struct(">IIB").unpack_from
_port: Final = struct.Struct(">II").unpack_from
_old_port: Final = struct.Struct(">IB").unpack_from
_v4_port: Final = struct.Struct(">QI").unpack_from

# FLOAT_EXT is printed with "%.20e"; Python's float() alone would also take "nan" and "1_0".
_FLOAT_TEXT: Final = re.compile(rb" *[+-]?[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?\0*")
_FLOAT_TEXT_BYTES: Final = 31

# UTF-8 names to their atoms.  Bounded because the peer chooses the names; emptied when full,
# which costs a peer that rotates names its speed and nobody else anything.
_known_atoms: dict[bytes, Atom] = {}
_KNOWN_ATOMS_MAX: Final = 4096


def cut_off(pos: int) -> DecodeError:
    """Return the error for an item that goes on beyond the end."""
    return DecodeError("the term is cut off", pos)


def read_atom(buf: Bytes, pos: int, end: int, limits: Limits) -> tuple[Atom, int]:
    """Read an atom in any of its four forms; anything else there is an error."""
    tag = buf[pos]
    if tag in (tags.SMALL_ATOM_UTF8, tags.SMALL_ATOM):
        start = pos + 2
        stop = start + buf[pos + 1]
    elif tag in (tags.ATOM_UTF8, tags.ATOM):
        start = pos + 3
        stop = start + _u16(buf, pos + 1)[0]
    elif tag == tags.ATOM_CACHE_REF:
        raise DecodeError("an atom cache reference outside of a distribution header", pos)
    else:
        raise DecodeError(f"expected an atom, found tag {tag}", pos)
    if stop > end:
        raise cut_off(pos)
    raw = bytes(buf[start:stop])
    utf8 = tag in (tags.SMALL_ATOM_UTF8, tags.ATOM_UTF8)
    atom = _known_atoms.get(raw) if utf8 else None
    if atom is None:
        try:
            name = raw.decode("utf-8" if utf8 else "latin-1")
        except UnicodeDecodeError:
            raise DecodeError("an atom's name is not valid UTF-8", start) from None
        if len(name) > limits.max_atom_chars:
            raise _long_atom(limits, pos)
        atom = Atom(name)
        if utf8:
            if len(_known_atoms) >= _KNOWN_ATOMS_MAX:
                _known_atoms.clear()
            _known_atoms[raw] = atom
    elif len(raw) > limits.max_atom_chars and len(atom.name) > limits.max_atom_chars:
        raise _long_atom(limits, pos)
    return atom, stop


def _long_atom(limits: Limits, pos: int) -> DecodeError:
    return DecodeError(f"an atom is longer than {limits.max_atom_chars} characters", pos)


def _big(buf: Bytes, start: int, size: int, sign: int, end: int, limits: Limits) -> tuple[int, int]:
    stop = start + size
    if stop > end:
        raise cut_off(start)
    if size > limits.max_big_bytes:
        raise DecodeError(f"an integer is longer than {limits.max_big_bytes} bytes", start)
    value = int.from_bytes(buf[start:stop], "little")
    return (-value if sign else value), stop


def _small_big(buf: Bytes, pos: int, end: int, limits: Limits) -> tuple[int, int]:
    return _big(buf, pos + 3, buf[pos + 1], buf[pos + 2], end, limits)


def _large_big(buf: Bytes, pos: int, end: int, limits: Limits) -> tuple[int, int]:
    return _big(buf, pos + 6, _u32(buf, pos + 1)[0], buf[pos + 5], end, limits)


def _float_text(buf: Bytes, pos: int, end: int, _limits: Limits) -> tuple[float, int]:
    stop = pos + 1 + _FLOAT_TEXT_BYTES
    if stop > end:
        raise cut_off(pos)
    text = bytes(buf[pos + 1 : stop])
    if not _FLOAT_TEXT.fullmatch(text):
        raise DecodeError("a float in text form is malformed", pos)
    value = float(text.rstrip(b"\0"))
    if not math.isfinite(value):
        raise DecodeError("a float is not a finite number", pos)
    return value, stop


def _bit_string(buf: Bytes, pos: int, end: int, limits: Limits) -> tuple[BitString | bytes, int]:
    size = _u32(buf, pos + 1)[0]
    bits = buf[pos + 5]
    stop = pos + 6 + size
    if stop > end:
        raise cut_off(pos)
    if size > limits.max_binary_bytes:
        raise DecodeError(f"a bit string is longer than {limits.max_binary_bytes} bytes", pos)
    if bits > 8 or (bits == 0) != (size == 0):
        raise DecodeError(f"a bit string of {size} bytes cannot use {bits} bits of the last", pos)
    data = bytes(buf[pos + 6 : stop])
    return (data if bits in (0, 8) else BitString(data, bits)), stop


def _new_pid(buf: Bytes, pos: int, end: int, limits: Limits) -> tuple[Pid, int]:
    node, pos = read_atom(buf, pos + 1, end, limits)
    return Pid(node, *_pid(buf, pos)), pos + 12


def _old_style_pid(buf: Bytes, pos: int, end: int, limits: Limits) -> tuple[Pid, int]:
    node, pos = read_atom(buf, pos + 1, end, limits)
    return Pid(node, *_old_pid(buf, pos)), pos + 9


def _new_port(buf: Bytes, pos: int, end: int, limits: Limits) -> tuple[Port, int]:
    node, pos = read_atom(buf, pos + 1, end, limits)
    return Port(node, *_port(buf, pos)), pos + 8


def _old_style_port(buf: Bytes, pos: int, end: int, limits: Limits) -> tuple[Port, int]:
    node, pos = read_atom(buf, pos + 1, end, limits)
    return Port(node, *_old_port(buf, pos)), pos + 5


def _wide_port(buf: Bytes, pos: int, end: int, limits: Limits) -> tuple[Port, int]:
    node, pos = read_atom(buf, pos + 1, end, limits)
    return Port(node, *_v4_port(buf, pos)), pos + 12


def _words(buf: Bytes, pos: int) -> int:
    count: int = _u16(buf, pos + 1)[0]
    if not 1 <= count <= tags.MAX_REFERENCE_WORDS:
        raise DecodeError(f"a reference cannot have {count} words", pos)
    return count


def _newer_reference(buf: Bytes, pos: int, end: int, limits: Limits) -> tuple[Reference, int]:
    count = _words(buf, pos)
    node, pos = read_atom(buf, pos + 3, end, limits)
    creation, *ids = struct.unpack_from(f">{count + 1}I", buf, pos)
    return Reference(node, creation, tuple(ids)), pos + 4 + 4 * count


def _new_reference(buf: Bytes, pos: int, end: int, limits: Limits) -> tuple[Reference, int]:
    count = _words(buf, pos)
    node, pos = read_atom(buf, pos + 3, end, limits)
    creation, *ids = struct.unpack_from(f">B{count}I", buf, pos)
    return Reference(node, creation, tuple(ids)), pos + 1 + 4 * count


def _old_style_reference(buf: Bytes, pos: int, end: int, limits: Limits) -> tuple[Reference, int]:
    node, pos = read_atom(buf, pos + 1, end, limits)
    word, creation = _old_port(buf, pos)
    return Reference(node, creation, (word,)), pos + 5


def _export(buf: Bytes, pos: int, end: int, limits: Limits) -> tuple[Export, int]:
    module, pos = read_atom(buf, pos + 1, end, limits)
    function, pos = read_atom(buf, pos, end, limits)
    if buf[pos] != tags.SMALL_INTEGER:
        raise DecodeError("the arity of an external fun is not a small integer", pos)
    return Export(module, function, buf[pos + 1]), pos + 2


def _local(_buf: Bytes, pos: int, _end: int, _limits: Limits) -> tuple[Any, int]:
    raise DecodeError("a term in local form (LOCAL_EXT): only its node can read it", pos)


def _nested_compression(_buf: Bytes, pos: int, _end: int, _limits: Limits) -> tuple[Any, int]:
    raise DecodeError("a compressed term may only stand directly after the version byte", pos)


LEAVES: Final[dict[int, Reader]] = {
    tags.ATOM: read_atom,
    tags.ATOM_CACHE_REF: read_atom,
    tags.ATOM_UTF8: read_atom,
    tags.BIT_BINARY: _bit_string,
    tags.COMPRESSED: _nested_compression,
    tags.EXPORT: _export,
    tags.FLOAT: _float_text,
    tags.LARGE_BIG: _large_big,
    tags.LOCAL: _local,
    tags.NEWER_REFERENCE: _newer_reference,
    tags.NEW_PID: _new_pid,
    tags.NEW_PORT: _new_port,
    tags.NEW_REFERENCE: _new_reference,
    tags.PID: _old_style_pid,
    tags.PORT: _old_style_port,
    tags.REFERENCE: _old_style_reference,
    tags.SMALL_ATOM: read_atom,
    tags.SMALL_ATOM_UTF8: read_atom,
    tags.SMALL_BIG: _small_big,
    tags.V4_PORT: _wide_port,
}
