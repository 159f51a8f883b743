"""What becomes of each keyword of JSON Schema (draft 2020-12, and what 7 spells otherwise)."""

from __future__ import annotations

import difflib
from typing import Any, Final

from erllama_py._grammar.reading import Path, SchemaError

__all__ = ("ANNOTATIONS", "BY_TYPE", "TYPES", "assertions", "check_keywords")

TYPES: Final = ("object", "array", "string", "integer", "number", "boolean", "null")

ANNOTATIONS: Final = frozenset(
    {
        *("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default"),
        *("example", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"),
        *("contentEncoding", "contentMediaType", "contentSchema", "externalDocs", "xml"),
    }
)
"""Say nothing about what is valid."""

_NUMBER: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
BY_TYPE: Final = {
    "object": (
        *("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
        *("patternProperties", "propertyNames"),
    ),
    "array": (*("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"),),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": _NUMBER,
    "number": _NUMBER,
    "boolean": (),
    "null": (),
}
"""Keywords that speak of values of one type, and are of no effect on others."""

_ANYWHERE: Final = ("$ref", "allOf", "anyOf", "oneOf", "type", "enum", "const")

_REFUSED: Final = {
    "not": "name what is allowed",
    "if": "use anyOf with an object for each case",
    "then": "use anyOf with an object for each case",
    "else": "use anyOf with an object for each case",
    "dependentRequired": "use anyOf with an object for each case",
    "dependentSchemas": "use anyOf with an object for each case",
    "dependencies": "use anyOf with an object for each case",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "contains": "use items, or prefixItems",
    "minContains": "use items, or prefixItems",
    "maxContains": "use items, or prefixItems",
    "nullable": 'use "type": [..., "null"]',
    "$anchor": "use $defs and a $ref to it",
    "$dynamicRef": "use $defs and a $ref to it",
    "$dynamicAnchor": "use $defs and a $ref to it",
    "$recursiveRef": "use $defs and a $ref to it",
    "$recursiveAnchor": "use $defs and a $ref to it",
    "$vocabulary": "leave it out",
}
"""What a grammar cannot promise, and what to do instead."""

_SUPPORTED: Final = frozenset(
    {*_ANYWHERE, *(word for words in BY_TYPE.values() for word in words), *ANNOTATIONS}
)

_COUNTS: Final = (
    *("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"),
)


def check_keywords(schema: dict[str, Any], path: Path) -> None:
    """Refuse what is not supported, misspelt, or of the wrong kind.

    :raises SchemaError: the first that is.
    """
    for word, value in schema.items():
        if word in _REFUSED:
            raise SchemaError((*path, word), f"{word} is not supported", _REFUSED[word])
        if word not in _SUPPORTED and not word.startswith("x-"):
            near = difflib.get_close_matches(word, sorted(_SUPPORTED), 1)
            raise SchemaError(
                (*path, word),
                f"{word!r:.60} is no keyword",
                f"did you mean {near[0]}?" if near else "leave it out, or begin it with x-",
            )
        if wanted := _wanted(word, value):
            raise SchemaError((*path, word), f"{word} must be {wanted}")
    if path and "$id" in schema and "$ref" in str(schema):
        raise SchemaError((*path, "$id"), "$id inside of a schema is not supported", "leave it out")


def assertions(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without what says nothing about validity."""
    return {
        word: value
        for word, value in schema.items()
        if word not in ANNOTATIONS and not word.startswith("x-")
    }


def _wanted(word: str, value: Any) -> str:
    """Return what a keyword's value must be, where it is not."""
    match word:
        case "type":
            names = value if isinstance(value, list) else [value]
            good = bool(names) and all(name in TYPES for name in names if isinstance(name, str))
            good = good and all(isinstance(name, str) for name in names)
            return "" if good else f"one of {', '.join(TYPES)}, or a list of them"
        case "allOf" | "anyOf" | "oneOf":
            good = isinstance(value, list) and bool(value) and all(map(_is_schema, value))
            return "" if good else "a list of schemas, at least one"
        case "prefixItems":
            good = isinstance(value, list) and all(map(_is_schema, value))
            return "" if good else "a list of schemas"
        case "items":
            many = isinstance(value, list) and all(map(_is_schema, value))
            return "" if many or _is_schema(value) else "a schema"
        case "additionalProperties" | "additionalItems" | "propertyNames":
            return "" if _is_schema(value) else "a schema, true or false"
        case "properties" | "patternProperties" | "$defs" | "definitions":
            good = isinstance(value, dict) and all(map(_is_schema, value.values()))
            return "" if good else "a map of schemas"
        case "required":
            good = isinstance(value, list) and all(isinstance(name, str) for name in value)
            return "" if good else "a list of names"
        case "enum":
            return "" if isinstance(value, list) and value else "a list of values, at least one"
        case "pattern":
            # Several, where parts of a schema were joined.
            return "" if isinstance(value, (str, tuple)) else "a regular expression, as a text"
        case "$ref" | "format":
            return "" if isinstance(value, str) else "a text"
        case "uniqueItems":
            return "" if isinstance(value, bool) else "true or false"
        case "multipleOf":
            return "" if _is_number(value) and value > 0 else "a number above 0"
    if word in _NUMBER:
        # Draft 4 had truth values for two of them.
        return "" if _is_number(value) else "a number"
    if word in _COUNTS:
        good = _is_number(value) and value >= 0 and value == int(value)
        return "" if good else "a whole number from 0"
    return ""


def _is_schema(value: Any) -> bool:
    return isinstance(value, (dict, bool))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
