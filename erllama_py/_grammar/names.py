"""Which properties an object may have, by their names, and what each of them is.

Properties that are listed are told one by one.  The names of others are held to by patterns:
those of ``patternProperties`` and ``propertyNames``, or none.  A name that is not listed and
that two patterns match is not written: so each name has one schema, and one way.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from erllama_py._grammar.automaton import Automaton
from erllama_py._grammar.branches import Branches
from erllama_py._grammar.merging import Document, Schema
from erllama_py._grammar.patterns import Patterns, patterns_of
from erllama_py._grammar.reading import Path, SchemaError

__all__ = ("Members", "Names")

_OF_NAMES: Final = frozenset(
    ("type", "pattern", "minLength", "maxLength", "format", "enum", "const")
)


class Members(NamedTuple):
    """What an object may have."""

    described: dict[str, Schema]
    """By name, in their order; what is not allowed is not among them."""
    others: list[tuple[Automaton | None, Schema, Path]]
    """Names of others, what those are, and where that stands; ``None``: any other names."""
    known: set[str]
    """Names that others do not have."""


class Names:
    """Finds the members of objects."""

    def __init__(self, document: Document, branches: Branches, patterns: Patterns) -> None:
        self._document = document
        self._branches = branches
        self._patterns = patterns

    def members(self, schema: dict[str, Any], path: Path) -> Members:
        """Return the members of a flat schema.

        :raises SchemaError: what is required is not allowed, or names cannot be promised.
        """
        by_pattern: dict[str, Schema] = schema.get("patternProperties", {})
        extra = schema.get("additionalProperties")
        if extra is None:
            extra = not schema.keys() & {"properties", "patternProperties"}
        described: dict[str, Schema] = dict(schema.get("properties", {}))
        names = self._names(schema, path)
        listed = self._listed(schema, path)
        for name in listed or ():
            described.setdefault(name, self._unlisted(name, by_pattern, extra, path))
        for name in schema.get("required", ()):
            # Nothing is said of it, but that it must be there.
            if name not in described:
                described[name] = self._unlisted(name, by_pattern, extra, path)
        known = {*described}
        allowed = self._allowed(names, (*path, "propertyNames")) if names else None
        for name in list(described):
            item = self._whole(name, described[name], by_pattern, path)
            if listed is not None and name not in listed:
                item = False
            if names and not (allowed and allowed.accepts(name)):
                item = False
            described[name] = item
            if item is False:
                if name in schema.get("required", ()):
                    raise _forbidden(name, path)
                del described[name]
        others: list[tuple[Automaton | None, Schema, Path]] = []
        if listed is None and (by_pattern or names):
            others = self._others(by_pattern, extra, names, known, path)
        elif listed is None and extra is not False:
            others = [(None, extra, (*path, "additionalProperties"))]
        return Members(described, others, known)

    # -- names ------------------------------------------------------------------------------

    def _names(self, schema: dict[str, Any], path: Path) -> dict[str, Any]:
        """Return what is asked of all names."""
        path = (*path, "propertyNames")
        found = self._document.flat(schema.get("propertyNames", True), path)
        if strange := found.keys() - _OF_NAMES:
            raise SchemaError(
                (*path, min(strange)),
                f"{min(strange)} is not supported for names",
                "use pattern, minLength, maxLength, format, or enum",
            )
        types = found.get("type", "string")
        if "string" not in (types if isinstance(types, list) else [types]):
            raise SchemaError(path, "names are texts")
        return found

    def _listed(self, schema: dict[str, Any], path: Path) -> list[str] | None:
        """Return the names that there may be, where they are listed."""
        place = (*path, "propertyNames")
        found = self._branches.constants(schema.get("propertyNames", True), place)
        if found is None:
            return None
        return [value for value in found.values if isinstance(value, str)]

    def _allowed(
        self,
        names: dict[str, Any],
        path: Path,
        patterns: tuple[str, ...] = (),
        never: tuple[str, ...] = (),
    ) -> Automaton | None:
        """Return the names that are as all must be, match some patterns, and not others."""
        least, most = int(names.get("minLength", 0)), names.get("maxLength")
        patterns = (*patterns, *patterns_of(names)) or ("",)
        return self._patterns.compiled(
            patterns, path, least, None if most is None else int(most), never
        )

    def _unlisted(
        self, name: str, by_pattern: dict[str, Schema], extra: Schema, path: Path
    ) -> Schema:
        """Return what a property is by its name alone, but for what its patterns say."""
        for pattern in by_pattern:
            found = self._patterns.compiled((pattern,), (*path, "patternProperties", pattern))
            if found is not None and found.accepts(name):
                return True
        return extra

    def _whole(self, name: str, item: Schema, by_pattern: dict[str, Schema], path: Path) -> Schema:
        """Return what a property is by its schema and those of the patterns of its name."""
        parts = [item]
        for pattern, schema in by_pattern.items():
            place = (*path, "patternProperties", pattern)
            # Where dialects do not agree whether it matches, it is as if it did.
            free = self._patterns.compiled(("",), place, never=(pattern,))
            if free is None or not free.accepts(name):
                parts.append(schema)
        if any(part is False for part in parts):
            return False
        parts = [part for part in parts if part is not True]
        if len(parts) < 2:
            return parts[0] if parts else True
        return self._document.made({"allOf": parts}, (*path, "properties", name))

    def _others(
        self,
        by_pattern: dict[str, Schema],
        extra: Schema,
        names: dict[str, Any],
        known: set[str],
        path: Path,
    ) -> list[tuple[Automaton | None, Schema, Path]]:
        exact = (_one_of(known),) if known else ()
        found: list[tuple[Automaton | None, Schema, Path]] = []
        for pattern, item in by_pattern.items():
            place = (*path, "patternProperties", pattern)
            never = (*(other for other in by_pattern if other != pattern), *exact)
            of = self._allowed(names, place, (pattern,), never)
            if of is not None and item is not False:
                found.append((of, item, place))
        if extra is not False:
            place = (*path, "additionalProperties")
            of = self._allowed(names, place, (), (*by_pattern, *exact))
            if of is not None:
                found.append((of, extra, place))
        return found


def _one_of(names: set[str]) -> str:
    """Return the pattern of some names."""
    spelt = ("".join(f"\\u{{{ord(char):x}}}" for char in name) for name in sorted(names))
    return f"^(?:{'|'.join(spelt)})$"


def _forbidden(name: str, path: Path) -> SchemaError:
    return SchemaError(path, f"{name!r:.60} is required, and not allowed")
