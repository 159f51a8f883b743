"""The codec against a real emulator: what it writes we read, what we write it reads as the same.

One ``erl`` serves the module.  It evaluates Erlang source we send, remembers the value,
and answers ``term_to_binary`` of it in every form it can write; bytes we send back are
compared to the remembered value by ``=:=``.  Values live and die with that emulator, so
its own pids, references, ports and funs compare exactly.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from erl_bridge.etf import (
    Atom,
    BitString,
    Export,
    Fun,
    ImproperList,
    Map,
    Pid,
    Port,
    Reference,
    decode,
    encode,
    term_to_text,
)
from tests.property.strategies.erl_terms import canonical, terms

pytestmark = pytest.mark.live

_FORMS = (
    "[]",
    "[deterministic]",
    "[compressed]",
    "[{compressed,9}]",
    "[{minor_version,0}]",
    "[{minor_version,1}]",
    "[{minor_version,2}]",
)

_SERVER = """
    Port = open_port({fd, 0, 1}, [binary, {packet, 4}, eof]),
    Forms = [FORMS],
    Eval = fun(Source) ->
        {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(Source)),
        {ok, Exprs} = erl_parse:parse_exprs(Tokens),
        {value, Value, _} = erl_eval:exprs(Exprs, []),
        Value
    end,
    Handle = fun
        (<<"eval ", Source/binary>>) ->
            Value = Eval(Source),
            put(value, Value),
            term_to_binary([begin
                Bin = term_to_binary(Value, Form),
                true = binary_to_term(Bin) =:= Value,
                Bin
            end || Form <- Forms]);
        (<<"same ", Bin/binary>>) ->
            term_to_binary(binary_to_term(Bin) =:= get(value));
        (<<"text ", Bin/binary>>) ->
            term_to_binary(unicode:characters_to_binary(
                io_lib:format("~0tp", [binary_to_term(Bin)])));
        (<<"echo ", Bin/binary>>) ->
            term_to_binary(binary_to_term(Bin))
    end,
    Loop = fun Loop() ->
        receive
            {Port, {data, Request}} ->
                Answer = try Handle(Request)
                         catch C:R -> term_to_binary({failed, C, R}, [])
                         end,
                port_command(Port, Answer),
                Loop();
            {Port, eof} -> halt(0)
        end
    end,
    Loop().
