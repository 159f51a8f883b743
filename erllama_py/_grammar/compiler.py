"""From a schema to the text of its grammar.

Each place of the schema becomes a rule, made once, which rules elsewhere use by its name: so
references to what holds them are rules that use themselves.
"""

from __future__ import annotations

from typing import Any, Final

from erllama_py._grammar.ambiguity import MAX_WAYS, Node, too_many_ways
from erllama_py._grammar.automaton import Automaton
from erllama_py._grammar.branches import Branch, Branches, json_text
from erllama_py._grammar.merging import Document, Schema
from erllama_py._grammar.names import Names
from erllama_py._grammar.numbers import Bound, integers, reals
from erllama_py._grammar.patterns import FORMATS, Patterns
from erllama_py._grammar.reading import Path, SchemaError, read
from erllama_py._grammar.spelling import string_rules
from erllama_py._grammar.text import JSON_RULES, literals, other_names, quoted

__all__ = ("grammar_of",)

MAX_REPEATS: Final = 1000
"""Of one expression: the engine writes each of them out."""
MAX_ALL_REPEATS: Final = 20_000
MAX_TEXT: Final = 512 << 10
_LISTED: Final = 2000

_OPENS: Final = {"object": "{", "array": "[", "string": '"', "integer": "0", "number": "0"}


def grammar_of(given: Any) -> bytes:
    """Return the grammar (GBNF, start symbol ``root``) of a JSON Schema.

    :param given: a map, JSON text, or ``True`` for any JSON.
    :raises SchemaError: it is no schema, asks what a grammar cannot promise, or too much.
    """
    schema = read(given)
    if schema is False:
        raise SchemaError((), "nothing satisfies false")
    try:
        return _Compiler(schema).text().encode()
    except RecursionError:
        raise SchemaError((), "its references lead too deep", "use a smaller schema") from None


