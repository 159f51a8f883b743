"""Terms become the façade's values and come back as the same terms."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from erl_bridge.etf import Atom, Map, Pid, Reference, decode, encode
from erl_bridge.service.convert import Converter, NotAModel, bytes_of, chat_request
from erllama_py import types
from erllama_py.types import ModelPid
from tests.property.strategies.erl_terms import canonical, terms

NODE = Atom("n@host")
MODEL_PID, OTHER_PID = Pid(NODE, 70, 0, 1), Pid(NODE, 71, 0, 1)
MODEL = ModelPid(7)
REF = Reference(NODE, 1, (1, 2, 3))

CONVERTER = Converter(
    lambda pid: MODEL if pid == MODEL_PID else None,
    lambda model: MODEL_PID if model == MODEL else None,
)


def loses_keys(term: Any) -> bool:
    """Whether a map in it is one that no dict can be."""
    if isinstance(term, Map):
        return True
    if isinstance(term, dict):
        return any(loses_keys(value) for value in term.values())
    return isinstance(term, (list, tuple)) and any(map(loses_keys, term))


@given(terms.filter(lambda term: not loses_keys(term)))
def test_there_and_back_is_the_same_term(term: Any) -> None:
    back = CONVERTER.to_term(CONVERTER.to_python(term))
    assert canonical(decode(encode(back))) == canonical(term)


@given(terms)
def test_every_term_has_a_python_form_and_that_one_a_term(term: Any) -> None:
    encode(CONVERTER.to_term(CONVERTER.to_python(term)))


@pytest.mark.parametrize(
    ("term", "value"),
    [
        (Atom("true"), True),
        (Atom("false"), False),
        (b"text", b"text"),
        ([1, 2], [1, 2]),
        ([], []),
        ({Atom("top_k"): 5}, {"top_k": 5}),
        ({b"top_k": 5}, {b"top_k": 5}),
        ({Atom("a"): {Atom("b"): [b"c"]}}, {"a": {"b": [b"c"]}}),
        (Map([(1, Atom("x")), ([2], 3)]), {1: "x"}),
        (MODEL_PID, MODEL),
        (OTHER_PID, OTHER_PID),
        (REF, REF),
        ((Atom("false"), 1.5), (False, 1.5)),
    ],
)
def test_arguments(term: Any, value: Any) -> None:
    converted = CONVERTER.to_python(term)
    assert converted == value
    assert type(converted) is type(value)


def test_an_atom_stays_one() -> None:
    converted = CONVERTER.to_python(Atom("undefined"))
    assert type(converted) is types.Atom
    assert converted == "undefined"


@pytest.mark.parametrize(
    ("value", "term"),
    [
        (types.Atom("exact"), Atom("exact")),
        ("text é", "text é".encode()),
        ("\udcff", b"\xff"),
        (b"\xff", b"\xff"),
        (None, Atom("undefined")),
        (True, Atom("true")),
        ({"kind": types.Atom("cold"), "prefix_len": 0}, {b"kind": 0}),
        (MODEL, MODEL_PID),
        ((types.Atom("noproc"), [MODEL]), (Atom("noproc"), [MODEL_PID])),
    ],
)
def test_results(value: Any, term: Any) -> None:
    if isinstance(term, dict):
        term = {Atom("kind"): Atom("cold"), Atom("prefix_len"): 0}
    assert canonical(decode(encode(CONVERTER.to_term(value)))) == canonical(term)


def test_the_stats_of_a_stream_have_the_documented_keys() -> None:
    ours = {"prefix_len": 2, "exactness": types.Atom("bit"), "tier": types.Atom("disk")}
    stats = {"prompt_tokens": 3, **ours}
    assert CONVERTER.stats(stats) == {Atom("prompt_tokens"): 3}
    result = {"reply": "hi", "stats": stats, "finish_key": None}
    assert CONVERTER.result(result) == {
        Atom("reply"): b"hi",
        Atom("stats"): {Atom("prompt_tokens"): 3},
        Atom("finish_key"): None,
    }


def test_a_pid_of_no_model_is_said() -> None:
    assert CONVERTER.arguments(("model", "text"), [MODEL_PID, b"x"]) == [MODEL, b"x"]
    with pytest.raises(NotAModel) as caught:
        CONVERTER.arguments(("model", "text"), [OTHER_PID, b"x"])
    assert caught.value.pid == OTHER_PID


def test_tokens_are_handed_on_as_they_are() -> None:
    """Else ``true`` among them would count as the token 1."""
    tokens = [1, Atom("true"), 2.0]
    assert CONVERTER.arguments(("tokens",), [tokens])[0] is tokens


@given(st.recursive(st.binary(max_size=5) | st.integers(0, 255), lambda s: st.lists(s, max_size=5)))
def test_iolists(iodata: Any) -> None:
    def flat(part: Any) -> bytes:
        if isinstance(part, list):
            return b"".join(map(flat, part))
        return part if isinstance(part, bytes) else bytes([part])

    expected = flat(iodata) if isinstance(iodata, (bytes, list)) else None
    assert bytes_of(iodata) == expected


@pytest.mark.parametrize("term", [Atom("a"), 5, [256], [-1], [b"a", Atom("b")], {}, (b"a",), [1.0]])
def test_what_is_no_iolist(term: Any) -> None:
    assert bytes_of(term) is None


def test_a_chat_request_takes_charlists() -> None:
    request = {
        "system": [b"be ", list(b"nice")],
        "messages": [{"role": list(b"user"), "content": [[104], b"i"]}, {"role": 5}, 6],
        "tools": [{"name": b"f"}],
    }
    assert chat_request(request) == {
        "system": b"be nice",
        "messages": [{"role": b"user", "content": b"hi"}, {"role": 5}, 6],
        "tools": [{"name": b"f"}],
    }
    odd = {"messages": 5, "system": types.Atom("undefined")}
    assert chat_request(odd) == odd
