"""Bytes to terms.

One loop, no recursion.  The loop reads the item at ``pos``.  A leaf is appended to the
container being filled; the head of a container pushes the outer one on a stack and makes
itself the one being filled; a container that needs nothing more is closed: turned into
its Python form and appended to the one below.  The outermost frame needs one item, and
filling it ends the loop.

Invariants:

- Every input either decodes or raises :class:`DecodeError`, nothing else.
- Nothing is allocated from a length field before that length is checked against the bytes
  that are left and against the limits.  Each item of a container takes a byte at least, so
  its count cannot exceed them.
- Reading past the end is either checked (slices, which Python cuts off silently) or an
  ``IndexError`` or ``struct.error``, which the entry point turns into "cut off".
"""

from __future__ import annotations

import math
import struct
import zlib
from collections import Counter
from typing import Any, Final

from erl_bridge.etf import tags
from erl_bridge.etf.bulk import BULK_MIN, read_numbers
from erl_bridge.etf.encode import encode_body
from erl_bridge.etf.errors import DecodeError, EncodeError
from erl_bridge.etf.leaves import LEAVES, Bytes, cut_off, read_atom
from erl_bridge.etf.limits import DEFAULT_LIMITS, Limits
from erl_bridge.etf.terms import (
    Atom,
    BitString,
    Export,
    Fun,
    ImproperList,
    Map,
    Pid,
    Port,
    Reference,
)

__all__ = ("decode", "decode_prefix")

_u16: Final = struct.Struct(">H").unpack_from
_i32: Final = struct.Struct(">i").unpack_from
_u32: Final = struct.Struct(">I").unpack_from
_f64: Final = struct.Struct(">d").unpack_from

# Below this, copying a memoryview costs less than the slower indexing of one.
_COPY_BELOW: Final = 64 * 1024

# What the frame being filled will become.
_ROOT, _TUPLE, _LIST, _TAIL, _MAP, _FUN, _OLD_FUN = range(7)


