"""Hypothesis strategies for JSON Schemas that can be grammars."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "ab", "b", "kind", "é", 'q"', "b\\s", "new\nline", "ünï", "^-]"])
FLAGS = st.booleans()
OF_NAMES = st.sampled_from(["^a", "b$", "^[a-z]{1,3}$", "\\W", '^q"$', "é", "^x-", "^"])
NAMED = st.builds("^{}".format, st.sampled_from(["", "[^z]*$", "(?!b)", "[a-z]+$"])).map(
    lambda pattern: {"pattern": pattern}
) | st.sampled_from([{"enum": ["a", "ab", "c"]}, {"minLength": 1, "maxLength": 4}, True])
PATTERNS = [
    # And a length that some of their texts have, and a greater one.
    *((r"^\d{3}-\d{4}$", 8, 10), (r"^\S+@\S+\.[a-w]{2,3}$", 6, 20), ("[^a]", 3, 9), ("", 2, 5)),
    *((r'^[^"\\]*$', 2, 9), (r"\W", 4, 20), (r"^[^\w\s]\D+$", 2, 9), ("^(a|é|😀)+$", 2, 30)),
    (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", 3, 9),
    *((r"^.\n[\x00-\x20\x7f]$", 3, 9), ("^(a*)*b|^c$", 1, 9), ("^[\U0001f600-\U0001f64f]+$", 2, 9)),
]
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.sampled_from([0.5, -1.25]) | TEXTS
)
BOUNDS = st.integers(-200, 200) | st.integers(-2000, 2000).map(lambda n: n / 100)


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    low, high = sorted((draw(BOUNDS), draw(BOUNDS)))
    schema: dict[str, Any] = {"type": draw(st.sampled_from(["number", "integer"]))}
    if schema["type"] == "integer" or draw(FLAGS):
        high += 3  # there is a whole number between
    if draw(FLAGS):
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
    if draw(FLAGS):
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = high + 0.5
    return schema


@st.composite
def strings(draw: st.DrawFn) -> dict[str, Any]:
    if draw(FLAGS):
        form = draw(st.sampled_from(["date", "time", "date-time", "uuid", "other"]))
        return {"type": "string", "format": form}
    if draw(FLAGS):
        return draw(patterned())
    least = draw(st.integers(0, 4))
    schema: dict[str, Any] = {"type": "string", "minLength": least}
    if draw(FLAGS):
        schema["maxLength"] = least + draw(st.integers(0, 4))
    return schema


@st.composite
def patterned(draw: st.DrawFn) -> dict[str, Any]:
    pattern, least, most = draw(st.sampled_from(PATTERNS))
    schema: dict[str, Any] = {"type": "string", "pattern": pattern}
    if draw(FLAGS):
        schema["minLength"] = draw(st.integers(0, least))
    if draw(FLAGS):
        schema["maxLength"] = draw(st.integers(least, most))
    if draw(FLAGS):
        schema["allOf"] = [{"pattern": "^[^z]*$"}]
    return schema


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    least = draw(st.integers(0, 3))
    schema: dict[str, Any] = {"type": "array", "minItems": least}
    if draw(FLAGS):
        schema["maxItems"] = least + draw(st.integers(0, 2))
    if draw(FLAGS):
        schema["prefixItems"] = draw(st.lists(inner, max_size=2))
    schema["items"] = draw(inner)
    return schema


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    named = draw(st.dictionaries(NAMES, inner, max_size=4))
    schema: dict[str, Any] = {"type": "object", "properties": named}
    schema["required"] = [name for name in named if draw(FLAGS)]
    if draw(FLAGS):
        schema["additionalProperties"] = draw(inner | st.booleans())
    return schema


@st.composite
def maps(draw: st.DrawFn) -> dict[str, Any]:
    """Objects whose names are held to patterns; what two of them ask can be had together."""
    values = st.integers(-9, 9).map(lambda least: {"type": "integer", "minimum": least})
    schema: dict[str, Any] = {"type": "object"}
    schema["patternProperties"] = draw(st.dictionaries(OF_NAMES, values, max_size=2))
    if draw(FLAGS):
        schema["properties"] = draw(st.dictionaries(NAMES, values, max_size=4))
    if draw(FLAGS):
        schema["additionalProperties"] = draw(values | st.booleans())
    if draw(FLAGS):
        schema["propertyNames"] = draw(NAMED)
    elif draw(FLAGS):
        schema["required"] = list(schema.get("properties", {}))[:2]
    return schema


@st.composite
def unions(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    return {"anyOf": draw(st.lists(inner, min_size=1, max_size=3))}


LEAVES = (
    numbers()
    | strings()
    | st.just(True)
    | st.builds(lambda values: {"enum": values}, st.lists(SCALARS, min_size=1, max_size=5))
    | st.builds(lambda value: {"const": value}, st.lists(SCALARS, max_size=2))
    | st.builds(lambda name: {"type": [name, "null"]}, st.sampled_from(["boolean", "integer"]))
)

schemas: st.SearchStrategy[dict[str, Any] | bool] = st.recursive(
    LEAVES, lambda inner: arrays(inner) | objects(inner) | unions(inner), max_leaves=8
)
