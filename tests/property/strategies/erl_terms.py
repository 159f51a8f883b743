"""Hypothesis strategies for Erlang terms, and what "the same term" means.

Python's ``==`` says 1 == 1.0 == True and 0.0 == -0.0; Erlang's ``=:=`` does not.  Tests
compare :func:`canonical` forms, which tell all of these apart and ignore the order of maps.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from erl_bridge.etf import Atom, BitString, Export, ImproperList, Map, Pid, Port, Reference

WORD = st.integers(0, 2**32 - 1)

# Surrogates are no characters of Erlang's either.
names = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
atoms = st.sampled_from(
    ["ok", "true", "undefined", "", "é", "日本", "a b", "n@host", "é" * 255]
).map(Atom) | names.map(Atom)
node_names = st.sampled_from(["a@b", "erllama@127.0.0.1", "nœud@host"]).map(Atom)

pids = st.builds(Pid, node_names, WORD, WORD, WORD)
references = st.builds(
    Reference, node_names, WORD, st.lists(WORD, min_size=1, max_size=5).map(tuple)
)
ports = st.builds(Port, node_names, st.integers(0, 2**64 - 1), WORD)
exports = st.builds(Export, atoms, atoms, st.integers(0, 255))
bit_strings = st.builds(BitString, st.binary(min_size=1, max_size=40), st.integers(1, 7))


def _around_power(bits: int) -> st.SearchStrategy[int]:
    """Return the integers at which an encoding changes its width."""
    return st.sampled_from([2**bits - 1, 2**bits, -(2**bits), -(2**bits) - 1])


integers = (
    st.integers(-300, 300)
    | st.integers(-(2**33), 2**33)
    | st.integers(-(2**80), 2**80)
    | st.sampled_from([7, 8, 31, 32, 63, 64, 2040, 2048]).flatmap(_around_power)
)
floats = st.floats(allow_nan=False, allow_infinity=False)

scalars = (
    integers
    | floats
    | atoms
    | st.binary(max_size=60)
    | bit_strings
    | pids
    | references
    | ports
    | exports
)

# Long enough for the bulk paths, with and without breaks in the run.
number_lists = (
    st.lists(st.integers(0, 255), max_size=40)
    | st.lists(st.integers(0, 200_000), max_size=40)
    | st.lists(integers, max_size=40)
    | st.lists(floats, max_size=40)
    | st.lists(st.integers(0, 300) | floats | st.sampled_from([Atom("x")]), max_size=40)
)


def canonical(term: Any) -> Any:
    """Return a hashable form that is equal for two terms exactly if ``=:=`` holds (OTP 27)."""
    if isinstance(term, float):
        return ("float", term.hex())
    if isinstance(term, list):
        return ("list", tuple(map(canonical, term)))
    if isinstance(term, tuple):
        return ("tuple", tuple(map(canonical, term)))
    if isinstance(term, ImproperList):
        return ("improper", tuple(map(canonical, term.items)), canonical(term.tail))
    if isinstance(term, dict):
        return ("map", frozenset((canonical(k), canonical(v)) for k, v in term.items()))
    if isinstance(term, Map):
        return ("map", frozenset((canonical(k), canonical(v)) for k, v in term.pairs))
    return (type(term).__name__, term)


def _map_of(pairs: list[tuple[Any, Any]]) -> Any:
    """Return a dict where one holds these pairs as the decoder would, else a Map."""
    unique = {canonical(key): (key, value) for key, value in pairs}
    kept = list(unique.values())
    try:
        made = dict(kept)
    except TypeError:
        return Map(kept)
    if any(isinstance(key, ImproperList) for key in made):
        return Map(kept)
    return made if len(made) == len(kept) else Map(kept)


def _cons(items: list[Any], tail: Any) -> Any:
    """Return ``[items... | tail]`` as the decoder would: improper only if the tail is no list."""
    if isinstance(tail, list):
        return items + tail
    if isinstance(tail, ImproperList):
        return ImproperList((*items, *tail.items), tail.tail)
    return ImproperList(tuple(items), tail)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(inner, max_size=12)
        | st.lists(inner, max_size=6).map(tuple)
        | st.lists(st.tuples(inner, inner), max_size=6).map(_map_of)
        | st.lists(st.tuples(atoms, inner), max_size=12).map(_map_of)
        | st.builds(_cons, st.lists(inner, min_size=1, max_size=4), inner)
    )


terms = st.deferred(lambda: st.recursive(scalars | number_lists, _containers, max_leaves=25))
"""Any term the decoder returns, in the form it returns it, except funs (opaque bytes)."""
