"""Runs of numbers in bulk: lists of token ids and vectors dominate the traffic.

In a list, an INTEGER_EXT is a tag and four bytes, a NEW_FLOAT_EXT a tag and eight, a
SMALL_INTEGER_EXT a tag and one.  A run of one kind therefore has its tags at a fixed
stride: a strided slice holds exactly the tags, ``count`` checks them all at once, and
one ``struct`` call converts the values between them (``x`` skips the tag).  Induction
makes the check exact: if the item at a position has the tag, its length is the stride,
so the next position is an item's start again.

Formats are compiled once for powers of two and a run is cut into those pieces; a format
per length would be compiled anew for nearly every list.

Measured on lists of 4096 ids, ``struct`` beats a numpy structured view where Python lists are
the other side, so numpy is used only when the caller hands in one of its arrays.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final

from erl_bridge.etf import tags
from erl_bridge.etf.errors import DecodeError, EncodeError

__all__ = ("BULK_MIN", "pack_array", "pack_numbers", "read_numbers")

BULK_MIN: Final = 8
"""Shorter lists go item by item: setting up a run costs about as much as eight items."""

_PIECE_BITS: Final = 10
_INTS: Final = tuple(struct.Struct(">" + "xi" * (1 << bit)) for bit in range(_PIECE_BITS + 1))
_FLOATS: Final = tuple(struct.Struct(">" + "xd" * (1 << bit)) for bit in range(_PIECE_BITS + 1))

# tag -> bytes per item, the tag as bytes (for lstrip)
_STRIDES: Final = {
    tags.SMALL_INTEGER: (2, bytes((tags.SMALL_INTEGER,))),
    tags.INTEGER: (5, bytes((tags.INTEGER,))),
    tags.NEW_FLOAT: (9, bytes((tags.NEW_FLOAT,))),
}

_WINDOW_MAX: Final = 4096
_WINDOW_MIN: Final = 64
_SHORT_RUN: Final = 8
_FREE_MISSES: Final = 16

# The first byte of an infinity or a NaN; only huge finite numbers share it.
_MAYBE_NOT_FINITE: Final = (0x7F, 0xFF)


def read_numbers(buf: bytes | memoryview, pos: int, end: int, count: int, out: list[Any]) -> int:
    """Append up to ``count`` leading numbers of a list's items to ``out``; return the new offset.

    Stops at the first item that is no number, that is cut off, or when the runs are too
    short to pay: the caller reads on from there item by item, and reports what is wrong.

    :raises DecodeError: a float is infinite or not a number.
    """
    window = _WINDOW_MAX
    misses = 0
    left = count
    while left and pos < end:
        stride_tag = _STRIDES.get(buf[pos])
        if stride_tag is None:
            break
        stride, tag = stride_tag
        size = min(left, (end - pos) // stride, window)
        if size == 0:
            break
        marks = bytes(buf[pos : pos + size * stride : stride])
        run = size if marks.count(tag) == size else size - len(marks.lstrip(tag))
        stop = pos + run * stride
        if stride == 2:
            out += bytes(buf[pos + 1 : stop : 2])
        elif stride == 5:
            _unpack(_INTS, buf, pos, run, out)
        else:
            _check_finite_run(buf, pos, stop, out, _unpack(_FLOATS, buf, pos, run, out))
        pos = stop
        left -= run
        window = min(window * 2, _WINDOW_MAX) if run == size else max(_WINDOW_MIN, run * 2)
        if run < _SHORT_RUN:
            # Ids below 256 sit alone between long runs: a few of them are no reason to stop.
            misses += 1
            if misses > _FREE_MISSES + len(out) // 16:
                break
    return pos


def _unpack(
    formats: tuple[struct.Struct, ...], buf: bytes | memoryview, pos: int, run: int, out: list[Any]
) -> int:
    """Append ``run`` values starting at ``pos``; return where in ``out`` they start."""
    first = len(out)
    largest = formats[-1]
    while run >> _PIECE_BITS:
        out += largest.unpack_from(buf, pos)
        pos += largest.size
        run -= 1 << _PIECE_BITS
    while run:
        piece = formats[run.bit_length() - 1]
        out += piece.unpack_from(buf, pos)
        pos += piece.size
        run -= 1 << (run.bit_length() - 1)
    return first


def _check_finite_run(
    buf: bytes | memoryview, pos: int, stop: int, out: list[Any], first: int
) -> None:
    heads = bytes(buf[pos + 1 : stop : 9])
    if any(byte in heads for byte in _MAYBE_NOT_FINITE):
        for index in range(len(heads)):
            if not math.isfinite(out[first + index]):
                raise DecodeError("a float is not a finite number", pos + 9 * index)


def pack_numbers(items: list[Any], *, checked: bool = False) -> bytes | None:
    """Encode a list of integers, or one of floats, as a whole; None if it is neither.

    All integers in 0..255 and at most 65 535 of them make a STRING_EXT, which every node
    reads as that list; other 32-bit integers a LIST_EXT of INTEGER_EXT (longer by three
    bytes for the small ones, and always legal).

    :param checked: the items are known to be all ``int`` or all ``float``.
    :raises EncodeError: a float is infinite or not a number.
    """
    kind = type(items[0])
    if kind is int:
        return _pack_integers(items, checked=checked)
    if kind is float and (checked or list(map(type, items)).count(float) == len(items)):
        body = _pack(_FLOATS, items)
        check_finite(body[1::9], items)
        body[0::9] = bytes((tags.NEW_FLOAT,)) * len(items)
        return _listed(body, len(items))
    return None


def _pack_integers(items: list[Any], *, checked: bool) -> bytes | None:
    if len(items) <= tags.MAX_STRING and _is_byte(items[0]) and _is_byte(items[-1]):
        try:
            text = bytes(items)
        except (TypeError, ValueError):
            pass  # not all of them are
        else:
            if not checked and _has_boolean(items, text):
                return None
            return struct.pack(">BH", tags.STRING, len(items)) + text
    try:
        body = _pack(_INTS, items)
    except (TypeError, struct.error):  # not integers, or beyond 32 bits: item by item
        return None
    if not checked and _has_boolean(items, body[4::5]):
        return None
    body[0::5] = bytes((tags.INTEGER,)) * len(items)
    return _listed(body, len(items))


def _is_byte(item: Any) -> bool:
    return type(item) is int and 0 <= item <= 255


_MANY_SUSPECTS: Final = 16  # one item in so many: from there on one look at all is cheaper


def _has_boolean(items: list[Any], low: bytes | bytearray) -> bool:
    """Say whether a boolean was packed as an integer, given each item's lowest byte.

    ``struct`` takes whatever counts as an integer, booleans too, which are atoms in Erlang.
    Only items whose lowest byte is 0 or 1 can be some: of token ids, one in 128.
    """
    if (low.count(0) + low.count(1)) * _MANY_SUSPECTS > len(items):
        return list(map(type, items)).count(int) != len(items)
    for byte in (0, 1):
        at = low.find(byte)
        while at >= 0:
            if type(items[at]) is not int:
                return True
            at = low.find(byte, at + 1)
    return False


def _listed(body: bytes | bytearray, count: int) -> bytes:
    return b"".join((struct.pack(">BI", tags.LIST, count), body, b"j"))


def _pack(formats: tuple[struct.Struct, ...], items: list[Any]) -> bytearray:
    count = len(items)
    largest = 1 << _PIECE_BITS
    if count & (count - 1) == 0 and count <= largest:
        return bytearray(formats[count.bit_length() - 1].pack(*items))
    out = bytearray()
    at = 0
    while at < count:
        left = count - at
        bit = min(left.bit_length() - 1, _PIECE_BITS)
        out += formats[bit].pack(*items[at : at + (1 << bit)])
        at += 1 << bit
    return out


def check_finite(heads: bytes | bytearray, values: Sequence[float]) -> None:
    """Refuse infinities and NaN among ``values``, given the first byte of each one's encoding."""
    if any(byte in heads for byte in _MAYBE_NOT_FINITE):
        for index, value in enumerate(values):
            if not math.isfinite(value):
                raise EncodeError(f"item {index} of a list of floats is {value!r}: Erlang has none")


def pack_array(array: Any) -> bytes | None:
    """Encode a numpy array as a list of numbers without making Python objects of them.

    :return: the term, or None when ``array`` is not a one-dimensional numpy array of
        32-bit integers' range or of floats; its ``tolist()`` is then the way.
    :raises EncodeError: a float is infinite or not a number.
    """
    numpy = sys.modules.get("numpy")  # if it is not loaded, this is not one of its arrays
    if numpy is None or not isinstance(array, numpy.ndarray):
        return None
    if array.ndim != 1 or array.size < BULK_MIN:
        return None
    kind = array.dtype.kind
    if kind in "iu":
        if array.min() < -(1 << 31) or array.max() >= 1 << 31:
            return None
        tag, form = tags.INTEGER, ">i4"
    elif kind == "f" and array.dtype.itemsize <= 8:
        if not numpy.isfinite(array).all():
            raise EncodeError("an array of floats holds an infinity or a NaN: Erlang has none")
        tag, form = tags.NEW_FLOAT, ">f8"
    else:
        return None
    body = numpy.empty(array.size, dtype=[("tag", "u1"), ("value", form)])
    body["tag"] = tag
    body["value"] = array
    return _listed(body.tobytes(), array.size)
