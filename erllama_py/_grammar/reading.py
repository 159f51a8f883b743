"""What a caller gives as a schema, as plain JSON with names of its own.

A schema is JSON text, or a map: Python's, or Erlang's with atoms and binaries for names
and texts.  Everything is copied, so that a place in the schema is an object of its own.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final, NoReturn

from erllama_py.types import Atom

__all__ = ("Path", "SchemaError", "pointer", "read")

MAX_BYTES: Final = 256 << 10
MAX_VALUES: Final = 20_000
MAX_DEPTH: Final = 64
"""Deeper ones than people write; the compiler recurses by some frames a level."""

Path = tuple[str, ...]


class SchemaError(Exception):
    """A schema that cannot be a grammar.

    :ivar path: of the place, as a JSON pointer from ``#``.
    :ivar problem: what is wrong there.
    :ivar mend: what can be done about it.
    """

    def __init__(self, path: Path, problem: str, mend: str = "") -> None:
        self.path = pointer(path)
        self.problem = problem
        self.mend = mend
        super().__init__(f"{self.path}: {problem}")


def pointer(path: Path) -> str:
    """Return a path as a JSON pointer."""
    return "#" + "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)


def read(given: Any) -> dict[str, Any] | bool:
    """Return a schema as JSON values.

    :param given: a map, a truth value, or JSON text.
    :raises SchemaError: no JSON, no schema, or too much of it.
    """
    if isinstance(given, (str, bytes)) and not isinstance(given, Atom):
        given = _parse(given)
    schema = _Reader().value(given, ())
    if not isinstance(schema, (dict, bool)):
        raise SchemaError((), f"{_name(schema)} is no schema", "give a map, or its JSON text")
    return schema


def _parse(text: str | bytes) -> Any:
    if len(text) > MAX_BYTES:
        raise SchemaError((), f"{len(text)} bytes of schema", f"{MAX_BYTES} at most")

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise SchemaError((), f"it is no JSON: {error}", "give a map, or JSON text") from None


class _Reader:
    def __init__(self) -> None:
        self._left = MAX_VALUES
        self._bytes = MAX_BYTES

    def value(self, given: Any, path: Path) -> Any:
        self._left -= 1
        if self._left < 0:
            raise SchemaError((), f"it has more than {MAX_VALUES} values", "use a smaller one")
        if len(path) > MAX_DEPTH:
            raise SchemaError(path[:8], f"it is more than {MAX_DEPTH} levels deep")
        match given:
            case None | bool():
                return given
            case int():
                return self._number(given, path)
            case float():
                if not math.isfinite(given):
                    raise SchemaError(path, f"{given} is no JSON")
                return given
            case Atom():
                # Atoms stand for texts, but for those that JSON has words for.
                words = {"true": True, "false": False, "null": None, "undefined": None}
                return words[given] if given in words else self.text(given, path)
            case str() | bytes():
                return self.text(given, path)
            case dict():
                names = [self.text(key, path) for key in given]
                if len(set(names)) < len(names):
                    raise SchemaError(path, "a name is there twice", "once as atom and as binary?")
                values = zip(names, given.values(), strict=True)
                return {name: self.value(item, (*path, name)) for name, item in values}
            case list() | tuple():
                return [self.value(item, (*path, str(at))) for at, item in enumerate(given)]
        raise SchemaError(path, f"{_name(given)} is no JSON")

    def text(self, given: Any, path: Path) -> str:
        if not isinstance(given, (str, bytes)):
            raise SchemaError(path, f"a name cannot be {_name(given)}", "names are texts")
        self._bytes -= len(given)
        if self._bytes < 0:
            raise SchemaError((), f"it has more than {MAX_BYTES} bytes of text")
        try:
            text = given.decode() if isinstance(given, bytes) else str(given)
            text.encode()
        except UnicodeError:
            raise SchemaError(path, f"{given!r:.40} is not valid UTF-8") from None
        return text

    def _number(self, given: int, path: Path) -> int:
        if abs(given) >= 1 << 63:
            raise SchemaError(path, "a whole number of more than 63 bits")
        return int(given)


def _name(value: Any) -> str:
    names = {type(None): "null", bool: "truth value", str: "text", bytes: "text", list: "list"}
    return names.get(type(value), type(value).__name__)
