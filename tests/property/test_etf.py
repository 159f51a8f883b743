"""The codec's invariant: bytes decode to one term or raise DecodeError, never anything else."""

from __future__ import annotations

import zlib
from typing import Any

import erlang  # type: ignore[import-untyped]  # erlang-py, the oracle, has no types
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from erl_bridge.etf import (
    Atom,
    BitString,
    DecodeError,
    Encoded,
    ImproperList,
    Limits,
    Map,
    Pid,
    Port,
    Reference,
    decode,
    decode_prefix,
    encode,
    encode_body,
    term_to_text,
    tuple_head,
)
from tests.property.strategies.erl_terms import atoms, canonical, floats, integers, terms


@given(terms)
def test_what_is_encoded_decodes_to_the_same_term(term: Any) -> None:
    data = encode(term)
    back = decode(data)
    assert canonical(back) == canonical(term)
    assert type(back) is type(term)
    assert encode(back) == data


@given(terms, st.binary(max_size=8))
def test_every_kind_of_buffer_gives_the_same_term(term: Any, padding: bytes) -> None:
    data = encode(term)
    expected = canonical(term)
    assert canonical(decode(bytearray(data))) == expected
    strided = bytearray(2 * len(data))
    strided[::2] = data
    assert canonical(decode(memoryview(strided)[::2])) == expected
    # Large views take the path without a copy.
    large = memoryview(encode((b"\0" * 70_000, term)))
    assert canonical(decode(large)[1]) == expected
    found, stop = decode_prefix(padding + data + b"rest", len(padding))
    assert canonical(found) == expected
    assert stop == len(padding) + len(data)


@given(terms)
def test_a_compressed_term_is_the_same_term(term: Any) -> None:
    body = encode_body(term)
    packed = b"\x83P" + len(body).to_bytes(4, "big") + zlib.compress(body)
    assert canonical(decode(packed)) == canonical(term)
    found, stop = decode_prefix(packed + b"rest")
    assert canonical(found) == canonical(term)
    assert stop == len(packed)


@settings(max_examples=60)
@given(terms)
def test_every_truncation_is_a_decode_error(term: Any) -> None:
    data = encode(term)
    for size in range(len(data)):
        with pytest.raises(DecodeError) as caught:
            decode(data[:size])
        assert 0 <= caught.value.offset <= size


@settings(max_examples=300)
@given(terms, st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_bytes_decode_or_raise_decode_error(
    term: Any, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(encode(term))
    for place, byte in changes:
        data[min(int(place * len(data)), len(data) - 1)] = byte
    _decodes_or_raises_decode_error(bytes(data))


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_decode_or_raise_decode_error(data: bytes) -> None:
    _decodes_or_raises_decode_error(b"\x83" + data)


TAGS = bytes([70, 77, 80, 82, 88, 89, 90, *range(97, 122)])


@settings(max_examples=500)
@given(st.lists(st.sampled_from([bytes((tag,)) for tag in TAGS]) | st.binary(max_size=3)))
def test_arbitrary_tags_decode_or_raise_decode_error(parts: list[bytes]) -> None:
    """Bytes biased to tags reach deeper than uniform ones; zero-filled, counts are small."""
    _decodes_or_raises_decode_error(b"\x83" + b"\0".join(parts))
    _decodes_or_raises_decode_error(b"\x83" + b"\0\0\0\1".join(parts))


def _decodes_or_raises_decode_error(data: bytes) -> None:
    limits = Limits(max_terms=10_000, max_inflated_bytes=100_000)
    try:
        term = decode(data, limits=limits)
    except DecodeError:
        return
    # What was accepted is a term: it has text, and encodes to one that decodes to the same.
    assert term_to_text(term)
    assert canonical(decode(encode(term))) == canonical(term)


@given(terms, st.integers(0, 120))
def test_text_keeps_its_bound(term: Any, limit: int) -> None:
    text = term_to_text(term, limit=limit)
    assert len(text) <= max(limit, 3)
    assert term_to_text(term, limit=100_000).startswith(text.removesuffix("..."))


@given(terms, terms, terms)
def test_spliced_parts_give_the_bytes_of_the_whole(first: Any, second: Any, third: Any) -> None:
    whole = encode((first, second, third))
    assert encode((first, Encoded(encode_body(second)), third)) == whole
    assert tuple_head(3, first, second) + encode_body(third) == whole


# --- erlang-py beside ours --------------------------------------------------------------

common_terms = st.recursive(
    integers
    | floats
    | atoms
    | st.binary(max_size=60)
    | st.builds(BitString, st.binary(min_size=1, max_size=9), st.integers(1, 7)),
    lambda inner: (
        st.lists(inner, max_size=12)
        | st.lists(inner, max_size=6).map(tuple)
        # Its maps cannot hold lists as keys and merge what Python merges.
        | st.dictionaries(atoms, inner, max_size=8)
    ),
    max_leaves=25,
)


@given(common_terms)
def test_erlang_py_reads_what_we_write(term: Any) -> None:
    assert canonical(_from_theirs(erlang.binary_to_term(encode(term)))) == canonical(term)


@given(common_terms)
def test_we_read_what_erlang_py_writes(term: Any) -> None:
    theirs = _to_theirs(term)
    for compressed in (False, 6):
        data = erlang.term_to_binary(theirs, compressed=compressed)
        assert canonical(decode(data)) == canonical(term)


def _to_theirs(term: Any) -> Any:
    match term:
        case Atom():
            return erlang.OtpErlangAtom(term.name)
        case bytes():
            return erlang.OtpErlangBinary(term)
        case BitString():
            return erlang.OtpErlangBinary(term.data, term.bits)
        case list():
            return erlang.OtpErlangList([_to_theirs(item) for item in term])
        case tuple():
            return tuple(map(_to_theirs, term))
        case dict():
            return {_to_theirs(key): _to_theirs(value) for key, value in term.items()}
    return term


def _from_theirs(term: Any) -> Any:
    match term:
        case True:
            return Atom("true")
        case False:
            return Atom("false")
        case None:
            return Atom("undefined")
        case erlang.OtpErlangAtom():
            return Atom(term.value)
        case erlang.OtpErlangBinary():
            return term.value if term.bits == 8 else BitString(term.value, term.bits)
        case bytes():  # its form of STRING_EXT
            return list(term)
        case list():
            return [_from_theirs(item) for item in term]
        case tuple():
            return tuple(map(_from_theirs, term))
        case dict():
            return {_from_theirs(key): _from_theirs(value) for key, value in term.items()}
    return term


_NODE = erlang.OtpErlangAtom("n@h")
_WORD = b"\1\2\3\4"


def test_erlang_py_agrees_on_the_fields_of_identifiers() -> None:
    node = Atom("n@h")
    number = 0x01020304
    assert encode(Pid(node, number, number, number)) == erlang.term_to_binary(
        erlang.OtpErlangPid(_NODE, _WORD, _WORD, _WORD)
    )
    assert encode(Reference(node, number, (number,) * 3)) == erlang.term_to_binary(
        erlang.OtpErlangReference(_NODE, _WORD * 3, _WORD)
    )
    assert encode(Port(node, number, number)) == erlang.term_to_binary(
        erlang.OtpErlangPort(_NODE, _WORD, _WORD)
    )
    assert encode(ImproperList((1,), 2)) == erlang.term_to_binary(
        erlang.OtpErlangList([1, 2], improper=True)
    )


def test_maps_with_keys_python_merges_survive() -> None:
    both = Map([(1, b"int"), (1.0, b"float"), ((0.0,), 1), ((-0.0,), 2)])
    assert canonical(decode(encode(both))) == canonical(both)