def decode(data: bytes | bytearray | memoryview, *, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Decode exactly one term, version byte first, compressed or not.

    :raises DecodeError: the bytes are malformed, cut off, go on behind the term, or exceed
        a limit.
    :raises TypeError: ``data`` is not a buffer of bytes.
    """
    buf = _as_buffer(data)
    term, pos = _decode(buf, 0, limits)
    if pos != len(buf):
        raise DecodeError(f"{len(buf) - pos} bytes follow the term", pos)
    return term


def decode_prefix(
    data: bytes | bytearray | memoryview, offset: int = 0, *, limits: Limits = DEFAULT_LIMITS
) -> tuple[Any, int]:
    """Decode the term at ``offset`` and return it with the offset behind it.

    For frames that hold a control term and a message one behind the other; each has its
    own version byte.

    :raises DecodeError: as for :func:`decode`, except that more may follow.
    :raises TypeError: ``data`` is not a buffer of bytes.
    :raises ValueError: ``offset`` is negative.
    """
    if offset < 0:
        raise ValueError(f"the offset is negative: {offset}")
    return _decode(_as_buffer(data), offset, limits)


def _as_buffer(data: bytes | bytearray | memoryview) -> Bytes:
    if type(data) is bytes:
        return data
    view = memoryview(data)
    if view.nbytes < _COPY_BELOW:
        return view.tobytes()
    # A view that is not contiguous has no flat form: copied.
    return view.cast("B") if view.c_contiguous else view.tobytes()


def _decode(buf: Bytes, pos: int, limits: Limits) -> tuple[Any, int]:
    start = pos
    try:
        if buf[pos] != tags.VERSION:
            raise DecodeError(f"a term starts with {tags.VERSION}, not with {buf[pos]}", pos)
        if buf[pos + 1] == tags.COMPRESSED:
            inner, stop = _inflate(buf, pos, limits)
            start = 0
            term, pos = _decode_body(inner, 0, limits)
            if pos != len(inner):
                raise DecodeError(f"{len(inner) - pos} bytes follow the term inflated", pos)
            return term, stop
        return _decode_body(buf, pos + 1, limits)
    except (IndexError, struct.error):
        raise cut_off(start) from None


def _inflate(buf: Bytes, pos: int, limits: Limits) -> tuple[bytes, int]:
    """Inflate the compressed term whose version byte is at ``pos``."""
    size = _u32(buf, pos + 2)[0]
    if size > limits.max_inflated_bytes:
        raise DecodeError(f"a compressed term of {size} bytes is beyond the limit", pos)
    inflater = zlib.decompressobj()
    try:
        # One byte more than claimed is asked for, so that a lie is seen and not paid for.
        inner = inflater.decompress(buf[pos + 6 :], size + 1)
    except zlib.error as error:
        raise DecodeError(f"a compressed term is damaged: {error}", pos) from None
    if len(inner) != size or not inflater.eof:
        raise DecodeError(f"a compressed term does not inflate to the {size} bytes it claims", pos)
    return inner, len(buf) - len(inflater.unused_data)


def _decode_body(buf: Bytes, pos: int, limits: Limits) -> tuple[Any, int]:
    end = len(buf)
    budget = limits.max_terms
    max_depth = limits.max_depth
    # The frame being filled; ``opened`` is where its tag stands.
    items: list[Any] = []
    need = 1
    kind = _ROOT
    opened = pos
    stack: list[tuple[list[Any], int, int, int]] = []
    reread = 0
    value: Any

    while True:
        tag = buf[pos]
        if tag == tags.SMALL_INTEGER:
            value = buf[pos + 1]
            pos += 2
        elif tag == tags.INTEGER:
            value = _i32(buf, pos + 1)[0]
            pos += 5
        elif tag == tags.BINARY:
            start = pos + 5
            size = _u32(buf, pos + 1)[0]
            if size > end - start:
                raise cut_off(pos)
            if size > limits.max_binary_bytes:
                raise DecodeError(f"a binary is longer than {limits.max_binary_bytes} bytes", pos)
            pos = start + size
            value = bytes(buf[start:pos])
        elif tag == tags.SMALL_ATOM_UTF8:
            value, pos = read_atom(buf, pos, end, limits)
        elif tag == tags.NIL:
            value = []
            pos += 1
        elif tag == tags.NEW_FLOAT:
            value = _f64(buf, pos + 1)[0]
            if not math.isfinite(value):
                raise DecodeError("a float is not a finite number", pos)
            pos += 9
        elif tag == tags.STRING:
            start = pos + 3
            size = _u16(buf, pos + 1)[0]
            if size > end - start:
                raise cut_off(pos)
            budget -= size
            if budget < 0:
                raise _too_many(limits, pos)
            pos = start + size
            value = list(buf[start:pos])
        elif (reader := LEAVES.get(tag)) is not None:
            value, pos = reader(buf, pos, end, limits)
        else:
            head = pos
            if tag == tags.SMALL_TUPLE:
                new_kind = _TUPLE
                count = buf[pos + 1]
                pos += 2
            elif tag == tags.LIST:
                new_kind = _LIST
                count = _u32(buf, pos + 1)[0]
                pos += 5
            elif tag == tags.MAP:
                new_kind = _MAP
                count = 2 * _u32(buf, pos + 1)[0]
                pos += 5
            elif tag == tags.LARGE_TUPLE:
                new_kind = _TUPLE
                count = _u32(buf, pos + 1)[0]
                pos += 5
            elif tag == tags.NEW_FUN:
                new_kind = _FUN
                # size:32 arity:8 uniq:128 index:32 free:32, then four terms and the free ones
                count = 4 + _u32(buf, pos + 26)[0]
                pos += 30
            elif tag == tags.FUN:
                new_kind = _OLD_FUN
                count = 4 + _u32(buf, pos + 1)[0]
                pos += 5
            else:
                raise DecodeError(f"unknown tag {tag}", pos)
            if count > end - pos:
                raise cut_off(head)
            budget -= count
            if budget < 0:
                raise _too_many(limits, head)
            if len(stack) >= max_depth:
                raise DecodeError(f"terms are nested deeper than {max_depth}", head)
            stack.append((items, need, kind, opened))
            items, need, kind, opened = [], count, new_kind, head
            if new_kind == _LIST and count >= BULK_MIN:
                pos = read_numbers(buf, pos, end, count, items)
                need -= len(items)
            if need:
                continue
            value = _OPEN

        if value is not _OPEN:
            items.append(value)
            need -= 1

        while need == 0:
            if kind == _TUPLE:
                value = tuple(items)
            elif kind == _MAP:
                value = _close_map(items)
                if type(value) is Map:
                    reread += pos - opened
                    if reread > _REREAD_TIMES * end + _REREAD_FREE:
                        raise DecodeError("maps are nested too deep in keys of maps", opened)
                    _check_distinct(value, opened)
            elif kind == _LIST:
                tag = buf[pos]
                if tag == tags.NIL:
                    pos += 1
                    value = items
                elif tag == tags.LIST:
                    # The tail is a list again: the same list goes on.
                    count = _u32(buf, pos + 1)[0]
                    if count > end - pos - 5:
                        raise cut_off(pos)
                    budget -= count
                    if budget < 0:
                        raise _too_many(limits, pos)
                    pos += 5
                    need = count
                    continue
                elif tag == tags.STRING:
                    size = _u16(buf, pos + 1)[0]
                    start = pos + 3
                    if size > end - start:
                        raise cut_off(pos)
                    budget -= size
                    if budget < 0:
                        raise _too_many(limits, pos)
                    pos = start + size
                    items += buf[start:pos]
                    value = items
                else:
                    kind = _TAIL
                    need = 1
                    break
            elif kind == _TAIL:
                tail = items.pop()
                value = ImproperList(tuple(items), tail) if items else tail
            elif kind == _ROOT:
                return items[0], pos
            else:
                value = _close_fun(buf, opened, pos, kind, items)
            items, need, kind, opened = stack.pop()
            items.append(value)
            need -= 1


_OPEN: Final = object()  # a container was opened that needs no item: only closing is left


def _too_many(limits: Limits, pos: int) -> DecodeError:
    return DecodeError(f"a message holds more than {limits.max_terms} terms", pos)


# --- maps -------------------------------------------------------------------------------
#
# A dict holds an Erlang map faithfully when its keys can be hashed and none are merged.
# Python merges 1 and 1.0, 0.0 and -0.0, and tuples of them; Erlang does not.  Such maps
# become a Map, as do maps with list or map keys.
#
# Hashing and comparing nested tuples recurses in C without a check, so deeper keys go to
# a Map too.  And Python's hash of numbers is public: keys made to collide turn a dict into
# a quadratic search, so they go to a Map as well.
#
# Keys of a Map are told apart by their encoding, which costs as much as reading them again,
# at every level if maps are keys of maps; hence the bound on what may be read again.

_PLAIN_KEYS: Final = frozenset(
    {int, float, bytes, Atom, Pid, Reference, Port, Export, BitString, Fun}
)
_KEY_DEPTH: Final = 32
_COLLIDING: Final = 32  # equal hashes that many keys may share
_MANY_KEYS: Final = 256  # below, even a quadratic search is quick
_REREAD_TIMES: Final = 8
_REREAD_FREE: Final = 4096  # bytes; small messages may nest as they like


def _close_map(items: list[Any]) -> dict[Any, Any] | Map:
    keys = items[0::2]
    pairs = zip(keys, items[1::2], strict=True)
    if not _PLAIN_KEYS.issuperset(map(type, keys)) and not all(map(_hashable, keys)):
        return Map(pairs)
    if len(keys) > _MANY_KEYS:
        [(_, most)] = Counter(map(hash, keys)).most_common(1)
        if most > _COLLIDING:
            return Map(pairs)
    made = dict(pairs)
    if len(made) == len(keys):
        return made
    return Map(zip(keys, items[1::2], strict=True))


def _hashable(key: Any) -> bool:
    """Say whether ``key`` may be a dict's key: plain, or tuples of plain ones, not too deep."""
    level = [key]
    for _ in range(_KEY_DEPTH):
        inner: list[Any] = []
        for part in level:
            if type(part) is tuple:
                inner += part
            elif type(part) not in _PLAIN_KEYS:
                return False
        if not inner:
            return True
        level = inner
    return False


def _check_distinct(made: Map, pos: int) -> None:
    """Refuse a map with a key twice.  Maps as keys count as different in a different order."""
    try:
        keys = {encode_body(key) for key, _ in made.pairs}
    except EncodeError as error:  # with limits wider than what may be sent
        raise DecodeError(f"a map has a key that no node would send: {error}", pos) from None
    if len(keys) < len(made.pairs):
        raise DecodeError("a map has the same key twice", pos)


# --- funs -------------------------------------------------------------------------------


def _close_fun(buf: Bytes, opened: int, pos: int, kind: int, items: list[Any]) -> Fun:
    """Check the fixed parts of a closure and keep its bytes."""
    if kind == _FUN:
        if _u32(buf, opened + 1)[0] != pos - opened - 1:
            raise DecodeError("a fun is not as long as it says", opened)
        module, index, uniq, owner = items[:4]
        arity = buf[opened + 5]
    else:
        owner, module, index, uniq = items[:4]
        arity = None
    if not (
        type(module) is Atom and type(index) is int and type(uniq) is int and type(owner) is Pid
    ):
        raise DecodeError("a fun without module, index, uniq and owner", opened)
    return Fun(bytes(buf[opened:pos]), module, arity)
