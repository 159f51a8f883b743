"""Every tag the decoder reads, written out byte by byte; and what it refuses, and where."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest

from erl_bridge.etf import (
    Atom,
    BitString,
    DecodeError,
    EtfError,
    Export,
    Fun,
    ImproperList,
    Limits,
    Map,
    Pid,
    Port,
    Reference,
    decode,
    decode_prefix,
    encode,
)

NODE = b"w\x03a@b"
LATIN_NODE = b"d\0\x03a@b"
A_B = Atom("a@b")

READ = {
    "small integer": (b"a\xff", 255),
    "integer": (b"b\xff\xff\xff\xfe", -2),
    "integer that would fit a small one": (b"b\0\0\0\x01", 1),
    "small big": (b"n\x08\x00\0\0\0\0\0\0\0\x80", 2**63),
    "negative small big": (b"n\x01\x01\x05", -5),
    "empty small big": (b"n\x00\x00", 0),
    "large big": (b"o\0\0\1\0\0" + b"\0" * 255 + b"\1", 2**2040),
    "new float": (b"F" + struct.pack(">d", -1.5), -1.5),
    "float text": (b"c" + b"1.50000000000000000000e+00".ljust(31, b"\0"), 1.5),
    "negative float text": (b"c" + b"-2.50000000000000000000e-01".ljust(31, b"\0"), -0.25),
    "small utf-8 atom": (b"w\x02\xc3\xa9", Atom("é")),
    "utf-8 atom": (b"v\0\x02\xc3\xa9", Atom("é")),
    "small latin-1 atom": (b"s\x01\xe9", Atom("é")),
    "latin-1 atom": (b"d\0\x01\xe9", Atom("é")),
    "empty atom": (b"w\0", Atom("")),
    "true": (b"w\x04true", Atom("true")),
    "binary": (b"m\0\0\0\x03abc", b"abc"),
    "empty binary": (b"m\0\0\0\0", b""),
    "bit string": (b"M\0\0\0\x02\x03\xff\xff", BitString(b"\xff\xe0", 3)),
    "bit string of whole bytes": (b"M\0\0\0\x02\x08ab", b"ab"),
    "empty bit string": (b"M\0\0\0\0\0", b""),
    "nil": (b"j", []),
    "string": (b"k\0\x03\x01\x02\xff", [1, 2, 255]),
    "empty string": (b"k\0\0", []),
    "list": (b"l\0\0\0\x02a\1w\1xj", [1, Atom("x")]),
    "list with a list for a tail": (b"l\0\0\0\x01a\1l\0\0\0\x01a\2k\0\x01\x03", [1, 2, 3]),
    "list with an empty list for a tail": (b"l\0\0\0\x01a\1l\0\0\0\0j", [1]),
    "list of nothing": (b"l\0\0\0\0j", []),
    "list of nothing before a tail": (b"l\0\0\0\0a\x07", 7),
    "improper list": (b"l\0\0\0\x01a\1a\2", ImproperList((1,), 2)),
    "improper list with a tuple tail": (b"l\0\0\0\x01a\1h\1a\2", ImproperList((1,), (2,))),
    "improper list in two parts": (
        b"l\0\0\0\1a\1l\0\0\0\1a\2w\1t",
        ImproperList((1, 2), Atom("t")),
    ),
    "small tuple": (b"h\x02a\1j", (1, [])),
    "empty tuple": (b"h\0", ()),
    "large tuple": (b"i\0\0\0\x01a\1", (1,)),
    "map": (b"t\0\0\0\x01w\1ka\1", {Atom("k"): 1}),
    "empty map": (b"t\0\0\0\0", {}),
    "new pid": (b"X" + NODE + struct.pack(">III", 1, 2, 0xFFFFFFFF), Pid(A_B, 1, 2, 0xFFFFFFFF)),
    "pid": (b"g" + LATIN_NODE + struct.pack(">IIB", 1, 2, 3), Pid(A_B, 1, 2, 3)),
    "port": (b"f" + LATIN_NODE + struct.pack(">IB", 1, 2), Port(A_B, 1, 2)),
    "new port": (b"Y" + NODE + struct.pack(">II", 1, 2), Port(A_B, 1, 2)),
    "v4 port": (b"x" + NODE + struct.pack(">QI", 2**40, 2), Port(A_B, 2**40, 2)),
    "reference": (b"e" + LATIN_NODE + struct.pack(">IB", 7, 2), Reference(A_B, 2, (7,))),
    "new reference": (
        b"r\0\x03" + LATIN_NODE + struct.pack(">BIII", 2, 7, 8, 9),
        Reference(A_B, 2, (7, 8, 9)),
    ),
    "newer reference of five words": (
        b"Z\0\x05" + NODE + struct.pack(">6I", 2, 1, 2, 3, 4, 5),
        Reference(A_B, 2, (1, 2, 3, 4, 5)),
    ),
    "export": (b"qw\1mw\1fa\x02", Export(Atom("m"), Atom("f"), 2)),
}


@pytest.mark.parametrize(("body", "term"), READ.values(), ids=READ.keys())
def test_reads(body: bytes, term: Any) -> None:
    got = decode(b"\x83" + body)
    assert got == term
    assert type(got) is type(term)


@pytest.mark.parametrize("body", [body for body, _ in READ.values()], ids=READ.keys())
def test_each_tag_cut_off_anywhere_is_refused(body: bytes) -> None:
    for size in range(len(body)):
        with pytest.raises(DecodeError):
            decode(b"\x83" + body[:size])


@pytest.mark.parametrize("body", [body for body, _ in READ.values()], ids=READ.keys())
def test_each_tag_is_read_in_any_place(body: bytes) -> None:
    """As an item, a key and a value, and from a view too large to be copied."""
    term = decode(b"\x83" + body)
    assert decode(b"\x83h\x03" + body + b"a\1" + body) == (term, 1, term)
    as_value = decode(b"\x83t\0\0\0\1a\1" + body)
    assert as_value == {1: term}
    as_key = decode(b"\x83t\0\0\0\1" + body + b"a\1")
    pairs = as_key.pairs if isinstance(as_key, Map) else tuple(as_key.items())
    assert pairs == ((term, 1),)
    padding = b"m\0\1\0\0" + b"\0" * 65536
    assert decode(memoryview(b"\x83h\2" + padding + body))[1] == term


REFUSED = {
    "no byte": (b"", "cut off"),
    "another version": (b"\x84j", "starts with 131, not with 132"),
    "no term": (b"\x83", "cut off"),
    "unknown tag": (b"\x83\x00", "unknown tag 0"),
    "trailing bytes": (b"\x83jj", "1 bytes follow"),
    "local form": (b"\x83y\0\0\0\0", "LOCAL_EXT"),
    "atom cache reference": (b"\x83R\0", "cache reference"),
    "invalid UTF-8": (b"\x83w\1\xff", "not valid UTF-8"),
    "surrogate in an atom": (b"\x83w\3\xed\xa0\x80", "not valid UTF-8"),
    "atom of 256 characters": (b"\x83v\1\0" + b"a" * 256, "longer than 255 characters"),
    "latin-1 atom of 256 characters": (b"\x83d\1\0" + b"\xe9" * 256, "longer than 255"),
    "infinity": (b"\x83F" + struct.pack(">d", float("inf")), "not a finite number"),
    "NaN": (b"\x83F" + struct.pack(">d", float("nan")), "not a finite number"),
    "float text nan": (b"\x83c" + b"nan".ljust(31, b"\0"), "malformed"),
    "float text with underscore": (b"\x83c" + b"1_0.5".ljust(31, b"\0"), "malformed"),
    "float text beyond range": (b"\x83c" + b"1.0e+999".ljust(31, b"\0"), "not a finite"),
    "bit string using 9 bits": (b"\x83M\0\0\0\1\x09a", "cannot use 9 bits"),
    "bit string of a byte using none": (b"\x83M\0\0\0\1\0a", "cannot use 0 bits"),
    "empty bit string using 3": (b"\x83M\0\0\0\0\3", "cannot use 3 bits"),
    "reference of no word": (b"\x83Z\0\0" + NODE + b"\0" * 4, "cannot have 0 words"),
    "reference of six words": (b"\x83Z\0\6" + NODE + b"\0" * 28, "cannot have 6 words"),
    "pid of a node that is no atom": (b"\x83Xa\1" + b"\0" * 12, "expected an atom"),
    "export of an arity that is none": (b"\x83qw\1mw\1fb\0\0\0\1", "arity"),
    "key twice": (b"\x83t\0\0\0\2a\1ja\1j", "same key twice"),
    "key twice in two encodings": (b"\x83t\0\0\0\2a\1jb\0\0\0\1j", "same key twice"),
    "list key twice": (b"\x83t\0\0\0\2jjjj", "same key twice"),
    "tuple key twice": (b"\x83t\0\0\0\2h\1a\1jh\1a\1j", "same key twice"),
    "compressed garbage": (b"\x83P\0\0\0\1garbage", "damaged"),
    "compressed inside": (b"\x83h\1P\0\0\0\1" + zlib.compress(b"j"), "directly after"),
    "compressed twice": (
        b"\x83P\0\0\0\x06" + zlib.compress(b"P\0\0\0\1x"),
        "directly after",
    ),
    "compressed, more than claimed": (b"\x83P\0\0\0\1" + zlib.compress(b"jj"), "claims"),
    "compressed, less than claimed": (b"\x83P\0\0\0\3" + zlib.compress(b"jj"), "claims"),
    "compressed with rest inside": (b"\x83P\0\0\0\2" + zlib.compress(b"jj"), "follow the term"),
    "compressed with rest behind": (b"\x83P\0\0\0\1" + zlib.compress(b"j") + b"j", "follow the"),
    "compressed, cut off": (b"\x83P\0\0\0\1" + zlib.compress(b"j")[:-1], "claims"),
    "infinity in a run of floats": (
        b"\x83l\0\0\0\x0a" + b"F\0\0\0\0\0\0\0\0" * 9 + b"F\x7f\xf0" + b"\0" * 6 + b"j",
        "not a finite number",
    ),
}


@pytest.mark.parametrize(("data", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(data: bytes, why: str) -> None:
    with pytest.raises(DecodeError, match=why) as caught:
        decode(data)
    assert isinstance(caught.value, EtfError)
    assert 0 <= caught.value.offset <= max(len(data), 15)


@pytest.mark.parametrize(
    "head",
    [b"m", b"l", b"i", b"t", b"M", b"o", b"p", b"u"],
    ids=["binary", "list", "tuple", "map", "bits", "big", "fun", "old fun"],
)
def test_a_length_of_four_gigabytes_is_refused_before_anything_is_allocated(head: bytes) -> None:
    """Allocating it would raise MemoryError or take seconds, not DecodeError."""
    with pytest.raises(DecodeError):
        decode(b"\x83" + head + b"\xff" * 32)


def test_the_offset_is_that_of_the_buffer_handed_in() -> None:
    data = b"xx\x83h\2a\1\x00"
    with pytest.raises(DecodeError, match="unknown tag 0") as caught:
        decode_prefix(data, 2)
    assert caught.value.offset == 7
    assert "at byte 7" in str(caught.value)


def test_two_terms_in_a_frame_are_read_one_behind_the_other() -> None:
    frame = b"p" + encode((6, Atom("x"))) + encode([1, 2])
    control, at = decode_prefix(frame, 1)
    message, end = decode_prefix(memoryview(frame), at)
    assert (control, message, end) == ((6, Atom("x")), [1, 2], len(frame))


def test_an_offset_before_the_buffer_is_a_callers_error() -> None:
    with pytest.raises(ValueError, match="negative"):
        decode_prefix(b"\x83j", -1)


def test_what_is_no_buffer_is_a_callers_error() -> None:
    with pytest.raises(TypeError):
        decode("text")  # type: ignore[arg-type]  # that is the point


# --- limits -----------------------------------------------------------------------------

DEEP = {
    "lists": (b"l\0\0\0\1", b"j", b"j"),
    "tuples": (b"h\1", b"j", b""),
    "map values": (b"t\0\0\0\1a\1", b"j", b""),
    "map keys": (b"t\0\0\0\1", b"j", b"a\1"),
    "improper tails": (b"l\0\0\0\1a\1h\1", b"j", b""),
    "fun environments": (
        b"p\0\0\0\0\0" + b"\0" * 20 + b"\0\0\0\1w\1ma\1a\1X" + NODE + b"\0" * 12,
        b"j",
        b"",
    ),
}


@pytest.mark.parametrize(("head", "core", "tail"), DEEP.values(), ids=DEEP.keys())
def test_a_hundred_thousand_levels_are_refused_by_the_limit(
    head: bytes, core: bytes, tail: bytes
) -> None:
    with pytest.raises(DecodeError, match="nested deeper than 256"):
        decode(b"\x83" + head * 100_000 + core + tail * 100_000)


def test_depth_up_to_the_limit_is_read() -> None:
    data = b"\x83" + b"h\1" * 5 + b"j"
    assert decode(data, limits=Limits(max_depth=5)) == ((((([],),),),),)
    with pytest.raises(DecodeError, match="deeper than 4"):
        decode(data, limits=Limits(max_depth=4))


def test_a_list_in_a_thousand_parts_is_one_list_and_not_deep() -> None:
    assert decode(b"\x83" + b"l\0\0\0\1a\7" * 1000 + b"j") == [7] * 1000


def test_raising_the_depth_is_safe() -> None:
    """Deep tuples as map keys are neither hashed nor compared: C would recurse unchecked."""
    deep = b"h\1" * 100_000 + b"j"
    term = decode(b"\x83" + deep, limits=Limits(max_depth=200_000))
    assert type(term) is tuple
    with pytest.raises(DecodeError, match="key"):
        decode(b"\x83t\0\0\0\1" + deep + b"j", limits=Limits(max_depth=200_000))


@pytest.mark.parametrize(
    "body",
    [
        b"h\4a\1a\1a\1a\1",
        b"l\0\0\0\4a\1a\1a\1a\1j",
        b"k\0\4abcd",
        b"t\0\0\0\2a\1ja\2j",
        b"h\2h\1jj",
        b"l\0\0\0\2a\1a\1l\0\0\0\2a\1a\1j",
        b"l\0\0\0\2a\1a\1k\0\2ab",
    ],
)
def test_the_number_of_terms_is_limited(body: bytes) -> None:
    assert decode(b"\x83" + body, limits=Limits(max_terms=4)) is not None
    with pytest.raises(DecodeError, match=r"more than [23] terms"):
        decode(b"\x83" + body, limits=Limits(max_terms=2 if body[1:2] == b"\2" else 3))


def test_binaries_bit_strings_and_integers_are_limited() -> None:
    limits = Limits(max_binary_bytes=3, max_big_bytes=3)
    for body, what in (
        (b"m\0\0\0\4abcd", "binary"),
        (b"M\0\0\0\4\3abcd", "bit string"),
        (b"n\4\0abcd", "integer"),
        (b"o\0\0\0\4\0abcd", "integer"),
    ):
        assert decode(b"\x83" + body) is not None
        with pytest.raises(DecodeError, match=f"{what} is longer than 3"):
            decode(b"\x83" + body, limits=limits)


def test_an_atom_is_limited_in_characters_even_when_it_is_known() -> None:
    body = b"\x83w\6\xc3\xa9\xc3\xa9\xc3\xa9"
    assert decode(body) == Atom("ééé")
    assert decode(body, limits=Limits(max_atom_chars=3)) == Atom("ééé")
    with pytest.raises(DecodeError, match="longer than 2 characters"):
        decode(body, limits=Limits(max_atom_chars=2))


def test_255_characters_of_four_bytes_are_an_atom() -> None:
    name = "\U0001f600" * 255
    raw = name.encode()
    assert decode(b"\x83v" + struct.pack(">H", len(raw)) + raw) is Atom(name)


def test_inflation_is_limited_by_the_claim_and_by_the_bytes() -> None:
    body = b"m\0\1\0\0" + b"\0" * 65536
    packed = zlib.compress(body)
    honest = b"\x83P" + struct.pack(">I", len(body)) + packed
    assert len(decode(honest)) == 65536
    with pytest.raises(DecodeError, match="beyond the limit"):
        decode(honest, limits=Limits(max_inflated_bytes=65536))
    with pytest.raises(DecodeError, match="does not inflate to the 10 bytes"):
        decode(b"\x83P\0\0\0\x0a" + packed, limits=Limits(max_inflated_bytes=65536))


# --- maps that a dict cannot hold -------------------------------------------------------


def test_keys_that_python_would_merge_make_a_map() -> None:
    one, one_float = b"a\1", b"F" + struct.pack(">d", 1.0)
    got = decode(b"\x83t\0\0\0\2" + one + b"w\1a" + one_float + b"w\1b")
    assert isinstance(got, Map)
    assert got.get(1) is Atom("a")
    assert got.get(1.0) is Atom("b")
    nested = decode(b"\x83t\0\0\0\2h\1" + one + b"w\1ah\1" + one_float + b"w\1b")
    assert isinstance(nested, Map)
    assert len(nested) == 2


def test_signed_zeros_are_two_keys() -> None:
    """OTP 27 and later tell them apart."""
    plus, minus = (b"F" + struct.pack(">d", zero) for zero in (0.0, -0.0))
    got = decode(b"\x83t\0\0\0\2" + plus + b"j" + minus + b"j")
    assert isinstance(got, Map)
    assert [str(key) for key, _ in got.pairs] == ["0.0", "-0.0"]


@pytest.mark.parametrize(
    "key", [[1, 2, 3], {1: 2}, ([],), ImproperList((1,), 2), Map([([], 1)])], ids=repr
)
def test_keys_that_cannot_be_hashed_make_a_map(key: Any) -> None:
    got = decode(encode(Map([(key, 1), (2, 3)])))
    assert isinstance(got, Map)
    assert got.pairs == ((key, 1), (2, 3))


def test_a_tuple_of_plain_terms_is_a_key_of_a_dict() -> None:
    key = (Atom("a"), (1, b"b", Pid(A_B, 1, 2, 3)))
    assert decode(encode({key: 1})) == {key: 1}


def test_keys_made_to_collide_do_not_become_a_dict() -> None:
    """In a dict 20 000 integers of one hash would take minutes; this takes milliseconds."""
    keys = [number * (2**61 - 1) for number in range(1, 20_001)]
    assert len(set(map(hash, keys[:100]))) == 1
    got = decode(encode(Map((key, 0) for key in keys)))
    assert isinstance(got, Map)
    assert [key for key, _ in got.pairs] == keys


def test_a_large_ordinary_map_is_a_dict() -> None:
    term = {number: Atom("x") for number in range(5000)}
    assert decode(encode(term)) == term
    assert type(decode(encode(term))) is dict


def test_maps_nested_in_keys_of_maps_are_read_only_so_often() -> None:
    key: Any = [1] * 20_000
    for _ in range(5):
        key = Map([(key, 1)])
    assert decode(encode(key)) == key
    for _ in range(20):
        key = Map([(key, 1)])
    with pytest.raises(DecodeError, match="too deep in keys of maps"):
        decode(encode(key))


# --- funs -------------------------------------------------------------------------------


def _fun(*, free: bytes = b"a\5", count: int = 1, module: bytes = b"w\1m", size: int = 0) -> bytes:
    inner = b"\2" + b"u" * 16 + struct.pack(">II", 7, count) + module + b"a\7b\0\1\0\0"
    inner += b"X" + NODE + struct.pack(">III", 1, 2, 3) + free
    return b"p" + struct.pack(">I", (size or len(inner) + 4)) + inner


def test_a_fun_is_kept_as_it_came() -> None:
    raw = _fun()
    got = decode(b"\x83h\2" + raw + b"a\1")[0]
    assert got == Fun(raw)
    assert (got.module, got.arity) == (Atom("m"), 2)
    assert encode((got, 1)) == b"\x83h\2" + raw + b"a\1"


def test_a_fun_of_the_old_form_is_kept_as_it_came() -> None:
    raw = b"u\0\0\0\1g" + LATIN_NODE + b"\0" * 9 + b"d\0\1ma\1a\2a\5"
    got = decode(b"\x83h\2" + raw + b"a\1")[0]
    assert got == Fun(raw)
    assert (got.module, got.arity) == (Atom("m"), None)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (_fun(size=200), "not as long as it says"),
        (_fun(size=30), "not as long as it says"),
        (_fun(module=b"a\1"), "without module"),
        (_fun(free=b"\0"), "unknown tag"),
        (_fun(count=2), "cut off"),
        (b"u\0\0\0\0a\1w\1ma\1a\1", "without module"),
    ],
)
def test_a_damaged_fun_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        decode(b"\x83" + raw)


# --- runs of numbers --------------------------------------------------------------------


@pytest.mark.parametrize("count", [7, 8, 9, 63, 64, 65, 1023, 1024, 1025, 5000])
def test_runs_of_each_kind_of_number_are_read_in_bulk(count: int) -> None:
    head = b"\x83l" + struct.pack(">I", count)
    ints = [-(2**31), 2**31 - 1, *range(1000, 1000 + count)][:count]
    body = b"".join(b"b" + struct.pack(">i", number) for number in ints)
    assert decode(head + body + b"j") == ints
    small = [number % 256 for number in range(count)]
    assert decode(head + b"".join(bytes((97, number)) for number in small) + b"j") == small
    floats = [-1.7976931348623157e308, 0.0, *(number / 3 for number in range(count))][:count]
    body = b"".join(b"F" + struct.pack(">d", number) for number in floats)
    assert decode(head + body + b"j") == floats
    assert decode(memoryview(head + body + b"j" + b"").toreadonly()) == floats


def test_values_that_look_like_tags_do_not_mislead_the_bulk_path() -> None:
    """98 is INTEGER_EXT's tag, 97 SMALL_INTEGER_EXT's, 0x46 NEW_FLOAT_EXT's."""
    numbers = [0x62626262, 97, 98, 70, 0x61616161] * 40 + [0x62626262] * 40
    assert decode(encode((numbers, numbers))) == (numbers, numbers)
    doubles = [struct.unpack(">d", b"F" * 8)[0]] * 40
    assert decode(encode(doubles)) == doubles


def test_a_run_that_ends_in_something_else_goes_on_item_by_item() -> None:
    items = [*range(1000, 1050), 5, 6.5, Atom("x"), b"y", [1], 2**70, *range(1000, 1050)]
    assert decode(encode(items)) == items
    assert list(map(type, decode(encode(items)))) == list(map(type, items))


def test_small_and_large_ids_mixed_at_random_are_read() -> None:
    items = [(number * 7919) % 600 for number in range(3000)]
    body = b"".join(
        bytes((97, number)) if number < 256 else b"b" + struct.pack(">i", number)
        for number in items
    )
    assert decode(b"\x83l" + struct.pack(">I", len(items)) + body + b"j") == items


def test_a_string_of_the_longest_length_is_a_list_of_integers() -> None:
    items = [number % 256 for number in range(65_535)]
    assert decode(b"\x83k\xff\xff" + bytes(items)) == items