""".replace("FORMS", ",".join(_FORMS))


class Emulator:
    """One running ``erl`` that answers requests framed by a 32-bit length."""

    def __init__(self, path: str) -> None:
        self._process = subprocess.Popen(
            [path, "-noinput", "-boot", "start_clean", "-eval", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def _ask(self, request: bytes) -> bytes:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(struct.pack(">I", len(request)) + request)
        stdin.flush()
        head = stdout.read(4)
        assert len(head) == 4, "the emulator has ended"
        return stdout.read(struct.unpack(">I", head)[0])

    def _ask_term(self, request: bytes) -> Any:
        answer = decode(self._ask(request))
        assert not (isinstance(answer, tuple) and answer[:1] == (Atom("failed"),)), term_to_text(
            answer, limit=4000
        )
        return answer

    def evaluate(self, source: str) -> dict[str, bytes]:
        """Evaluate Erlang source; return its value in each external form, by options."""
        return dict(zip(_FORMS, self._ask_term(b"eval " + source.encode() + b"."), strict=True))

    def is_same(self, data: bytes) -> bool:
        """Say whether ``data`` is read as the value last evaluated."""
        return bool(self._ask_term(b"same " + data) is Atom("true"))

    def text(self, data: bytes) -> str:
        answer: bytes = self._ask_term(b"text " + data)
        return answer.decode()

    def echo(self, data: bytes) -> bytes:
        """Return what the emulator writes for what it read from ``data``."""
        return self._ask(b"echo " + data)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    path = shutil.which("erl")
    assert path, "these tests need erl on the PATH"
    running = Emulator(path)
    yield running
    running.close()


_LONG = "é" * 255
_WIDE = "\U0001f600" * 255

# Erlang source -> the Python value, or the type where the value is the emulator's own.
TERMS: dict[str, Any] = {
    "0": 0,
    "255": 255,
    "256": 256,
    "-1": -1,
    "16#7fffffff": 2**31 - 1,
    "-16#80000000": -(2**31),
    "16#80000000": 2**31,
    "-16#80000001": -(2**31) - 1,
    "1 bsl 62": 2**62,
    "-(1 bsl 64)": -(2**64),
    "(1 bsl 2040) - 1": 2**2040 - 1,
    "1 bsl 2040": 2**2040,
    "-(1 bsl 20000)": -(2**20000),
    "1.5": 1.5,
    "-0.0": -0.0,
    "1.0e-300": 1e-300,
    "1.7976931348623157e308": 1.7976931348623157e308,
    "5.0e-324": 5e-324,
    "0.1": 0.1,
    "ok": Atom("ok"),
    "true": Atom("true"),
    "undefined": Atom("undefined"),
    "''": Atom(""),
    "'a b'": Atom("a b"),
    "'é'": Atom("é"),
    "'日本'": Atom("日本"),
    f"'{_LONG}'": Atom(_LONG),
    f"'{_WIDE}'": Atom(_WIDE),
    f"'{'a' * 255}'": Atom("a" * 255),
    "<<>>": b"",
    "<<1,2,255>>": b"\1\2\xff",
    "binary:copy(<<7>>, 100000)": b"\7" * 100_000,
    "<<5:3>>": BitString(b"\xa0", 3),
    "<<1,2,1:1>>": BitString(b"\1\2\x80", 1),
    "<<255,127:7>>": BitString(b"\xff\xfe", 7),
    "[]": [],
    "[1,2,3]": [1, 2, 3],
    "[256,1]": [256, 1],
    "lists:seq(0,255)": list(range(256)),
    "lists:duplicate(65535, 1)": [1] * 65_535,
    "lists:duplicate(65536, 1)": [1] * 65_536,
    "lists:seq(1,5000)": list(range(1, 5001)),
    "[X / 3 || X <- lists:seq(1,3000)]": [number / 3 for number in range(1, 3001)],
    '"text"': [116, 101, 120, 116],
    "[a|b]": ImproperList((Atom("a"),), Atom("b")),
    "[1,2|3]": ImproperList((1, 2), 3),
    "[1|#{}]": ImproperList((1,), {}),
    "[[1|2]|{3}]": ImproperList((ImproperList((1,), 2),), (3,)),
    "{}": (),
    "{a,{b,[c]}}": (Atom("a"), (Atom("b"), [Atom("c")])),
    "list_to_tuple(lists:seq(1,255))": tuple(range(1, 256)),
    "list_to_tuple(lists:seq(1,256))": tuple(range(1, 257)),
    "#{}": {},
    '#{a => 1, <<"b">> => [2], 3 => #{4.5 => c}}': {Atom("a"): 1, b"b": [2], 3: {4.5: Atom("c")}},
    "#{1 => int, 1.0 => float}": Map([(1, Atom("int")), (1.0, Atom("float"))]),
    "#{{1} => int, {1.0} => float}": Map([((1,), Atom("int")), ((1.0,), Atom("float"))]),
    "#{[] => 1, [1|2] => 2, #{} => 3, #{[] => x} => 4}": Map(
        [([], 1), (ImproperList((1,), 2), 2), ({}, 3), (Map([([], Atom("x"))]), 4)]
    ),
    "#{{a,<<1:1>>} => 1}": {(Atom("a"), BitString(b"\x80", 1)): 1},
    "maps:from_list([{X, -X} || X <- lists:seq(1,1000)])": {x: -x for x in range(1, 1001)},
    "fun lists:map/2": Export(Atom("lists"), Atom("map"), 2),
    "fun 'Elixir.É':'w x'/255": Export(Atom("Elixir.É"), Atom("w x"), 255),
    "self()": Pid,
    "spawn(fun() -> ok end)": Pid,
    "make_ref()": Reference,
    "alias()": Reference,
    "monitor(process, self())": Reference,
    "hd(erlang:ports())": Port,
    "fun(X) -> X end": Fun,
    "begin Y = {self(), make_ref(), [1|2], <<1:3>>}, fun(X) -> {X, Y} end end": Fun,
    '{ok, make_ref(), <<"fragment">>}': tuple,
    "[self(), make_ref(), #{self() => [hd(erlang:ports())]}]": list,
    "[lists:seq(1,3000), 'é', 1.5, 1 bsl 100, [x|y], <<1:1>>]": list,
}


@pytest.mark.parametrize("source", TERMS, ids=lambda source: source[:40])
def test_terms_go_both_ways_in_every_form(emulator: Emulator, source: str) -> None:
    expected = TERMS[source]
    for form, data in emulator.evaluate(source).items():
        term = decode(data)
        if isinstance(expected, type):
            assert type(term) is expected, form
        else:
            assert canonical(term) == canonical(expected), form
            assert type(term) is type(expected), form
        assert emulator.is_same(encode(term)), form
        assert emulator.is_same(encode(term, version=True)), form


def test_the_bytes_are_the_ones_the_emulator_writes_where_there_is_one_newest_form(
    emulator: Emulator,
) -> None:
    """Not so for atoms (Latin-1 before OTP 26) and lists of numbers, where any form is legal."""
    for source in ("1 bsl 70", "-1.5", "<<1,2>>", "<<5:3>>", "[a|b]", "{1,[]}", "#{1 => 2}"):
        data = emulator.evaluate(source)["[{minor_version,2}]"]
        assert encode(decode(data)) == data


def test_a_term_that_is_not_the_same_is_told_apart(emulator: Emulator) -> None:
    """The comparison the other tests rest on can fail."""
    emulator.evaluate("[1, 2.0, make_ref()]")
    assert not emulator.is_same(encode([1, 2.0]))
    emulator.evaluate("2.0")
    assert emulator.is_same(encode(2.0))
    assert not emulator.is_same(encode(2))


def test_identifiers_of_other_nodes_are_read_and_come_back(emulator: Emulator) -> None:
    """As an emulator prints them, so every field is in its place."""
    node = Atom("other@host")
    for term in (
        Pid(node, 77, 5, 9),
        Pid(node, 2**32 - 1, 2**32 - 1, 2**32 - 1),
        Reference(node, 9, (1, 2, 3)),
        Reference(node, 9, (1,)),
        Reference(node, 9, (1, 2, 3, 4, 5)),
        Port(node, 77, 9),
        Port(node, 2**40, 9),
    ):
        assert decode(emulator.echo(encode(term))) == term
    assert emulator.text(encode(Pid(node, 77, 5, 9))).endswith(".77.5>")


def test_a_deep_term_of_the_emulator_is_read(emulator: Emulator) -> None:
    forms = emulator.evaluate("lists:foldl(fun(_, T) -> {T} end, [], lists:seq(1, 250))")
    term = decode(forms["[]"])
    for _ in range(250):
        (term,) = term
    assert term == []


def test_text_is_read_by_the_emulator_as_the_term(emulator: Emulator) -> None:
    for term in (
        [1, -2, 1.5, 2**70],
        (Atom("ok"), Atom("Not ok"), Atom("it's"), Atom("a\\b\n\x01"), Atom("end"), Atom("é")),
        [b"", b'say "hi"\n', b"\xff\0", "é日".encode(), b"back\\slash"],
        {Atom("k"): [ImproperList((1, 2), Atom("x"))], (1,): BitString(b"\1\xa0", 3)},
        Export(Atom("m"), Atom("F f"), 3),
    ):
        emulator.evaluate(term_to_text(term, limit=10_000))
        assert emulator.is_same(encode(term))


@settings(
    max_examples=300,
    deadline=None,  # a round trip through another process
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(terms)
def test_any_term_comes_back_from_the_emulator_as_it_was(emulator: Emulator, term: Any) -> None:
    assert canonical(decode(emulator.echo(encode(term)))) == canonical(term)
