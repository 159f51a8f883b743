"""Between Erlang terms and the façade's values.

=====================  ==============================  ===============================
term                   to Python                       from Python
=====================  ==============================  ===============================
atom                   ``types.Atom``; ``true`` and    ``types.Atom``, ``bool``;
                       ``false`` as ``bool``           ``None`` as ``undefined``
binary                 ``bytes``                       ``bytes``, and any other ``str``
map                    ``dict``, atom keys as ``str``  ``dict``, ``str`` keys as atoms
pid of a model         ``ModelPid``                    ``ModelPid``
other pid, reference   the term itself                 the term itself
=====================  ==============================  ===============================

Texts in Erlang are binaries and need not be valid UTF-8; a text that came out of the
façade with escaped bytes goes back as those bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from erl_bridge.etf import Atom, Map, Pid
from erllama_py import types
from erllama_py.types import ModelPid

__all__ = ("Converter",)

_STATS = Atom("stats")

PYTHON_ONLY = frozenset({"exactness", "prefix_len"})
"""Keys of stats that the original's maps do not have."""


class Converter:
    """Converts both ways, with the pids that stand for models.

    :param model_of: the model a pid of ours stands for, or ``None``.
    :param pid_of: the pid that stands for a model.
    """

    def __init__(
        self,
        model_of: Callable[[Pid], ModelPid | None],
        pid_of: Callable[[ModelPid], Any],
    ) -> None:
        self._model_of = model_of
        self._pid_of = pid_of

    def to_python(self, term: Any) -> Any:
        """Return the façade's form of an argument."""
        match term:
            case Atom(name="true"):
                return True
            case Atom(name="false"):
                return False
            case Atom():
                return types.Atom(term.name)
            case dict():
                return {_key(k): self.to_python(v) for k, v in term.items()}
            case Map():
                return {_key(k): self.to_python(v) for k, v in term.pairs if _hashable(k)}
            case list():
                # Token lists are long: leave what needs no conversion alone.
                if all(type(item) is int for item in term):
                    return term
                return [self.to_python(item) for item in term]
            case tuple():
                return tuple(self.to_python(item) for item in term)
            case Pid():
                return self._model_of(term) or term
            case _:
                return term

    def to_term(self, value: Any) -> Any:
        """Return the term of a result."""
        match value:
            case types.Atom():
                return Atom(value)
            case str():
                return value.encode("utf-8", "surrogateescape")
            case dict():
                return {
                    Atom(k) if isinstance(k, str) else self.to_term(k): self.to_term(v)
                    for k, v in value.items()
                }
            case list():
                if all(type(item) is int for item in value):
                    return value
                return [self.to_term(item) for item in value]
            case tuple():
                return tuple(self.to_term(item) for item in value)
            case ModelPid():
                return self._pid_of(value)
            case _:
                return value

    def stats(self, value: dict[str, Any]) -> Any:
        """Return the stats map, with the documented keys only."""
        return self.to_term({k: v for k, v in value.items() if k not in PYTHON_ONLY})

    def result(self, value: dict[str, Any]) -> Any:
        """Return the map of complete/3 or prefill_only/2."""
        if "stats" in value:
            return {**self.to_term({**value, "stats": None}), _STATS: self.stats(value["stats"])}
        return self.to_term(value)


def _key(key: Any) -> Any:
    return key.name if isinstance(key, Atom) else key


def _hashable(key: Any) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True
