"""Terms to bytes.

One loop over a stack of iterators, no recursion: a container writes its head, its items'
iterator becomes the current one, and what closes it (a list's NIL) is written when that
iterator is spent.  Pieces are collected and joined once, so a large binary is copied once.

What is written is the newest form of each kind: UTF-8 atoms, NEW_PID, NEWER_REFERENCE,
NEW_PORT (V4_PORT for ids beyond 32 bits), NEW_FLOAT.  Every node since OTP 23 reads them
(V4_PORT: 24).  The same term gives the same bytes; maps keep the order of the dict.
"""

from __future__ import annotations

import array
import math
import operator
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Final

from erl_bridge.etf import tags
from erl_bridge.etf.bulk import BULK_MIN, pack_array, pack_numbers
from erl_bridge.etf.errors import EncodeError
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

__all__ = ("binary_term", "encode", "encode_body", "tuple_head")

_VERSION: Final = bytes((tags.VERSION,))
_NIL: Final = bytes((tags.NIL,))
_NOTHING: Final = b""
_SMALL_INTEGERS: Final = tuple(bytes((tags.SMALL_INTEGER, value)) for value in range(256))

_tag_i32: Final = struct.Struct(">Bi").pack
_tag_u32: Final = struct.Struct(">BI").pack
_tag_f64: Final = struct.Struct(">Bd").pack

_MAX_DEPTH: Final = 10_000
"""No sane term is nested deeper; a list that contains itself is, without end."""

# Atoms in external form.  Bounded: our own code uses a few hundred, but terms from peers are
# sent on too.  Emptied when full.
_atoms: dict[Atom, bytes] = {}
_ATOMS_MAX: Final = 4096


def encode(term: Any, *, version: bool = True) -> bytes:
    """Encode one term, with the version byte in front unless ``version`` is false.

    :raises EncodeError: a value in it has no external form (``str``, an infinity, an atom of
        more than 255 characters, an unknown type), a map would get the same key twice, or it is
        nested deeper than 10 000.
    """
    return _encode(term, [_VERSION] if version else [])


def encode_body(term: Any) -> bytes:
    """Encode one term without the version byte: for :class:`Encoded` and for splicing.

    :raises EncodeError: as for :func:`encode`.
    """
    return _encode(term, [])


def tuple_head(arity: int, *items: Any, version: bool = True) -> bytes:
    """Encode a tuple's start and its first items; the caller appends the other ones' bodies.

    For messages that differ in their last item only::

        head = tuple_head(3, Atom("erllama_token"), ref)
        message = head + binary_term(fragment)

    :raises EncodeError: as for :func:`encode`; also when there are more items than ``arity``.
    """
    if len(items) > arity:
        raise EncodeError(f"{len(items)} items do not fit into a tuple of {arity}")
    out = [_VERSION] if version else []
    out.append(_tuple_start(arity))
    out += map(encode_body, items)
    return b"".join(out)


def binary_term(data: bytes | bytearray | memoryview) -> bytes:
    """Encode one binary without the version byte, with nothing looked at but its length.

    :raises EncodeError: it is longer than a 32-bit length can say.
    """
    if type(data) is memoryview:
        data = data.tobytes()
    try:
        return _tag_u32(tags.BINARY, len(data)) + data
    except struct.error:
        raise EncodeError(f"a binary of {len(data)} bytes is too long") from None


