"""The values that cross the façade: atoms, process and request handles, stream events.

Results are plain dicts with the keys of the Erlang maps.  Values that are atoms in
Erlang are :class:`Atom`, a ``str`` that remembers it is one, so
``result["cache_hit_kind"] == "exact"`` reads naturally in Python while the
distribution node still knows an atom from a text.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

__all__ = (
    "Atom",
    "Event",
    "Markers",
    "ModelPid",
    "Ref",
    "SessionKey",
    "session_key",
    "text_of",
)


class Atom(str):
    """A ``str`` that is an atom on the Erlang side.  Compares and hashes as a ``str``."""

    __slots__ = ()


class ModelPid(msgspec.Struct, frozen=True):
    """One life of a model process.  A restarted model keeps its id and gets a new pid."""

    serial: int

    def __str__(self) -> str:
        return f"<model.{self.serial}>"


class Ref(msgspec.Struct, frozen=True):
    """Identifies one streaming request, as ``reference()`` does in Erlang."""

    serial: int

    def __str__(self) -> str:
        return f"#Ref<{self.serial}>"


_serials: Final = itertools.count(1)


def next_serial() -> int:
    """Return a number that no pid or reference of this process has had."""
    return next(_serials)


class SessionKey(NamedTuple):
    """What a ``session_id`` is equal by: as ``=:=`` does, 1 is neither 1.0 nor true."""

    kind: type
    value: Hashable

    def term(self) -> Any:
        """Return a value with this key."""
        value: Any = self.value
        if self.kind in (tuple, list):
            return self.kind(item.term() for item in value)
        if self.kind is dict:
            return {_hashable(key.term()): item.term() for key, item in value}
        return text_of(value) if self.kind is bytes else value


def session_key(value: Any) -> SessionKey:
    """Return the key of a ``session_id``.

    Any hashable value has one, and so have lists and dicts.  A ``str`` is the binary that it
    is in Erlang.

    :raises TypeError: a value that cannot be told from others.
    """
    match value:
        case SessionKey():
            return value
        case Atom():
            return SessionKey(Atom, value)
        case str():
            return SessionKey(bytes, value.encode("utf-8", "surrogateescape"))
        case tuple() | list():
            kind = tuple if isinstance(value, tuple) else list
            return SessionKey(kind, tuple(map(session_key, value)))
        case Mapping():
            pairs = ((session_key(key), session_key(item)) for key, item in value.items())
            return SessionKey(dict, frozenset(pairs))
    hash(value)
    return SessionKey(type(value), value)


def _hashable(value: Any) -> Any:
    """Return a value, or its key where it can be no key of a dict itself."""
    try:
        hash(value)
    except TypeError:
        return session_key(value)
    return value


class Event(msgspec.Struct, frozen=True):
    """One message of a stream, with the fields of the Erlang message it stands for.

    ===================  ================================================  =============
    ``kind``             Erlang                                            field
    ===================  ================================================  =============
    ``token``            ``{erllama_token, Ref, Bin}``                     ``text``
    ``token_id``         ``{erllama_token_id, Ref, Id}``                   ``token_id``
    ``logprobs``         ``{erllama_logprobs, Ref, Map}``                  ``logprobs``
    ``thinking_delta``   ``{erllama_token, Ref, {thinking_delta, Bin}}``   ``text``
    ``thinking_end``     ``{erllama_thinking_end, Ref, Sig}``              ``signature``
    ``tool_call_delta``  ``{erllama_token, Ref, {tool_call_delta, Bin}}``  ``text``
    ``tool_call_end``    ``{erllama_tool_call_end, Ref, Full}``            ``text``
    ``done``             ``{erllama_done, Ref, Stats}``                    ``stats``
    ``error``            ``{erllama_error, Ref, Reason}``                  ``reason``
    ===================  ================================================  =============

    ``data`` holds the exact bytes of a fragment.  A fragment may end inside a UTF-8
    character, so ``text`` is ``str`` where the bytes are valid and ``bytes`` where not;
    readers who want whole characters use ``Model.stream``.

    ``logprobs`` follows each ``token_id`` of a request that asked for them: a map of
    ``token``, ``text``, ``logprob``, and ``top`` with such maps of the likeliest.
    """

    kind: str
    ref: Ref
    data: bytes = b""
    token_id: int | None = None
    signature: bytes = b""
    stats: dict[str, Any] | None = None
    reason: Any = None
    logprobs: dict[str, Any] | None = None

    @property
    def text(self) -> str | bytes:
        """The fragment as ``str``, or as ``bytes`` where it is not valid UTF-8."""
        return text_of(self.data)

    @property
    def terminal(self) -> bool:
        """True for the last event of a stream: exactly one ``done`` or ``error``."""
        return self.kind in ("done", "error")


class Markers(msgspec.Struct, frozen=True, array_like=True):
    """The texts around a part of a reply that is not for the reader: thinking, a tool call.

    Without a start or an end there is no such part.
    """

    start: bytes = b""
    end: bytes = b""
    payload_start: bytes = b""
    """Within a tool call: where free text begins, and the syntax is left."""
    payload_end: bytes = b""

    @property
    def given(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self.start and self.end)


def text_of(data: bytes) -> str | bytes:
    """Return ``data`` decoded where it is valid UTF-8, else unchanged."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
