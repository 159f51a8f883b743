"""``session_id``: any term of a peer, as a key that is equal where the terms are (``=:=``).

Converted as other options are, terms that differ would be one: an atom key of a map and a
binary, or 1 and 1.0.
"""

from __future__ import annotations

from typing import Any, Final

from erl_bridge.etf import Atom, ImproperList, Map
from erllama_py import types
from erllama_py.types import SessionKey, session_key

__all__ = ("session_of",)

_NONE: Final = (Atom("undefined"), Atom("nil"))


def session_of(term: Any) -> SessionKey | None:
    """Return the key of a term; ``None`` for ``undefined`` and ``nil``, which are no session."""
    return None if term in _NONE else _key(term)


def _key(term: Any) -> SessionKey:
    match term:
        case Atom(name="true" | "false"):
            return session_key(term.name == "true")
        case Atom():
            return session_key(types.Atom(term.name))
        case tuple() | list():
            return SessionKey(type(term), tuple(map(_key, term)))
        case dict():
            return _of_pairs(term.items())
        case Map():
            return _of_pairs(term.pairs)
        case ImproperList():
            return SessionKey(ImproperList, (*map(_key, term.items), _key(term.tail)))
    return session_key(term)


def _of_pairs(pairs: Any) -> SessionKey:
    return SessionKey(dict, frozenset((_key(key), _key(value)) for key, value in pairs))
