"""What the encoder writes, byte by byte, and what it refuses."""

from __future__ import annotations

import array
import enum
import struct
import subprocess
import sys
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest

from erl_bridge.etf import (
    FALSE,
    TRUE,
    UNDEFINED,
    Atom,
    BitString,
    Encoded,
    EncodeError,
    EtfError,
    Export,
    Fun,
    ImproperList,
    Map,
    Pid,
    Port,
    Reference,
    binary_term,
    decode,
    encode,
    encode_body,
    tuple_head,
)

NODE = Atom("a@b")
RAW_NODE = b"w\x03a@b"


class Color(enum.IntEnum):
    RED = 3


class Handle:
    """An integer to Python, by its one method."""

    def __index__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return "Handle()"


class Point(NamedTuple):
    x: int
    y: int


WRITTEN = {
    "zero": (0, b"a\0"),
    "255": (255, b"a\xff"),
    "256": (256, b"b\0\0\1\0"),
    "minus one": (-1, b"b\xff\xff\xff\xff"),
    "largest integer": (2**31 - 1, b"b\x7f\xff\xff\xff"),
    "smallest integer": (-(2**31), b"b\x80\0\0\0"),
    "first big": (2**31, b"n\x04\0\0\0\0\x80"),
    "first negative big": (-(2**31) - 1, b"n\x04\1\1\0\0\x80"),
    "last small big": (2**2040 - 1, b"n\xff\0" + b"\xff" * 255),
    "first large big": (2**2040, b"o\0\0\1\0\0" + b"\0" * 255 + b"\1"),
    "float": (1.5, b"F" + struct.pack(">d", 1.5)),
    "atom": (Atom("é"), b"w\2\xc3\xa9"),
    "atom of 255 bytes": (Atom("a" * 255), b"w\xff" + b"a" * 255),
    "atom of 256 bytes": (Atom("é" * 128), b"v\1\0" + "é".encode() * 128),
    "true": (True, b"w\4true"),
    "false": (False, b"w\5false"),
    "None": (None, b"w\x09undefined"),
    "binary": (b"abc", b"m\0\0\0\3abc"),
    "bytearray": (bytearray(b"abc"), b"m\0\0\0\3abc"),
    "view": (memoryview(b"abc"), b"m\0\0\0\3abc"),
    "strided view": (memoryview(b"a-b-c")[::2], b"m\0\0\0\3abc"),
    "view of wider items": (memoryview(array.array("H", [1, 1])).cast("B"), None),
    "bit string": (BitString(b"\xff", 3), b"M\0\0\0\1\3\xe0"),
    "empty list": ([], b"j"),
    "list": ([1, Atom("x")], b"l\0\0\0\2a\1w\1xj"),
    "short list of bytes": ([1, 2], b"l\0\0\0\2a\1a\2j"),
    "long list of bytes": ([9] * 8, b"k\0\x08" + b"\x09" * 8),
    "list of booleans": ([True] * 9, b"l\0\0\0\x09" + b"w\4true" * 9 + b"j"),
    "improper list": (ImproperList((1,), 2), b"l\0\0\0\1a\1a\2"),
    "tuple": ((1, ()), b"h\2a\1h\0"),
    "tuple of 255": ((1,) * 255, b"h\xff" + b"a\1" * 255),
    "tuple of 256": ((1,) * 256, b"i\0\0\1\0" + b"a\1" * 256),
    "map": ({Atom("k"): 1}, b"t\0\0\0\1w\1ka\1"),
    "Map": (Map([([], 1)]), b"t\0\0\0\1ja\1"),
    "empty map": ({}, b"t\0\0\0\0"),
    "pid": (Pid(NODE, 1, 2, 3), b"X" + RAW_NODE + struct.pack(">III", 1, 2, 3)),
    "port": (Port(NODE, 1, 3), b"Y" + RAW_NODE + struct.pack(">II", 1, 3)),
    "wide port": (Port(NODE, 2**32, 3), b"x" + RAW_NODE + struct.pack(">QI", 2**32, 3)),
    "reference": (
        Reference(NODE, 9, (1, 2, 3, 4, 5)),
        b"Z\0\5" + RAW_NODE + struct.pack(">6I", 9, 1, 2, 3, 4, 5),
    ),
    "export": (Export(Atom("m"), Atom("f"), 2), b"qw\1mw\1fa\2"),
    "fun": (Fun(b"praw"), b"praw"),
    "encoded": (Encoded(b"a\1"), b"a\1"),
    "enumeration": (Color.RED, b"a\3"),
    "integer by method": (Handle(), b"a\1"),
    "named tuple": (Point(1, 2), b"h\2a\1a\2"),
    "ordered dict": (OrderedDict([(1, 2)]), b"t\0\0\0\1a\1a\2"),
    "array of integers": (array.array("b", [-1, 1]), b"l\0\0\0\2b\xff\xff\xff\xffa\1j"),
    "array of floats": (array.array("d", [1.5]), b"l\0\0\0\1F" + struct.pack(">d", 1.5) + b"j"),
    "empty array": (array.array("i"), b"j"),
    "numpy scalar": (np.int64(7), b"a\7"),
    "numpy float": (np.float32(1.5), b"F" + struct.pack(">d", 1.5)),
    "numpy boolean": (np.bool_(True), b"w\4true"),
}