class _Compiler:
    def __init__(self, root: Schema) -> None:
        self._root = root
        self._document = Document(root)
        self._patterns = Patterns()
        self._branches = Branches(self._document, self._patterns)
        self._names = Names(self._document, self._branches, self._patterns)
        self._rules: dict[str, str] = {}
        # Any JSON: one way to follow, but it begins like everything else.
        self._nodes: dict[str, Node] = {"value": Node()}
        self._paths: dict[str, Path] = {}
        self._places: dict[int, str] = {}
        """Rules by what they are of: the identity of a list of branches, or of a branch."""
        self._repeats = MAX_ALL_REPEATS
        self._size = 0

    def text(self) -> str:
        """Return the whole grammar."""
        root = self._rule_of(self._root, ())
        if crowded := too_many_ways(list(self._nodes.values())):
            name = next(name for name, node in self._nodes.items() if node is crowded)
            raise SchemaError(
                self._paths.get(name, ()),
                "its alternatives begin alike, so there are too many ways to follow at once",
                "let each begin with a required property that has another const",
            )
        rules = {"root": root, **JSON_RULES, **self._rules}
        return "".join(f"{name} ::= {rule}\n" for name, rule in rules.items())

    # -- rules ------------------------------------------------------------------------------

    def _new(self, path: Path) -> str:
        """Return the name of a rule to be written."""
        name = f"r{len(self._nodes)}"
        self._nodes[name] = Node()
        self._paths[name] = path
        return name

    def _write(self, name: str, text: str) -> str:
        self._size += len(text)
        if self._size > MAX_TEXT:
            raise SchemaError((), "its grammar would be too large", "use a smaller schema")
        self._rules[name] = text
        return name

    def _uses(self, name: str, *parts: str) -> None:
        """Note that a rule has others among its parts; JSON's own need no note."""
        self._nodes[name].parts += [self._nodes[part] for part in parts if part in self._nodes]

    def _rule_of(self, schema: Schema, path: Path) -> str:
        """Return the name of the rule of a place."""
        branches = self._branches.of(schema, path)
        if len(branches) == 1:
            return self._branch(branches[0])
        if id(branches) in self._places:
            return self._places[id(branches)]
        name = self._places[id(branches)] = self._new(self._document.path(schema, path))
        node = self._nodes[name]
        listed = [branch for branch in branches if branch.kind == "const"]
        others = [branch for branch in branches if branch.kind != "const"]
        parts = [self._branch(branch) for branch in others]
        self._uses(name, *parts)
        node.own = len(branches)
        node.alike = [[self._nodes[part] for part in group] for group in self._alike(others, parts)]
        if listed:
            parts.append(self._listed([v for one in listed for v in one.values], name))
        return self._write(name, " | ".join(parts))

    def _alike(self, branches: list[Branch], parts: list[str]) -> list[list[str]]:
        """Return the groups of alternatives that begin alike, and go on so."""
        groups = []
        for kind in ("object", "array"):
            group = [
                (branch, part)
                for branch, part in zip(branches, parts, strict=True)
                if branch.kind in (kind, "any")
            ]
            heads = [self._head(branch) for branch, _ in group]
            if len(group) > 1 and not all(
                _told_apart(heads[one], heads[other])
                for one in range(len(heads))
                for other in range(one)
            ):
                groups.append([part for _, part in group])
        return groups

    def _head(self, branch: Branch) -> list[tuple[str, set[str]]]:
        """Return the properties an object certainly begins with, and the texts they may be."""
        head: list[tuple[str, set[str]]] = []
        if branch.kind != "object":
            return head
        required = branch.schema.get("required", ())
        for name, schema in branch.schema.get("properties", {}).items():
            if name not in required or isinstance(schema, bool):
                break
            values = self._branches.constants(schema, (*branch.path, "properties", name))
            if values is None:
                return [*head, (name, set())]
            head.append((name, set(map(json_text, values.values))))
        return head

    def _branch(self, branch: Branch) -> str:
        match branch.kind:
            case "any":
                return "value"
            case "integer" | "number" | "string" if self._plain(branch):
                return branch.kind
        found = self._places.get(id(branch))
        if found is None:
            found = self._places[id(branch)] = self._new(branch.path)
            make = {
                "const": self._const,
                "object": self._object,
                "array": self._array,
                "string": self._string,
            }.get(branch.kind, self._number)
            self._write(found, make(branch, found))
        return found

    def _plain(self, branch: Branch) -> bool:
        """Whether a branch says no more than its type."""
        known = FORMATS if branch.kind == "string" else ()
        return all(
            word == "type" or (word == "format" and value not in known)
            for word, value in branch.schema.items()
            if word in _SPOKEN[branch.kind]
        )

    # -- values -----------------------------------------------------------------------------

    def _const(self, branch: Branch, name: str) -> str:
        return self._listed(branch.values, name)

    def _listed(self, values: list[Any], name: str) -> str:
        texts = list(dict.fromkeys(map(json_text, values)))
        if len(texts) > _LISTED:
            raise SchemaError(self._paths[name], f"it lists more than {_LISTED} values")
        return literals(texts)

    def _number(self, branch: Branch, name: str) -> str:
        schema = branch.schema
        low = _tightest(schema, "minimum", "exclusiveMinimum", greatest=True)
        high = _tightest(schema, "maximum", "exclusiveMaximum", greatest=False)
        whole = branch.kind == "integer"
        step = schema.get("multipleOf")
        if step is not None:
            if step != 1:
                raise SchemaError(
                    (*branch.path, "multipleOf"),
                    f"multiples of {step} are not supported",
                    "list the values with enum",
                )
            whole = True
        if low is None and high is None:
            return "integer" if whole else "number"
        found = integers(low, high) if whole else reals(low, high)
        if found is None:
            kind = "whole number" if whole else "number of few places"
            raise SchemaError(self._paths[name], f"no {kind} is between its bounds")
        return found

    def _string(self, branch: Branch, name: str) -> str:
        schema = branch.schema
        least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
        if most is not None and most < least:
            raise SchemaError(branch.path, "maxLength is below minLength")
        automaton = self._patterns.automaton(schema, branch.path)
        if automaton is not None:
            return self._texts(automaton, name, (*branch.path, "pattern"))
        self._nodes[name].own = 2
        return rf'"\"" {self._characters(least, most, branch.path)} "\""'

    def _texts(self, automaton: Automaton, name: str, path: Path) -> str:
        """Return the expression of an automaton's texts, the rule ``name``."""
        self._spend(len(automaton.ways), path)
        rules, ways = string_rules(name, automaton)
        if ways > MAX_WAYS:
            raise SchemaError(
                path,
                f"more than {MAX_WAYS} ways to go on from one place",
                "use fewer alternatives, or list texts with enum",
            )
        self._nodes[name].own = ways
        whole = rules.pop(name)
        for part, text in rules.items():
            self._write(part, text)
        return whole

    def _characters(self, least: int, most: int | None, path: Path) -> str:
        if most is None or most <= MAX_REPEATS:
            return self._repeated("char", least, None if most is None else int(most), path)
        # Whole hundreds, and up to 99: at most 99 characters less than allowed.
        head = self._repeated("char", least, least, path)
        hundred = f"({self._repeated('char', 100, 100, path)})"
        blocks = min((int(most) - least) // 100 - 1, MAX_REPEATS)
        rest = self._repeated("char", 0, 99, path)
        return f"{head} {self._repeated(hundred, 0, blocks, path)} {rest}".strip()

    def _repeated(self, item: str, least: int, most: int | None, path: Path) -> str:
        """Return an expression a number of times; at most 0 times is nothing."""
        count = most if most is not None else least
        if count > MAX_REPEATS:
            raise SchemaError(
                path, f"{count} times the same", f"at most {MAX_REPEATS} are possible"
            )
        self._spend(count, path)
        if most is None:
            return f"{item}*" if least == 0 else f"{item}{{{least},}}"
        if most == 0:
            return ""
        return f"{item}{{{least}}}" if least == most else f"{item}{{{least},{most}}}"

    def _spend(self, count: int, path: Path) -> None:
        """Count what the engine writes out."""
        self._repeats -= count
        if self._repeats < 0:
            raise SchemaError(path, f"more than {MAX_ALL_REPEATS} repetitions in all")

    # -- lists --------------------------------------------------------------------------------

    def _array(self, branch: Branch, name: str) -> str:
        schema, path = branch.schema, branch.path
        first, rest = schema.get("prefixItems", []), schema.get("items")
        if isinstance(rest, list):  # what draft 7 calls it
            if "prefixItems" in schema:
                raise SchemaError((*path, "items"), "items must be a schema beside prefixItems")
            first, rest = rest, schema.get("additionalItems")
        least = int(schema.get("minItems", 0))
        most = None if "maxItems" not in schema else int(schema["maxItems"])
        if rest is None and first and least <= len(first):
            most = len(first) if most is None else min(most, len(first))
        if rest is False:
            most = len(first) if most is None else min(most, len(first))
        if schema.get("uniqueItems") and (most is None or most > 1):
            raise SchemaError(
                (*path, "uniqueItems"), "that all items differ cannot be promised", "leave it out"
            )
        if most is not None and most < least:
            raise SchemaError(path, f"it has at least {least} items and at most {most}")
        fixed = [
            self._rule_of(item, (*path, "prefixItems", str(at)))
            for at, item in enumerate(first[:most])
        ]
        more = None if most is None else most - len(fixed)
        item = "" if more == 0 else self._rule_of(True if rest is None else rest, (*path, "items"))
        self._uses(name, *fixed, item)
        self._nodes[name].own = 3
        if not fixed:
            return self._items(item, least, more, path)
        # All that are described come, required or not.
        parts = ' "," ws '.join(fixed)
        tail = self._repeated(f'("," ws {item})', max(0, least - len(fixed)), more, path)
        return f'"[" ws {parts} {tail} ws "]"'

    def _items(self, item: str, least: int, most: int | None, path: Path) -> str:
        if most == 0:
            return '"[" ws "]"'
        more = self._repeated(
            f'("," ws {item})', max(0, least - 1), None if most is None else most - 1, path
        )
        inner = f"{item} {more} ws"
        return f'"[" ws {inner} "]"' if least else f'"[" ws ({inner})? "]"'

    # -- objects --------------------------------------------------------------------------------

    def _object(self, branch: Branch, name: str) -> str:
        schema, path = branch.schema, branch.path
        required = set(schema.get("required", ()))
        members = self._names.members(schema, path)
        pairs = []
        for key, item in members.described.items():
            value = self._rule_of(item, (*path, "properties", key))
            pairs.append((f'{quoted(json_text(key))} ":" gap {value}', key in required))
            self._uses(name, value)
        self._check_counts(schema, pairs, extra=bool(members.others), path=path)
        ways, others = 1, []
        for names, item, place in members.others:
            value = self._rule_of(item, place)
            self._uses(name, value)
            if names is None:
                key_rule = other_names(members.known) if members.known else "string"
            else:
                key_rule = self._new(place)
                self._write(key_rule, self._texts(names, key_rule, place))
                ways += self._nodes[key_rule].own
            others.append(f'{key_rule} ":" gap {value}')
        other = self._write(self._new(path), " | ".join(others)) if others else None
        optional = sum(not needed for _, needed in pairs)
        if optional + 2 > MAX_WAYS:
            raise SchemaError(
                path, f"more than {MAX_WAYS - 2} optional properties", "make some of them required"
            )
        self._nodes[name].own = optional + 1 + ways
        return self._members(pairs, other, path, empty=not schema.get("minProperties"))

    def _check_counts(
        self, schema: dict[str, Any], pairs: list[tuple[str, bool]], *, extra: bool, path: Path
    ) -> None:
        """Refuse numbers of properties that are not so anyway.

        A name could come twice, and would count once.
        """
        needed = sum(needed for _, needed in pairs)
        least, most = schema.get("minProperties", 0), schema.get("maxProperties")
        if least > needed and not (least == 1 and extra and not pairs):
            raise SchemaError(
                (*path, "minProperties"), "it cannot be promised", "list the names in required"
            )
        if most is not None and not (most >= len(pairs) and not extra):
            raise SchemaError(
                (*path, "maxProperties"),
                "it cannot be promised",
                "name the properties, and leave maxProperties out",
            )

    def _members(
        self, pairs: list[tuple[str, bool]], other: str | None, path: Path, *, empty: bool
    ) -> str:
        """Return the object of these pairs in their order, others behind them.

        ``rest`` is what may follow a pair, ``start`` what may be the first one: at each of
        them, any of the optional ones up to the next that is required.
        """
        rest = "" if other is None else f'("," ws {other})*'
        start = None if other is None else f"{other} {rest}"
        for pair, needed in reversed(pairs):
            member = self._write(self._new(path), pair)
            begun = f"{member} {rest}".strip()
            start = begun if needed or start is None else f"{begun} | {start}"
            empty = empty and not needed
            follow = f'"," ws {member}'
            text = f"{follow} {rest}" if needed else f"({follow})? {rest}"
            rest = self._write(self._new(path), text.strip())
            start = self._write(self._new(path), start)
        if start is None:
            return '"{" ws "}"'
        return f'"{{" ws ({start} ws)? "}}"' if empty else f'"{{" ws {start} ws "}}"'


_SPOKEN: Final = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    **dict.fromkeys(
        ("integer", "number"),
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    ),
}


def _told_apart(one: list[tuple[str, set[str]]], other: list[tuple[str, set[str]]]) -> bool:
    """Whether two objects differ before anything comes that could be long."""
    for (name, texts), (another, others) in zip(one, other, strict=False):
        if name != another:
            return True
        if not texts or not others:
            return False
        if not texts & others:
            return True
        if texts != others or len(texts) > 1:
            return False
    return False


def _tightest(schema: dict[str, Any], word: str, exclusive: str, *, greatest: bool) -> Bound | None:
    bounds = []
    if word in schema:
        bounds.append(Bound(schema[word], exclusive=False))
    if exclusive in schema:
        bounds.append(Bound(schema[exclusive], exclusive=True))
    if not bounds:
        return None
    sign = 1 if greatest else -1
    return max(bounds, key=lambda bound: (sign * bound.value, bound.exclusive))
