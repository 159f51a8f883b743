"""Terms as session ids: equal where ``=:=`` says so, and at every door the same."""

from __future__ import annotations

from hypothesis import given

from erl_bridge.etf import Atom, Map, decode, encode
from erl_bridge.service.convert import Converter
from erl_bridge.service.sessions import session_of
from erllama_py import types
from erllama_py.types import session_key
from tests.property.strategies.erl_terms import terms

CONVERTER = Converter(lambda _: None, lambda _: None)


def test_terms_that_python_takes_for_one_are_told_apart() -> None:
    different = [
        *(1, 1.0, Atom("true"), b"true", Atom("1"), b"1", (1,), [1], [1.0], (1, 2), [[], b""]),
        *({Atom("a"): 1}, {b"a": 1}, Map([([1], 1)]), Map([([1.0], 1)]), Map([(1, 2), (1.0, 2)])),
    ]
    assert len({session_of(term) for term in different}) == len(different)


def test_undefined_and_nil_are_none() -> None:
    assert session_of(Atom("undefined")) is None
    assert session_of(Atom("nil")) is None
    assert session_of(b"undefined") is not None
    assert session_of([]) is not None


def test_python_has_the_same_sessions() -> None:
    assert session_of(b"talk") == session_key("talk") == session_key(b"talk")
    assert session_of(Atom("talk")) == session_key(types.Atom("talk"))
    assert session_of((Atom("user"), 7, [1, 2])) == session_key((types.Atom("user"), 7, [1, 2]))
    assert session_of({b"a": Atom("true")}) == session_key({"a": True})


@given(terms)
def test_any_term_is_its_own_session_however_often_it_comes(term: object) -> None:
    key = session_of(term)
    assert key == session_of(decode(encode(term)))
    hash(key)


def test_options_keep_their_session_as_a_key() -> None:
    options = {Atom("session_id"): [1.0, {b"k": 1}], Atom("seed"): 1}
    (given_options,) = CONVERTER.arguments(["options"], [options])
    assert given_options == {"session_id": session_of([1.0, {b"k": 1}]), "seed": 1}
    (in_map,) = CONVERTER.arguments(["options"], [Map([(Atom("session_id"), 3), (1.0, 2)])])
    assert in_map["session_id"] == session_of(3)
    assert CONVERTER.arguments(["options"], [{Atom("seed"): 1}]) == [{"seed": 1}]
