"""A schema as a list of simple ones, and what can be said of two of them.

A *branch* has one kind: values listed, or values of one type, or any value.  Unions, lists of
types and truth values become branches; a reply satisfies one of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from erllama_py._grammar.keywords import BY_TYPE
from erllama_py._grammar.merging import Document, Schema, frozen
from erllama_py._grammar.patterns import Patterns
from erllama_py._grammar.reading import Path, SchemaError, pointer

__all__ = ("Branch", "Branches", "json_text", "type_of")

MAX_BRANCHES: Final = 256
_BESIDE_VALUES: Final = frozenset(
    ("const", "enum", "type", "format", "pattern", "minLength", "maxLength")
)
_FIXED: Final[dict[str, list[Any]]] = {"boolean": [True, False], "null": [None]}


class Branch:
    """One simple schema.  Compares by identity, as the places of a schema do."""

    __slots__ = ("kind", "known", "path", "schema", "values")

    def __init__(self, kind: str, schema: dict[str, Any], path: Path, values: Any = ()) -> None:
        self.kind = kind
        """A type, ``any``, or ``const`` for ``values``."""
        self.schema = schema
        self.path = path
        self.values: list[Any] = list(values)
        self.known = frozenset(map(frozen, self.values))

    @property
    def types(self) -> set[str]:
        """The types its values may have; whole numbers count as numbers."""
        if self.kind == "any":
            return {"object", "array", "string", "number", "boolean", "null"}
        if self.kind == "const":
            return {"number" if t == "integer" else t for t in map(type_of, self.values)}
        return {"number" if self.kind == "integer" else self.kind}

    @property
    def closed(self) -> bool:
        """Whether an object has named properties only; what is not said is written so."""
        extra = self.schema.get("additionalProperties")
        if "patternProperties" in self.schema:
            return False
        return extra is False or (extra is None and "properties" in self.schema)


class Branches:
    """Finds the branches of schemas."""

    def __init__(self, document: Document, patterns: Patterns) -> None:
        self._document = document
        self._patterns = patterns
        self._found: dict[int, list[Branch]] = {}
        self._listed: dict[int, Branch] = {}

    def of(self, schema: Schema, path: Path, trail: tuple[int, ...] = ()) -> list[Branch]:
        """Return what a value may be.

        :raises SchemaError: nothing can be; or more than a grammar can promise is asked.
        """
        flat = self._document.flat(schema, path)
        path = self._document.path(schema, path)
        if id(flat) in trail:
            raise SchemaError(path, "it refers to itself, with nothing in between")
        found = self._found.get(id(flat))
        if found is None:
            found = self._branches(flat, path, (*trail, id(flat)))
            found = list(dict.fromkeys(found))
            if len(found) > MAX_BRANCHES:
                raise SchemaError(path, f"it has more than {MAX_BRANCHES} alternatives")
            self._found[id(flat)] = found
            self._document.made(flat, path)
        return found

    def _branches(self, flat: dict[str, Any], path: Path, trail: tuple[int, ...]) -> list[Branch]:
        choices = [word for word in ("anyOf", "oneOf") if word in flat]
        if len(choices) > 1:
            raise SchemaError(path, "anyOf and oneOf in one place", "write one list of cases")
        if choices:
            return self._union(flat, choices[0], path, trail)
        if "const" in flat or "enum" in flat:
            return [self._values(flat, path)]
        types = flat.get("type") or _implied(flat, path)
        types = types if isinstance(types, list) else [types]
        if "number" in types:
            types = [name for name in types if name != "integer"]
        fixed = [value for name in types for value in _FIXED.get(name, [])]
        found = [Branch("const", flat, path, fixed)] if fixed else []
        return found + [Branch(name, flat, path) for name in types if name not in _FIXED]

    def _union(
        self, flat: dict[str, Any], word: str, path: Path, trail: tuple[int, ...]
    ) -> list[Branch]:
        beside = {name: value for name, value in flat.items() if name != word}
        found = []
        for at, alternative in enumerate(flat[word]):
            if alternative is False:
                continue
            place = self._document.path(alternative, (*path, word, str(at)))
            schema = alternative
            if beside:
                schema = self._document.flat(alternative, place)
                schema = self._document.both(schema, beside, place)
            found.append(self.of(schema, place, trail))
        if not found:
            raise SchemaError(path, "nothing satisfies it")
        if word == "oneOf":
            for at, one in enumerate(found):
                for other in found[at + 1 :]:
                    self._check_exclusive(one, other, path)
        return [branch for branches in found for branch in branches]

    # -- what excludes what -------------------------------------------------------------

    def _check_exclusive(self, one: list[Branch], other: list[Branch], path: Path) -> None:
        for first in one:
            for second in other:
                if not self.exclusive(first, second):
                    raise SchemaError(
                        (*path, "oneOf"),
                        f"a value could satisfy both {_place(first)} and {_place(second)}",
                        "use anyOf, or a required property with another const in each",
                    )

    def exclusive(self, one: Branch, other: Branch) -> bool:
        """Whether no value that is written for one satisfies the other."""
        if one is other:
            return False
        if not one.types & other.types:
            return True
        if one.kind == other.kind == "const":
            return one.known.isdisjoint(other.known)
        if one.kind == other.kind == "object":
            return self._shuns(one, other) and self._shuns(other, one)
        return False

    def _shuns(self, judge: Branch, writer: Branch) -> bool:
        """Whether an object fails the first for certain when it is written for the other."""
        named, written = (one.schema.get("properties", {}) for one in (judge, writer))
        needed, certain = (one.schema.get("required", []) for one in (judge, writer))
        if writer.closed and any(name not in written for name in needed):
            return True
        if (
            judge.schema.get("additionalProperties") is False
            and "patternProperties" not in judge.schema
            and any(name not in named for name in certain)
        ):
            return True
        return any(
            self._fixed_apart(named[name], written[name], (*writer.path, "properties", name))
            for name in certain
            if name in named and name in written
        )

    def _fixed_apart(self, one: Schema, other: Schema, path: Path) -> bool:
        first, second = self.constants(one, path), self.constants(other, path)
        if first is None or second is None:
            return False
        return first.known.isdisjoint(second.known)

    def constants(self, schema: Schema, path: Path) -> Branch | None:
        """Return the branch of the values a schema lists; ``None`` where it lists none.

        Looked at without its branches: this is asked while they are being found.
        """
        if isinstance(schema, bool):
            return None
        flat = self._document.flat(schema, path)
        if "const" not in flat and "enum" not in flat:
            return None
        found = self._listed.get(id(flat))
        if found is None:
            found = self._listed[id(flat)] = self._values(flat, path)
        return found

    def _values(self, flat: dict[str, Any], path: Path) -> Branch:
        """Return the branch of the values that a schema lists and does not exclude."""
        others = flat.keys() - _BESIDE_VALUES
        if others:
            word = min(others)
            raise SchemaError(
                (*path, word),
                f"{word} beside listed values is not supported",
                "list what is allowed",
            )
        values = list(flat.get("enum", ()))
        if "const" in flat:
            fixed = flat["const"]
            known = map(frozen, values)
            values = [fixed] if "enum" not in flat or frozen(fixed) in known else []
        if "type" in flat:
            types = flat["type"] if isinstance(flat["type"], list) else [flat["type"]]
            values = [value for value in values if _is_of(value, types)]
        if flat.keys() & {"pattern", "minLength", "maxLength"}:
            values = [
                value
                for value in values
                if not isinstance(value, str) or self._patterns.fits(value, flat, path)
            ]
        if not values:
            raise SchemaError(path, "none of the listed values is allowed")
        return Branch("const", flat, path, values)


def json_text(value: Any) -> str:
    """Return the one way in which a listed value is written."""
    return json.dumps(value, ensure_ascii=False)


def _implied(flat: dict[str, Any], path: Path) -> str:
    """Return the type that a schema's keywords speak of."""
    speaks = [
        name for name, words in BY_TYPE.items() if name != "integer" and flat.keys() & set(words)
    ]
    if len(speaks) > 1:
        raise SchemaError(
            path, f"it speaks of more than one type: {', '.join(speaks)}", "say its type"
        )
    return speaks[0] if speaks else "any"


def type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _is_of(value: Any, types: Iterable[str]) -> bool:
    found = type_of(value)
    return found in types or (found == "integer" and "number" in types)


def _place(branch: Branch) -> str:
    return pointer(branch.path)
