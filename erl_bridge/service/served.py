"""How functions of the original's other modules are described, checked and answered.

A description says what a function takes and how its value goes back:

============  ===============================================================
answer        value of the Python function, and its term
============  ===============================================================
``plain``     V as V
``ok``        V as ``{ok, V}``
``ok_tuple``  (A, B) as ``{ok, A, B}``
============  ===============================================================

``miss`` is ``miss`` in all of them.  Arguments that no clause takes are ``function_clause``,
as in :mod:`erl_bridge.service.heads`; what needs a closer look is looked at by the Python
function.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

from erl_bridge.etf import Atom, Map, Pid, Reference
from erl_bridge.service.convert import Converter, NotAModel
from erl_bridge.service.refs import Refs
from erl_bridge.service.tiers import TierProcesses
from erllama_py import types
from erllama_py.otp.cache_disk_srv import TierPid

__all__ = ("Answer", "Served", "Values", "path_bytes")

Answer = Literal["plain", "ok", "ok_tuple"]

_OK: Final = Atom("ok")
_FILE_TIERS: Final = ("disk", "ram_file")
_STAGED: Final = tuple(map(Atom, ("key", "tmp", "final")))
_PATH_BYTES: Final = 4096
_SCALE: Final = 1e30
_PAYLOAD: Final = 1 << 30
"""Most bytes of a benchmark's payload: it is made up in memory."""
_MS: Final = 1 << 40


class Served(NamedTuple):
    """One function.

    :ivar function: of Python; or the name of what :mod:`erl_bridge.service.callers` does,
        which takes the call first and makes its own answer.
    :ivar kinds: of its arguments, see :data:`TAKES`.
    :ivar read: answered at once, in the event loop.
    """

    function: Callable[..., Any] | str
    kinds: tuple[str, ...] = ()
    answer: Answer = "plain"
    read: bool = False


def path_bytes(term: Any) -> bytes | None:
    """Return the path that a binary or a charlist stands for; ``None`` if it is none."""
    if isinstance(term, bytes):
        found = term
    elif isinstance(term, list) and all(type(char) is int and 0 < char < 1 << 21 for char in term):
        try:
            found = os.fsencode("".join(map(chr, term)))
        except ValueError:  # no character, or half of one
            return None
    else:
        return None
    return found if 0 < len(found) <= _PATH_BYTES and b"\0" not in found else None


def _is_adapter(term: Any) -> bool:
    match term:
        case (bytes(), int() | float() as scale):
            return type(scale) is not bool and abs(scale) < _SCALE
    return False


def _is_staged(term: Any) -> bool:
    if not isinstance(term, dict):
        return False
    key, tmp, final = map(term.get, _STAGED)
    return isinstance(key, bytes) and path_bytes(tmp) is not None and path_bytes(final) is not None


def _is_map(term: Any) -> bool:
    return isinstance(term, (dict, Map))


TAKES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "any": lambda _: True,
    "atom": lambda term: isinstance(term, Atom),
    "bin": lambda term: type(term) is bytes,
    "key": lambda term: type(term) is bytes and len(term) == 32,
    "id": lambda term: type(term) is bytes,
    "model": lambda term: type(term) is bytes or isinstance(term, Pid),
    "pid": lambda term: isinstance(term, Pid),
    "ref": lambda term: isinstance(term, Reference),
    "server": lambda term: isinstance(term, (Atom, Pid)),
    "map": _is_map,
    "list": lambda term: type(term) is list,
    "path": lambda term: path_bytes(term) is not None,
    "staged": _is_staged,
    "adapters": lambda term: type(term) is list and all(map(_is_adapter, term)),
    "count": lambda term: type(term) is int and term >= 0,
    "ms": lambda term: type(term) is int and 0 <= term < _MS,
    "size": lambda term: type(term) is int and 0 < term <= _PAYLOAD,
    "runs": lambda term: type(term) is int and 0 < term <= 1_000_000,
}
"""What each kind of argument may be."""


class Values(Converter):
    """Converts as its base does, and knows references, tier servers and their paths.

    :param converter: whose models these are.
    """

    def __init__(self, converter: Converter, refs: Refs, tiers: TierProcesses) -> None:
        super().__init__(converter._model_of, converter._pid_of)
        self._refs = refs
        self._tiers = tiers

    def taken(self, kinds: tuple[str, ...], args: list[Any]) -> list[Any] | None:
        """Return a function's arguments for Python; ``None``: it has no such clause.

        :raises NotAModel: a pid stands for no model.
        """
        pairs = list(zip(kinds, args, strict=True))
        if not all(TAKES[kind](arg) for kind, arg in pairs):
            return None
        return [self._taken(kind, arg) for kind, arg in pairs]

    def _taken(self, kind: str, term: Any) -> Any:
        match kind:
            case "atom":
                return types.Atom(term.name)  # true and false are names here, too
            case "pid" | "ref":
                return term
            case "path":
                return path_bytes(term)
            case "server":
                if isinstance(term, Atom):
                    return types.Atom(term.name)
                return self._tiers.tier_of(term) or term
            case "model" if isinstance(term, Pid):
                model = self._model_of(term)
                if model is None:
                    raise NotAModel(term)
                return model
            case "staged":
                given = self.to_python(term)
                return {**given, **{k: path_bytes(given[k]) for k in ("tmp", "final")}}
        return self.to_python(term)

    def answered(self, answer: Answer, value: Any) -> Any:
        """Return the term of a function's value."""
        if answer == "plain" or (isinstance(value, types.Atom) and value == "miss"):
            return self.to_term(value)
        if answer == "ok":
            return _OK, self.to_term(value)
        return (_OK, *(self.to_term(one) for one in value))

    def to_python(self, term: Any) -> Any:
        """Return the Python form of a term."""
        match term:
            case Reference():
                return self._refs.ref_of(term) or term
            case Pid():
                return self._tiers.tier_of(term) or super().to_python(term)
        return super().to_python(term)

    def to_term(self, value: Any) -> Any:
        """Return the term of a value."""
        match value:
            case types.Ref():
                return self._refs.reference_of(value)
            case TierPid():
                return self._tiers.pid_of(value)
            case (types.Atom() as tier, bytes() as path) if tier in _FILE_TIERS:
                return Atom(tier), self._tiers.path(path)
        return super().to_term(value)