@pytest.mark.parametrize(("term", "body"), WRITTEN.values(), ids=WRITTEN.keys())
def test_writes(term: Any, body: bytes | None) -> None:
    if body is None:
        body = b"m" + struct.pack(">I", len(bytes(term))) + bytes(term)
    assert encode(term) == b"\x83" + body
    assert encode(term, version=False) == body
    assert encode_body(term) == body
    assert encode((term, 1)) == b"\x83h\2" + body + b"a\1"


REFUSED = {
    "str": ("text", "the str 'text' could be a binary or an atom"),
    "long str": ("x" * 1000, r"x'\.\.\. could be"),
    "numpy str": (np.str_("text"), "could be a binary or an atom"),
    "infinity": (float("inf"), "inf has no external form"),
    "NaN": (float("nan"), "nan has no external form"),
    "infinity in a long list": ([1.0] * 9 + [float("-inf")], "item 9 .* is -inf"),
    "NaN in an array": (array.array("d", [1.0] * 9 + [float("nan")]), "item 9 .* is nan"),
    "NaN in a numpy array": (np.array([1.0] * 9 + [float("nan")]), "a NaN"),
    "NaN in a short numpy array": (np.array([float("nan")]), "nan has no external form"),
    "set": ({1}, "a set has no external form"),
    "object": (object(), "a object has no external form"),
    "complex": (1j, "a complex has no external form"),
    "function": (len, "builtin_function_or_method"),
    "characters": (array.array("u", "ab"), "encode it to bytes first"),
    "numpy date": (np.datetime64("2020-01-01"), "no external form"),
    "atom of 256 characters": (Atom("a" * 256), "at most 255"),
    "atom with a surrogate": (Atom("\ud800"), "not valid Unicode"),
    "pid out of range": (Pid(NODE, 2**32, 0, 0), "field"),
    "pid of text": (Pid(NODE, "1", 0, 0), "field"),  # type: ignore[arg-type]
    "pid without an atom": (Pid("a@b", 1, 0, 0), "node must be an Atom"),  # type: ignore[arg-type]
    "port out of range": (Port(NODE, 2**64, 0), "field"),
    "reference of no word": (Reference(NODE, 1, ()), "1..5 words"),
    "reference of six words": (Reference(NODE, 1, (1,) * 6), "1..5 words"),
    "reference out of range": (Reference(NODE, 1, (-1,)), "field"),
    "export of a large arity": (Export(NODE, NODE, 256), "field"),
    "the atom and None": ({UNDEFINED: 1, None: 2}, "two keys"),
    "the atom and True": ({TRUE: 1, True: 2}, "two keys"),
    "tuples of them": ({(FALSE,): 1, (False,): 2}, "two keys"),
    "keys of a Map twice": (Map([([1], 1), ([1], 2)]), "two keys"),
    "a list and an array": (Map([([1], 1), (array.array("i", [1]), 2)]), "two keys"),
}


