"""Single values: an absent one, the wrong kind of one, and the error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom

__all__ = (
    "badarg",
    "bytes_of",
    "choice",
    "digest",
    "enum",
    "flag",
    "integer",
    "invalid",
    "is_text",
    "nested",
    "number",
    "optional_bytes",
    "options_of",
    "text",
)

_FAR: Final = 1e30
"""Beyond it a sampler's number is as good as this one: the engine computes in 32 bits."""

_MAX_ATOM_CHARS: Final = 255


def invalid(key: str, value: Any, expected: str) -> ErllamaError:
    """Return the error for an option that cannot be what it is."""
    return ErllamaError(
        (Atom("invalid"), Atom(key), value), f"{key} cannot be {value!r}", f"give {expected}"
    )


def badarg(key: str, value: Any, expected: str) -> ErllamaError:
    return ErllamaError("badarg", f"{key} cannot be {value!r}", f"give {expected}")


def options_of(value: Any, what: str) -> dict[str, Any]:
    """Return the map without its absent values."""
    if not isinstance(value, Mapping):
        raise BadCall("function_clause", f"{what} must be a map, not {type(value).__name__}")
    return {
        key.decode(errors="surrogateescape") if isinstance(key, bytes) else key: item
        for key, item in value.items()
        if not (item is None or (isinstance(item, str) and item in ("undefined", "nil")))
    }


def nested(options: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = options.get(key, {})
    if not isinstance(value, Mapping):
        raise invalid(key, value, "a map")
    return options_of(value, key)


def bytes_of(value: str | bytes, what: str = "a text") -> bytes:
    """Return a text's bytes.

    :raises BadCall: it has half of a surrogate pair.
    """
    try:
        return value.encode() if isinstance(value, str) else value
    except UnicodeEncodeError as error:
        half = f"{what} has half a character at {error.start}, which is no text"
        raise BadCall("badarg", half) from None


def optional_bytes(value: str | bytes | None) -> bytes | None:
    return None if value is None else bytes_of(value)


def is_text(value: Any) -> TypeGuard[str | bytes]:
    """Whether it is a binary in Erlang: an atom's name is no text."""
    return isinstance(value, (str, bytes)) and not isinstance(value, Atom)


def integer(options: Mapping[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = options.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise invalid(key, value, f"a whole number from {low} to {high}")
    return value


def number(options: Mapping[str, Any], key: str, active: Any) -> float | None:
    value = options.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    if value != value:  # noqa: PLR0124 - a NaN is not a number
        return None
    return float(max(-_FAR, min(value, _FAR))) if active(value) else None


def flag(options: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = options.get(key, default)
    if isinstance(value, str) and value in ("true", "false"):
        return value == "true"
    if not isinstance(value, bool):
        raise invalid(key, value, "true or false")
    return value


def choice(options: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str) -> str:
    value = options.get(key, default)
    if not isinstance(value, str) or value not in choices:
        raise invalid(key, value, " or ".join(choices))
    return str(value)


def enum(options: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str) -> str:
    """Check an enumeration for which the original answers ``badarg``."""
    value = options.get(key, default)
    if not isinstance(value, str) or value not in choices:
        raise badarg(key, value, " or ".join(choices))
    return str(value)


def text(options: Mapping[str, Any], key: str, default: str) -> str:
    """Return the name of an atom, which Erlang limits to 255 characters."""
    value = options.get(key, default)
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    if not isinstance(text, str) or len(text) > _MAX_ATOM_CHARS:
        raise invalid(key, value, "a name")
    return str(text)  # an Atom is a str, but not to all who encode one


def digest(options: Mapping[str, Any], key: str) -> bytes | None:
    value = options.get(key)
    if value is None:
        return None
    if not isinstance(value, bytes) or len(value) != 32:
        raise invalid(key, value, "32 bytes")
    return value