def _encode(term: Any, out: list[bytes]) -> bytes:
    put = out.append
    stack: list[tuple[Iterator[Any], bytes]] = []
    here: Iterator[Any] = iter((term,))
    closing = _NOTHING
    while True:
        for item in here:
            kind = type(item)
            if kind is Atom:
                put(_atoms.get(item) or _atom(item))
                continue
            if kind is int:
                if 0 <= item <= 255:
                    put(_SMALL_INTEGERS[item])
                elif -0x8000_0000 <= item <= 0x7FFF_FFFF:
                    put(_tag_i32(tags.INTEGER, item))
                else:
                    put(_big(item))
                continue
            if kind is bytes:
                if len(item) > 0xFFFF_FFFF:
                    raise EncodeError(f"a binary of {len(item)} bytes is too long")
                put(_tag_u32(tags.BINARY, len(item)))
                put(item)
                continue
            leaf = _LEAVES.get(kind)
            if leaf is not None:
                put(leaf(item))
                continue

            if kind not in _CONTAINERS:
                item = _plain(item)  # noqa: PLW2901 - the same item in a type we know
                kind = type(item)
                if kind not in _CONTAINERS:
                    put(item.data if kind is Encoded else _encode(item, []))
                    continue
            # From here on: a container.  Open it and let its items come first.
            inner: Iterable[Any]
            end = _NOTHING
            if kind is tuple:
                put(_tuple_start(len(item)))
                inner = item
            elif kind is list:
                if not item:
                    put(_NIL)
                    continue
                if len(item) >= BULK_MIN:
                    packed = pack_numbers(item)
                    if packed is not None:
                        put(packed)
                        continue
                put(_counted(tags.LIST, len(item)))
                inner = item
                end = _NIL
            elif kind is dict:
                put(_counted(tags.MAP, len(item)))
                if _UNEQUAL_KEYS.issuperset(map(type, item)):
                    inner = chain.from_iterable(item.items())
                else:
                    inner = _distinct(item.items(), out)
            elif kind is Map:
                put(_counted(tags.MAP, len(item)))
                inner = _distinct(item.pairs, out)
            else:
                put(_counted(tags.LIST, len(item.items)))
                inner = chain(item.items, (item.tail,))
            if len(stack) >= _MAX_DEPTH:
                raise EncodeError(
                    f"the term is nested deeper than {_MAX_DEPTH}: does it contain itself?"
                )
            stack.append((here, closing))
            here = iter(inner)
            closing = end
            break
        else:
            if closing:
                put(closing)
            if not stack:
                return b"".join(out)
            here, closing = stack.pop()


def _distinct(pairs: Iterable[tuple[Any, Any]], out: list[bytes]) -> Iterator[Any]:
    """Yield keys and values in turn, and refuse a key whose encoding was there before.

    Python tells some values apart that are one term (``True`` and the atom, a list and an
    array); a real node drops the connection over a map with such keys.  The loop asks for
    the next item only when the last one is written, so a key's bytes are what ``out`` grew by.
    """
    seen: set[bytes] = set()
    for key, value in pairs:
        start = len(out)
        yield key
        written = b"".join(out[start:])
        if written in seen:
            raise EncodeError(f"two keys of a map are the same term: {_short(key)}")
        seen.add(written)
        yield value


def _counted(tag: int, count: int) -> bytes:
    return _tag_u32(tag, count)


def _tuple_start(arity: int) -> bytes:
    if 0 <= arity <= 255:
        return bytes((tags.SMALL_TUPLE, arity))
    return _tag_u32(tags.LARGE_TUPLE, arity)


def _short(value: Any) -> str:
    """Show what was refused, without walking or printing all of it."""
    if isinstance(value, (str, bytes)):
        return repr(value[:40]) + ("..." if len(value) > 40 else "")
    return f"a {type(value).__name__}"


# --- leaves -----------------------------------------------------------------------------


def _atom(atom: Atom) -> bytes:
    if len(atom.name) > tags.MAX_ATOM_CHARS:
        raise EncodeError(
            f"an atom of {len(atom.name)} characters ({_short(atom.name)}): "
            f"at most {tags.MAX_ATOM_CHARS} are allowed"
        )
    try:
        name = atom.name.encode()
    except UnicodeEncodeError:
        raise EncodeError(f"an atom's name is not valid Unicode: {_short(atom.name)}") from None
    if len(name) <= 255:
        made = bytes((tags.SMALL_ATOM_UTF8, len(name))) + name
    else:
        made = struct.pack(">BH", tags.ATOM_UTF8, len(name)) + name
    if len(_atoms) >= _ATOMS_MAX:
        _atoms.clear()
    _atoms[atom] = made
    return made


def _need_atom(value: Any, what: str) -> bytes:
    if type(value) is not Atom:
        raise EncodeError(f"{what} must be an Atom, not {_short(value)}")
    return _atoms.get(value) or _atom(value)


def _big(value: int) -> bytes:
    sign = 1 if value < 0 else 0
    magnitude = abs(value)
    size = (magnitude.bit_length() + 7) // 8
    body = magnitude.to_bytes(size, "little")
    if size <= 255:
        return bytes((tags.SMALL_BIG, size, sign)) + body
    return struct.pack(">BIB", tags.LARGE_BIG, size, sign) + body


