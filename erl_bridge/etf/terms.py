"""Erlang terms that Python has no type for.

Integers, floats, tuples and proper lists are Python's own; a binary is ``bytes``, a map
is a ``dict`` where a dict can hold it.  The rest is here.  All are immutable, and none
equals a Python value of another kind: ``Atom("ok") != "ok"``, a :class:`Pid` is not a
tuple, so a pattern match on plain tuples never takes one for the other.

Atoms are interned, weakly: the same name is the same object, so comparison and hashing
are the interpreter's identity operations, and names a peer stops using are freed (a
strong table would be the emulator's atom table, which a peer can fill).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, final

__all__ = (
    "FALSE",
    "TRUE",
    "UNDEFINED",
    "Atom",
    "BitString",
    "Encoded",
    "Export",
    "Fun",
    "ImproperList",
    "Map",
    "Pid",
    "Port",
    "Reference",
)


@final
class Atom:
    """An atom: equal to itself and to nothing else.

    :param name: the atom's text without quotes.  The emulator's limit of 255 characters
        is checked when it is encoded, not here.
    :raises TypeError: the name is not a ``str``.
    """

    __slots__ = ("__weakref__", "name")

    name: str

    def __new__(cls, name: str) -> Atom:
        """Return the one atom of this name."""
        known = _atoms.get(name)
        if known is not None:
            return known
        if type(name) is not str:
            if not isinstance(name, str):
                raise TypeError(f"an atom's name is a str, not {type(name).__name__}")
            name = str(name)
        with _atoms_lock:  # two threads must not both make the atom
            known = _atoms.get(name)
            if known is None:
                known = object.__new__(cls)
                object.__setattr__(known, "name", name)
                _atoms[name] = known
        return known

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("Atom cannot be subclassed: identity is its equality")

    def __setattr__(self, key: str, value: object) -> NoReturn:
        raise AttributeError(f"atoms are immutable: cannot set {key!r}")

    def __delattr__(self, key: str) -> NoReturn:
        raise AttributeError(f"atoms are immutable: cannot delete {key!r}")

    def __repr__(self) -> str:
        return f"Atom({self.name!r})"

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[type[Atom], tuple[str]]:
        return Atom, (self.name,)


_atoms: weakref.WeakValueDictionary[str, Atom] = weakref.WeakValueDictionary()
_atoms_lock = threading.Lock()

TRUE: Final = Atom("true")
FALSE: Final = Atom("false")
UNDEFINED: Final = Atom("undefined")


@dataclass(frozen=True, slots=True)
class Pid:
    """A process identifier; ``id``, ``serial`` and ``creation`` are 32 bits each."""

    node: Atom
    id: int
    serial: int
    creation: int


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference of one to five 32-bit words, in wire order (aliases of OTP 28 have five)."""

    node: Atom
    creation: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Port:
    """A port identifier; ``id`` has 64 bits since OTP 24, ``creation`` 32."""

    node: Atom
    id: int
    creation: int


@dataclass(frozen=True, slots=True)
class Fun:
    """A closure of another node, kept as the bytes it came in so that it goes back unchanged.

    ``module`` and ``arity`` are for messages only (``arity`` is None in the old format).
    Equal when the bytes are.
    """

    raw: bytes
    module: Atom | None = field(default=None, compare=False)
    arity: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Export:
    """An external fun, ``fun module:function/arity``."""

    module: Atom
    function: Atom
    arity: int


@dataclass(frozen=True, slots=True)
class BitString:
    """A bit string whose length is not a multiple of eight; whole bytes are ``bytes``.

    ``bits`` of the last byte count, from its high end; the unused low ones are cleared,
    so that equal bit strings are equal here too.

    :raises ValueError: ``bits`` is not 1..7, or there is no byte.
    """

    data: bytes
    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 7:
            raise ValueError(f"a bit string uses 1..7 bits of its last byte, not {self.bits}")
        if not self.data:
            raise ValueError("a bit string has at least one byte; the empty one is b''")
        unused = 0xFF >> self.bits
        if self.data[-1] & unused:
            clean = self.data[:-1] + bytes((self.data[-1] & ~unused,))
            object.__setattr__(self, "data", clean)


@dataclass(frozen=True, slots=True)
class ImproperList:
    """``[A, B | Tail]`` with a tail that is not a list.

    :raises ValueError: there is no item.
    :raises TypeError: the tail is a list: then the whole is one.
    """

    items: tuple[Any, ...]
    tail: Any

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError("an improper list has at least one item before its tail")
        if isinstance(self.tail, (list, ImproperList)):
            raise TypeError("the tail is a list itself: put its items into this one")


class Map:
    """A map that a ``dict`` cannot hold: list or map keys, or keys Python merges (1 and 1.0).

    Keys are told apart as ``=:=`` does at their top level: by type, then by value.  Order
    is kept and does not count for equality.  Not hashable.
    """

    __slots__ = ("pairs",)

    pairs: tuple[tuple[Any, Any], ...]

    def __init__(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        object.__setattr__(self, "pairs", tuple((key, value) for key, value in pairs))

    def __setattr__(self, key: str, value: object) -> NoReturn:
        raise AttributeError(f"maps are immutable: cannot set {key!r}")

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value at ``key``, or ``default``; looks at every pair."""
        for known, value in self.pairs:
            if type(known) is type(key) and known == key:
                return value
        return default

    def __len__(self) -> int:
        return len(self.pairs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Map):
            return NotImplemented
        if len(self.pairs) != len(other.pairs):
            return False
        rest = list(other.pairs)
        for key, value in self.pairs:
            for index, (known, theirs) in enumerate(rest):
                if type(known) is type(key) and known == key and theirs == value:
                    del rest[index]
                    break
            else:
                return False
        return True

    __hash__ = None  # type: ignore[assignment]  # the documented way to say "not hashable"

    def __repr__(self) -> str:
        return f"Map({list(self.pairs)!r})"

    def __reduce__(self) -> tuple[type[Map], tuple[tuple[tuple[Any, Any], ...]]]:
        return Map, (self.pairs,)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One whole term already in external form, without the version byte; spliced in as is.

    For what is sent again and again (a reference, a message tag): encoded once with
    :func:`erl_bridge.etf.encode_body`, then only copied.
    """

    data: bytes