@pytest.mark.parametrize(("term", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(term: Any, why: str) -> None:
    for place in (term, [term], (1, term), {1: term}, Map([([], term)])):
        with pytest.raises(EncodeError, match=why) as caught:
            encode(place)
        assert isinstance(caught.value, EtfError)


def test_a_key_that_is_refused_is_refused_as_a_key() -> None:
    with pytest.raises(EncodeError, match="the str 'k'"):
        encode({"k": 1})


def test_a_list_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(EncodeError, match="does it contain itself"):
        encode(loop)


@pytest.mark.parametrize("wrap", [lambda t: [t], lambda t: (t,), lambda t: {1: t}])
def test_a_hundred_thousand_levels_are_refused_and_thousands_are_written(wrap: Any) -> None:
    term: Any = 1
    for _ in range(9_000):
        term = wrap(term)
    assert encode(term)
    for _ in range(91_000):
        term = wrap(term)
    with pytest.raises(EncodeError, match="deeper than 10000"):
        encode(term)


def test_a_binary_of_a_megabyte_is_written_whole() -> None:
    data = bytes(range(256)) * 4096
    assert encode(data) == b"\x83m\0\x10\0\0" + data


# --- lists of numbers -------------------------------------------------------------------


@pytest.mark.parametrize("count", [7, 8, 9, 100, 1023, 1024, 1025, 3000])
def test_long_lists_of_integers_are_written_as_integers(count: int) -> None:
    ids = [number * 50 for number in range(count)]
    data = encode(ids)
    assert decode(data) == ids
    if count >= 8:
        body = b"".join(b"b" + struct.pack(">i", number) for number in ids)
        assert data == b"\x83l" + struct.pack(">I", count) + body + b"j"


@pytest.mark.parametrize("count", [8, 255, 65_535])
def test_bytes_in_a_list_are_written_as_a_string(count: int) -> None:
    items = [number % 256 for number in range(count)]
    assert encode(items) == b"\x83k" + struct.pack(">H", count) + bytes(items)


def test_more_bytes_than_a_string_can_hold_are_written_as_a_list() -> None:
    items = [7] * 65_536
    data = encode(items)
    assert data[1:2] == b"l"
    assert decode(data) == items


@pytest.mark.parametrize(
    "odd",
    [True, False, 1.5, 2**40, None, Atom("x"), [1], Color.RED, Handle(), np.int16(7), np.bool_(0)],
    ids=repr,
)
@pytest.mark.parametrize("place", [0, 10, 19])
def test_one_item_of_another_kind_keeps_its_kind(odd: Any, place: int) -> None:
    for fill in (5, 500, 1.25):
        items: list[Any] = [fill] * 20
        items[place] = odd
        alone = decode(encode(odd))
        got = decode(encode(items))
        assert got[place] == alone
        assert type(got[place]) is type(alone)
        assert got[(place + 1) % 20] == fill
        assert type(got[(place + 1) % 20]) is type(fill)


@pytest.mark.parametrize("place", [1, 10, 19])
def test_an_array_among_numbers_is_a_list_among_numbers(place: int) -> None:
    for fill in (5, 500, 1.25):
        items: list[Any] = [fill] * 20
        items[place] = np.arange(3)
        expected: list[Any] = [fill] * 20
        expected[place] = [0, 1, 2]
        assert decode(encode(items)) == expected


def test_a_boolean_among_ids_is_found_wherever_it_is() -> None:
    """Among few zeros and ones, and among many: two ways to look."""
    for ids in (list(range(2, 5000)), [number % 3 for number in range(500)]):
        for place in (1, 100, len(ids) - 1):
            for odd in (True, False):
                items = [*ids[:place], odd, *ids[place + 1 :]]
                got = decode(encode(items))
                assert got[place] is Atom(str(odd).lower())
                assert got[:place] == ids[:place]
                assert got[place + 1 :] == ids[place + 1 :]


def test_floats_of_the_largest_exponent_are_finite() -> None:
    """They share their first byte with infinities, which the bulk path looks at."""
    items = [1.7976931348623157e308, -1.7976931348623157e308] * 10
    assert decode(encode(items)) == items
    assert decode(encode(np.array(items))) == items


ARRAYS = {
    "signed bytes": np.arange(-50, 50, dtype="i1"),
    "bytes": np.arange(100, dtype="u1"),
    "native": np.arange(100),
    "big-endian": np.arange(100, dtype=">i4"),
    "every other": np.arange(200)[::2],
    "backwards": np.arange(100)[::-1],
    "beyond 32 bits": np.arange(100, dtype="u8") + np.uint64(2**32 - 1),
    "beyond 63 bits": np.full(100, 2**64 - 1, dtype="u8"),
    "half floats": np.arange(100, dtype="f2"),
    "floats": np.linspace(-1, 1, 100, dtype="f4"),
    "doubles": np.linspace(-1, 1, 100),
    "short": np.arange(3),
    "empty": np.zeros(0),
    "booleans": np.array([True, False] * 10),
    "matrix": np.arange(24).reshape(2, 12),
    "no dimension": np.array(5),
    "C integers": array.array("i", range(1000)),
    "C longs": array.array("q", [2**40] * 20),
    "C doubles": array.array("d", [0.5] * 1000),
    "C floats": array.array("f", [0.5] * 3),
}


@pytest.mark.parametrize("value", ARRAYS.values(), ids=ARRAYS.keys())
def test_arrays_are_written_as_the_list_of_their_numbers(value: Any) -> None:
    expected = decode(encode(value.tolist()))
    got = decode(encode(value))
    assert got == expected
    assert decode(encode((1, value, 2))) == (1, expected, 2)


def test_without_numpy_everything_but_its_arrays_works() -> None:
    program = (
        "import sys; sys.modules['numpy'] = None\n"
        "from array import array\n"
        "from erl_bridge.etf import encode, decode\n"
        "ids = list(range(5000)); floats = [x / 7 for x in ids]\n"
        "term = [ids, floats, [1] * 70000]\n"
        "assert decode(encode(term)) == term\n"
        "assert decode(encode(array('i', ids))) == ids\n"
        "assert sys.modules['numpy'] is None\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_importing_the_codec_does_not_import_numpy() -> None:
    program = "import sys, erl_bridge.etf; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# --- parts ------------------------------------------------------------------------------


def test_a_message_is_put_together_from_a_head_and_a_binary() -> None:
    ref = Reference(NODE, 1, (1, 2, 3))
    whole = encode((Atom("erllama_token"), ref, b"text"))
    assert tuple_head(3, Atom("erllama_token"), ref) + binary_term(b"text") == whole
    bare = tuple_head(3, Atom("erllama_token"), ref, version=False)
    assert bare + binary_term(memoryview(b"text")) == whole[1:]
    assert tuple_head(300, *range(299)) + encode_body(299) == encode(tuple(range(300)))


def test_a_head_of_more_items_than_the_tuple_is_refused() -> None:
    with pytest.raises(EncodeError, match="3 items do not fit into a tuple of 2"):
        tuple_head(2, 1, 2, 3)