def _float(value: float) -> bytes:
    if not math.isfinite(value):
        raise EncodeError(f"{value!r} has no external form: Erlang has no such float")
    return _tag_f64(tags.NEW_FLOAT, value)


def _bool(value: bool) -> bytes:
    return _need_atom(TRUE if value else FALSE, "")


def _none(_value: None) -> bytes:
    return _need_atom(UNDEFINED, "")


def _fields(form: str, what: Any, *values: Any) -> bytes:
    try:
        return struct.pack(form, *values)
    except struct.error:
        raise EncodeError(f"{what!r} has a field that is no integer of its width") from None


def _pid(pid: Pid) -> bytes:
    node = _need_atom(pid.node, "a pid's node")
    return b"X" + node + _fields(">III", pid, pid.id, pid.serial, pid.creation)


def _reference(ref: Reference) -> bytes:
    count = len(ref.ids)
    if not 1 <= count <= tags.MAX_REFERENCE_WORDS:
        raise EncodeError(f"a reference has 1..{tags.MAX_REFERENCE_WORDS} words, not {count}")
    head = struct.pack(">BH", tags.NEWER_REFERENCE, count)
    node = _need_atom(ref.node, "a reference's node")
    return head + node + _fields(f">{count + 1}I", ref, ref.creation, *ref.ids)


def _port(port: Port) -> bytes:
    node = _need_atom(port.node, "a port's node")
    if port.id <= 0xFFFF_FFFF:
        return b"Y" + node + _fields(">II", port, port.id, port.creation)
    return b"x" + node + _fields(">QI", port, port.id, port.creation)


def _export(export: Export) -> bytes:
    module = _need_atom(export.module, "an external fun's module")
    function = _need_atom(export.function, "an external fun's name")
    return b"q" + module + function + b"a" + _fields(">B", export, export.arity)


def _bit_string(value: BitString) -> bytes:
    return struct.pack(">BIB", tags.BIT_BINARY, len(value.data), value.bits) + value.data


def _raw_fun(fun: Fun) -> bytes:
    return fun.raw


def _spliced(encoded: Encoded) -> bytes:
    return encoded.data


_LEAVES: Final[dict[type[Any], Callable[[Any], bytes]]] = {
    float: _float,
    Pid: _pid,
    Reference: _reference,
    Encoded: _spliced,
    bool: _bool,
    type(None): _none,
    bytearray: binary_term,
    memoryview: binary_term,
    Port: _port,
    Export: _export,
    BitString: _bit_string,
    Fun: _raw_fun,
}

_CONTAINERS: Final = frozenset({tuple, list, dict, Map, ImproperList})

# Keys of these types are different terms whenever a dict tells them apart.
_UNEQUAL_KEYS: Final = frozenset({Atom, bytes, int, float, Pid, Reference, Port})


# --- values of other types --------------------------------------------------------------

_SUBCLASSED: Final[tuple[tuple[type[Any], Callable[[Any], Any]], ...]] = (
    (int, int),
    (float, float),
    (bytes, bytes),
    (bytearray, bytes),
    (tuple, tuple),
    (list, list),
    (dict, dict),
)


def _plain(value: Any) -> Any:
    """Return ``value`` in a type of the tables: arrays, numpy scalars, subclasses.

    :raises EncodeError: it has no external form.
    """
    if isinstance(value, str):
        raise EncodeError(
            f"the str {_short(value)} could be a binary or an atom: "
            "say which, with .encode() or Atom(...)"
        )
    if isinstance(value, array.array):
        if value.typecode in ("u", "w"):
            raise EncodeError("an array of characters: encode it to bytes first")
        return _numbers(value.tolist())
    # Arrays and scalars of numpy, told by what they offer so that numpy need not be there.
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        packed = pack_array(value)
        if packed is not None:
            return Encoded(packed)
        made = value.tolist()
        if type(made) is type(value):
            raise EncodeError(f"{_short(value)} has no external form")
        return made
    for base, convert in _SUBCLASSED:
        if isinstance(value, base):
            return convert(value)
    if hasattr(type(value), "__index__"):  # what Python itself takes for an integer
        return operator.index(value)
    raise EncodeError(f"{_short(value)} has no external form")


def _numbers(items: list[Any]) -> Any:
    if len(items) < BULK_MIN:
        return items
    packed = pack_numbers(items, checked=True)
    return items if packed is None else Encoded(packed)
