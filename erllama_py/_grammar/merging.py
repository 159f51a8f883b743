"""``$ref``, ``allOf`` and what stands beside them, made one flat schema.

A flat schema has none of the two, and no annotations.  Its parts are the document's own
objects where nothing had to be merged, so their identity says which place they are.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Hashable
from typing import Any, Final

from erllama_py._grammar.keywords import assertions, check_keywords
from erllama_py._grammar.reading import Path, SchemaError

__all__ = ("Document", "Schema", "frozen")

Schema = dict[str, Any] | bool

_GREATER: Final = ("minimum", "exclusiveMinimum", "minItems", "minLength", "minProperties")
_SMALLER: Final = ("maximum", "exclusiveMaximum", "maxItems", "maxLength", "maxProperties")


class Document:
    """A schema with its places."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._paths: dict[int, Path] = {}
        self._flat: dict[int, dict[str, Any]] = {}
        self._made: list[Any] = []
        """What was made here, kept: an identity must not be given to two."""
        self._note(root, ())

    def _note(self, value: Any, path: Path) -> None:
        if isinstance(value, dict):
            self._paths[id(value)] = path
            for name, item in value.items():
                self._note(item, (*path, name))
        elif isinstance(value, list):
            for at, item in enumerate(value):
                self._note(item, (*path, str(at)))

    def path(self, schema: Schema, fallback: Path = ()) -> Path:
        """Return where a schema stands; of a merged one, where it was merged."""
        return self._paths.get(id(schema), fallback)

    def flat(self, schema: Schema, path: Path, trail: tuple[int, ...] = ()) -> dict[str, Any]:
        """Return a schema without references and ``allOf``.

        :param path: where it is, if it stands nowhere.
        :param trail: what is being made flat.
        :raises SchemaError: it refers to itself with nothing in between, or its parts
            contradict each other.
        """
        if isinstance(schema, bool):
            if not schema:
                raise SchemaError(path, "nothing satisfies false")
            return {}
        found = self._flat.get(id(schema))
        if found is None:
            path = self.path(schema, path)
            if id(schema) in trail:
                raise SchemaError(path, "it refers to itself, with nothing in between")
            check_keywords(schema, path)
            found = self._merged(schema, path, (*trail, id(schema)))
            self._flat[id(schema)] = found
        return found

    def _merged(self, schema: dict[str, Any], path: Path, trail: tuple[int, ...]) -> dict[str, Any]:
        own = assertions(schema)
        reference, several = own.pop("$ref", None), own.pop("allOf", [])
        parts = []
        if reference is not None:
            parts.append(self.flat(self._target(reference, path), (*path, "$ref"), trail))
        for at, part in enumerate(several):
            parts.append(self.flat(part, (*path, "allOf", str(at)), trail))
        if own or not parts:
            parts.append(own)
        whole = parts[0]
        for part in parts[1:]:
            whole = self.both(whole, part, path)
        if whole is own:
            self.made(whole, path)
        return whole

    def made(self, schema: dict[str, Any], path: Path) -> dict[str, Any]:
        """Keep a schema that was made, which stands at ``path``."""
        self._made.append(schema)
        self._paths.setdefault(id(schema), path)
        return schema

    def both(self, one: dict[str, Any], other: dict[str, Any], path: Path) -> dict[str, Any]:
        """Return the flat schema of what satisfies two flat ones."""
        if not one or not other or one is other:
            return one or other
        whole = dict(one)
        for word, value in other.items():
            whole[word] = self._joined(word, one[word], value, path) if word in one else value
        for first, second in ((one, other), (other, one)):
            closed = first.get("additionalProperties", True) is not True
            strange = {
                name
                for word in ("properties", "patternProperties")
                for name in second.get(word, {}).keys() - first.get(word, {}).keys()
            }
            if closed and strange:
                raise SchemaError(
                    path,
                    f"one part has additionalProperties, another the property {min(strange)!r}",
                    "put the properties into one object",
                )
        for first, second in ((one, other), (other, one)):
            if ("prefixItems" in first or isinstance(first.get("items"), list)) and (
                "items" in second and "items" not in first
            ):
                raise SchemaError(path, "prefixItems and items stand in different parts")
        return self.made(whole, path)

    def _joined(self, word: str, one: Any, other: Any, path: Path) -> Any:
        """Return what a keyword is that stands in two parts."""
        if one == other and type(one) is type(other):
            return one
        if word in _GREATER:
            return max(one, other)
        if word in _SMALLER:
            return min(one, other)
        match word:
            case "type":
                return _common_types(one, other, path)
            case "required":
                return list(dict.fromkeys([*one, *other]))
            case "properties" | "patternProperties":
                joined = {
                    name: self.made({"allOf": [one[name], item]}, (*path, word, name))
                    if name in one
                    else item
                    for name, item in other.items()
                }
                return {**one, **joined}
            case "additionalProperties" | "propertyNames" | "items" if not (
                isinstance(one, list) or isinstance(other, list)
            ):
                if one is True or other is True:
                    return other if one is True else one
                return self.made({"allOf": [one, other]}, (*path, word))
            case "uniqueItems":
                return one or other
            case "pattern":
                return tuple(
                    dict.fromkeys(
                        pattern
                        for part in (one, other)
                        for pattern in ((part,) if isinstance(part, str) else part)
                    )
                )
            case "enum":
                known = set(map(frozen, other))
                common = [value for value in one if frozen(value) in known]
                if common:
                    return common
        raise SchemaError(
            path, f"two parts have a {word} each, which cannot be joined", "write one schema"
        )

    def _target(self, reference: str, path: Path) -> Schema:
        """Return what a reference names."""
        here = (*path, "$ref")
        if reference != "#" and not reference.startswith("#/"):
            raise SchemaError(
                here, f"{reference!r:.80} is not in this schema", "put it under $defs"
            )
        value: Any = self._root
        for part in urllib.parse.unquote(reference).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            elif isinstance(value, dict) and name in value:
                value = value[name]
            else:
                raise SchemaError(here, f"there is no {reference!r:.80}")
        if not isinstance(value, (dict, bool)):
            raise SchemaError(here, f"{reference!r:.80} is no schema")
        return value


def frozen(value: Any) -> Hashable:
    """Return what is equal for values that are equal as JSON: true is not 1, and 1.0 is."""
    match value:
        case bool():
            return ("boolean", value)
        case list():
            return ("array", tuple(map(frozen, value)))
        case dict():
            return ("object", frozenset((name, frozen(item)) for name, item in value.items()))
    return value  # type: ignore[no-any-return]  # null, numbers and texts are different anyway


def _common_types(one: Any, other: Any, path: Path) -> Any:
    first = one if isinstance(one, list) else [one]
    second = other if isinstance(other, list) else [other]
    common = [
        name for name in first if name in second or (name == "integer" and "number" in second)
    ]
    common += [name for name in second if name == "integer" and "number" in first]
    common = list(dict.fromkeys(common))
    if not common:
        raise SchemaError(path, f"its parts are {first} and {second}: nothing is both")
    return common[0] if len(common) == 1 else common
