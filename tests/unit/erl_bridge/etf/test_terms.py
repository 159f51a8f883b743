"""The types of terms: equality, hashing, immutability."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from dataclasses import fields
from typing import Any

import pytest

from erl_bridge.etf import (
    FALSE,
    TRUE,
    UNDEFINED,
    Atom,
    BitString,
    DecodeError,
    Export,
    Fun,
    ImproperList,
    Map,
    Pid,
    Port,
    Reference,
)

NODE = Atom("a@b")


def test_atoms_of_one_name_are_one_object() -> None:
    assert Atom("ok") is Atom("o" + "k")
    assert Atom("true") is TRUE
    assert Atom("ok") != Atom("error")


def test_an_atom_is_no_text() -> None:
    text: object = "ok"
    assert Atom("ok") != text
    assert not isinstance(Atom("ok"), str)
    assert {Atom("ok"): 1, "ok": 2, b"ok": 3} == {"ok": 2, b"ok": 3, Atom("ok"): 1}
    assert len({Atom("ok"), "ok", b"ok"}) == 3
    assert repr(Atom("ok")) == "Atom('ok')"
    assert str(Atom("ok")) == "ok"


def test_the_named_atoms_are_not_pythons_singletons() -> None:
    pairs: list[tuple[Atom, object]] = [(TRUE, True), (FALSE, False), (UNDEFINED, None)]
    for atom, value in pairs:
        assert atom != value


def test_atoms_survive_copying_and_pickling_as_the_same_object() -> None:
    for copied in (copy.copy(TRUE), copy.deepcopy([TRUE])[0], pickle.loads(pickle.dumps(TRUE))):
        assert copied is TRUE


def test_atoms_cannot_be_changed_or_subclassed() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        TRUE.name = "x"
    with pytest.raises(AttributeError, match="immutable"):
        del TRUE.name
    with pytest.raises(TypeError, match="cannot be subclassed"):
        type("Sub", (Atom,), {})


def test_an_atoms_name_is_a_str() -> None:
    with pytest.raises(TypeError, match="not bytes"):
        Atom(b"ok")  # type: ignore[arg-type]  # that is the point

    class Name(str):
        __slots__ = ()

    assert type(Atom(Name("made of a subclass")).name) is str


def test_atoms_nobody_uses_are_freed() -> None:
    from erl_bridge.etf import terms

    name = "an atom nobody else uses"
    atom = Atom(name)
    assert name in terms._atoms
    del atom
    gc.collect()
    assert name not in terms._atoms


def test_threads_that_make_one_atom_get_one_object() -> None:
    for turn in range(50):
        barrier = threading.Barrier(4)
        made: list[Atom] = []

        def make(name: str = f"raced {turn}", barrier: Any = barrier, made: Any = made) -> None:
            barrier.wait()
            made.append(Atom(name))

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 4
        assert all(atom is made[0] for atom in made)


VALUES = [
    Pid(NODE, 1, 2, 3),
    Reference(NODE, 1, (1, 2, 3)),
    Port(NODE, 1, 2),
    Export(NODE, NODE, 1),
    BitString(b"a", 3),
    ImproperList((1,), 2),
    Fun(b"p"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_identifiers_are_values_of_their_own_kind(value: Any) -> None:
    twin = copy.deepcopy(value)
    assert twin == value
    assert hash(twin) == hash(value)
    assert pickle.loads(pickle.dumps(value)) == value
    assert not isinstance(value, tuple)
    assert all(value != other for other in VALUES if other is not value)
    with pytest.raises(AttributeError):
        setattr(value, fields(value)[0].name, 1)


def test_a_pid_of_another_incarnation_is_another_pid() -> None:
    assert Pid(NODE, 1, 2, 3) != Pid(NODE, 1, 2, 4)


def test_funs_are_equal_when_their_bytes_are() -> None:
    assert Fun(b"p1", Atom("m"), 1) == Fun(b"p1")
    assert Fun(b"p1") != Fun(b"p2")


def test_unused_bits_do_not_count() -> None:
    assert BitString(b"\x01\xff", 3) == BitString(b"\x01\xe0", 3)
    assert BitString(b"\xe0", 3) != BitString(b"\xe0", 4)


@pytest.mark.parametrize(("data", "bits"), [(b"a", 0), (b"a", 8), (b"a", -1), (b"", 3)])
def test_bit_strings_that_are_none_are_refused(data: bytes, bits: int) -> None:
    with pytest.raises(ValueError, match="bit string"):
        BitString(data, bits)


def test_improper_lists_that_are_proper_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ImproperList((), 1)
    for tail in ([], [1], ImproperList((1,), 2)):
        with pytest.raises(TypeError, match="list itself"):
            ImproperList((1,), tail)


def test_a_map_tells_apart_what_python_merges() -> None:
    both = Map([(1, "int"), (1.0, "float"), (True, "bool")])
    assert len(both) == 3
    assert (both.get(1), both.get(1.0), both.get(True)) == ("int", "float", "bool")
    assert both.get(2) is None
    assert both.get([], "nothing") == "nothing"


def test_maps_are_equal_in_any_order() -> None:
    assert Map([([], 1), ({}, 2)]) == Map([({}, 2), ([], 1)])
    assert Map([([], 1), ({}, 2)]) != Map([({}, 1), ([], 2)])
    assert Map([([], 1)]) != Map([([], 1), ({}, 2)])
    assert Map([(1, 0)]) != Map([(1.0, 0)])
    assert Map([(1, 2)]) != {1: 2}


def test_maps_cannot_be_changed_or_hashed() -> None:
    value = Map([([], 1)])
    with pytest.raises(AttributeError, match="immutable"):
        value.pairs = ()
    with pytest.raises(TypeError, match="unhashable"):
        hash(value)
    assert pickle.loads(pickle.dumps(value)) == value
    assert repr(value) == "Map([([], 1)])"


def test_a_decode_error_survives_pickling_with_its_offset() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("damaged", 7)))
    assert (error.what, error.offset, str(error)) == ("damaged", 7, "damaged (at byte 7)")
