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

from collections.abc import Callable, Iterable
from typing import Any

from erl_bridge.etf import Atom, Map, Pid
from erl_bridge.service.sessions import session_of
from erllama_py import types
from erllama_py.types import ModelPid

__all__ = ("Converter", "NotAModel", "bytes_of", "chat_request")

_STATS = Atom("stats")
_SESSION_ID = Atom("session_id")

PYTHON_ONLY = frozenset({"exactness", "prefix_len", "tier", "thinking_tokens", "tool_call_tokens"})
"""Keys of stats that the original's maps do not have."""

_PYTHON_RESULTS = frozenset({"thinking", "tool_calls"})
"""Keys of results that they do not have: completions drop both there."""


class NotAModel(Exception):
    """A pid that stands for no model."""

    def __init__(self, pid: Pid) -> None:
        self.pid = pid
        super().__init__(pid)


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

    def arguments(self, kinds: Iterable[str], args: Iterable[Any]) -> list[Any]:
        """Return the façade's form of a function's arguments.

        :param kinds: the clause that takes them, see :mod:`erl_bridge.service.heads`.
        :raises NotAModel: a pid stands for no model.
        """
        return [self._argument(kind, arg) for kind, arg in zip(kinds, args, strict=True)]

    def _argument(self, kind: str, term: Any) -> Any:
        match kind:
            case "model" if isinstance(term, Pid):
                model = self._model_of(term)
                if model is None:
                    raise NotAModel(term)
                return model
            case "any" | "map":
                return self.to_python(term)
            case "options":
                return self._options(term)
            case "session":
                return session_of(term)
            case _:
                # Tokens too: an atom among them must not become a Python truth value,
                # which would count as a number.
                return term

    def _options(self, term: Any) -> Any:
        """Return the options of a request; their ``session_id`` may be any term."""
        options = self.to_python(term)
        if "session_id" in options:
            options["session_id"] = session_of(term.get(_SESSION_ID))
        return options

    def to_python(self, term: Any) -> Any:
        """Return the façade's form of a term."""
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
                # Token lists and vectors are long.
                if all(type(item) is int or type(item) is float for item in value):
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
        """Return the map of complete/3 or prefill_only/3."""
        if "stats" in value:
            documented = {k: v for k, v in value.items() if k not in _PYTHON_RESULTS}
            stats = self.stats(value["stats"])
            return {**self.to_term({**documented, "stats": None}), _STATS: stats}
        return self.to_term(value)


def bytes_of(iodata: Any) -> bytes | None:
    """Return the bytes of a binary, charlist or iolist; ``None`` for anything else."""
    if isinstance(iodata, bytes):
        return iodata
    if not isinstance(iodata, list):
        return None
    out = bytearray()
    for item in iodata:
        if type(item) is int and 0 <= item <= 255:
            out.append(item)
            continue
        part = bytes_of(item)
        if part is None:
            return None
        out += part
    return bytes(out)


def chat_request(request: dict[str, Any]) -> dict[str, Any]:
    """Return a converted chat request with its iolists as binaries.

    A role, a content, a block's text or a system text may be any iodata, and so may what
    tools are called; what is none stays as it is, to be refused where its place in the
    request is known.
    """
    changed = dict(request)
    if isinstance(tools := request.get("tools"), list):
        changed["tools"] = [_with_texts(tool, "name", "description") for tool in tools]
    if (system := bytes_of(request.get("system"))) is not None:
        changed["system"] = system
    messages = request.get("messages")
    if isinstance(messages, list):
        changed["messages"] = [_message(item) for item in messages]
    return changed


def _message(message: Any) -> Any:
    changed = _with_texts(message, "role", "content")
    if isinstance(changed, dict) and isinstance(blocks := changed.get("content"), list):
        return changed | {"content": [_with_texts(block, "text") for block in blocks]}
    return changed


def _with_texts(value: Any, *keys: str) -> Any:
    """Return a map with the iodata under these keys as binaries."""
    if not isinstance(value, dict):
        return value
    texts = {key: bytes_of(value[key]) for key in keys if key in value}
    return value | {key: text for key, text in texts.items() if text is not None}


def _key(key: Any) -> Any:
    return key.name if isinstance(key, Atom) else key


def _hashable(key: Any) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True
