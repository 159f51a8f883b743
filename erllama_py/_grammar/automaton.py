"""Patterns, and a length, as one deterministic automaton over characters.

Deterministic, and the smallest there is: so the engine follows one way through a text, however
many ways the pattern has (``(a|a)*``, ``(a*)*``), and each state leads to an end.  Several
patterns, some of which must not match, and a length are automata that run side by side.

A pattern becomes a nondeterministic one first (Thompson's construction).  ``^`` and ``$`` are
steps of it that read nothing, and may be taken before the first and behind the last character
only: they may stand anywhere.  Patterns match anywhere in a text, so the beginning reads what
it likes, and so does the end.

All work is counted, and ends in a refusal where it is too much: determinism has its price, and
``a.{20}b`` without anchors would be a million states.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from erllama_py._grammar.charsets import ANY, CharSet, charset
from erllama_py._grammar.regex import (
    AtEnd,
    AtStart,
    Chars,
    Either,
    PatternError,
    Repeat,
    Row,
    Tree,
    parse,
)

__all__ = ("MAX_STATES", "Automaton", "automaton_of")

MAX_STATES: Final = 2000
MAX_WORK: Final = 300_000
"""Steps over single nodes, states or ranges: well under a second."""

_ACCEPT: Final = 0
_NOTHING: Final[frozenset[int]] = frozenset()
_START: Final = -1
"""Stands in the first state only: ``^`` holds there."""


class Automaton(NamedTuple):
    """States from 0, which is the first.  Each of them leads to an end."""

    ways: list[list[tuple[CharSet, int]]]
    """From each state: characters, and where they lead; their sets have nothing in common."""
    ends: list[bool]
    """Whether a text may end in it."""
    work: int
    """What it took to make."""

    def accepts(self, text: str) -> bool:
        """Whether a text is one of its texts."""
        state = 0
        for code in map(ord, text):
            for chars, target in self.ways[state]:
                if any(first <= code <= last for first, last in chars):
                    state = target
                    break
            else:
                return False
        return self.ends[state]


@functools.lru_cache(maxsize=64)
def automaton_of(
    patterns: tuple[str, ...],
    least: int = 0,
    most: int | None = None,
    never: tuple[str, ...] = (),
) -> Automaton | None:
    """Return the automaton of the texts that match all of some patterns.

    :param patterns: one, at least.
    :param least: characters, at least.
    :param most: at most; ``None``: any number.
    :param never: patterns that must not match.
    :returns: ``None`` where no text does.  It is shared: read it only.
    :raises PatternError: a pattern is none, is not supported, or needs too much.
    """
    budget = _Budget()
    parts = []
    for pattern in map(parse, patterns):
        parts += [_Nodes(tree, budget) for tree in (pattern.tree, *pattern.too)]
        parts += [_Nodes(tree, budget, never=True) for tree in pattern.never]
    parts += [_Nodes(parse(one, never=True).tree, budget, never=True) for one in never]
    symbols = _told_apart([part.reads for part in parts], budget)
    states = _States(parts, symbols, least, most, budget)
    steps, ends = _useful(states.steps, states.ends)
    if not steps:
        return None
    steps, ends = _smallest(steps, ends, budget)
    return Automaton(_ways(steps, symbols), ends, budget.spent)


class _Budget:
    def __init__(self) -> None:
        self.spent = 0

    def spend(self, work: int) -> None:
        """Count some work.

        :raises PatternError: it was too much.
        """
        self.spent += work
        if self.spent > MAX_WORK:
            raise _too_large()


def _too_large() -> PatternError:
    return PatternError(
        f"it needs too much: more than {MAX_STATES} states, or too long to find them",
        "anchor it with ^ and $, or use smaller numbers of times and lengths",
    )


class _Nodes:
    """A pattern as nodes that read a character, or none, and lead on."""

    def __init__(self, tree: Tree, budget: _Budget, *, never: bool = False) -> None:
        """Make them; ``never``: of a pattern that must not match."""
        self.never = never
        self._budget = budget
        self.reads: list[CharSet | None] = []
        self._leads: list[tuple[int, ...]] = []
        self._holds: list[type[AtStart | AtEnd] | None] = []
        # What has matched matches whatever follows.
        self._new(ANY, _ACCEPT)
        first = self._new(None, self._tree(tree, _ACCEPT))
        skip = self._new(ANY, first + 1)
        self._leads[skip] = (self._new(None, first, skip),)
        self._first = self._leads[skip][0]
        self._matching = self._leading_on()

    def _new(
        self,
        reads: CharSet | None,
        *leads: int,
        holds: type[AtStart | AtEnd] | None = None,
    ) -> int:
        self._budget.spend(1)
        self.reads.append(reads)
        self._leads.append(leads)
        self._holds.append(holds)
        return len(self.reads) - 1

    def _tree(self, tree: Tree, then: int) -> int:
        """Return the node at which a tree begins that leads to another node."""
        self._budget.spend(1)
        match tree:
            case Chars(chars):
                return self._new(chars, then)
            case AtStart() | AtEnd():
                return self._new(None, then, holds=type(tree))
            case Row(parts):
                for part in reversed(parts):
                    then = self._tree(part, then)
                return then
            case Either(choices):
                return self._new(None, *(self._tree(choice, then) for choice in choices))
            case Repeat(part, least, most):
                following = then
                if most is None:
                    following = self._new(None)
                    self._leads[following] = (self._tree(part, following), then)
                for _ in range((most or least) - least):
                    following = self._new(None, self._tree(part, following), then)
                for _ in range(least):
                    following = self._tree(part, following)
                return following

    def _leading_on(self) -> set[int]:
        """Return the nodes by which a text that has begun may still match."""
        before: list[list[int]] = [[] for _ in self.reads]
        for node, leads in enumerate(self._leads):
            # Not by a ``^``, nor by a set of no characters.
            if self._holds[node] is not AtStart and self.reads[node] != ():
                for lead in leads:
                    before[lead].append(node)
        stack = [node for node, holds in enumerate(self._holds) if holds is AtEnd]
        stack.append(_ACCEPT)
        found = set(stack)
        while stack:
            new = [node for node in before[stack.pop()] if node not in found]
            self._budget.spend(1 + len(new))
            found.update(new)
            stack += new
        return found

    def start(self) -> frozenset[int]:
        """Return the nodes that may read the first character."""
        return self._closed([self._first], at_start=True) | {_START}

    def after(self, reading: Iterable[int]) -> frozenset[int]:
        """Return the nodes that may read next when some have read."""
        return self._closed(lead for node in reading for lead in self._leads[node])

    def ended(self, nodes: frozenset[int]) -> bool:
        """Whether a text that led to some nodes matches."""
        if _ACCEPT in nodes:
            return True
        leads = (lead for node in nodes if node >= 0 for lead in self._at_end(node))
        return _ACCEPT in self._closed(leads, at_start=_START in nodes, at_end=True)

    def _at_end(self, node: int) -> tuple[int, ...]:
        return self._leads[node] if self._holds[node] is AtEnd else ()

    def _closed(
        self, nodes: Iterable[int], *, at_start: bool = False, at_end: bool = False
    ) -> frozenset[int]:
        """Follow what reads nothing; nodes that wait for the end are kept."""
        seen: set[int] = set()
        kept: set[int] = set()
        stack = list(nodes)
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node == _ACCEPT:
                # Nothing can be lost any more, so the others make no difference.
                return frozenset([_ACCEPT])
            holds = self._holds[node]
            if self.reads[node] is not None or (holds is AtEnd and not at_end):
                if node in self._matching:
                    kept.add(node)
            elif holds is not AtStart or at_start:
                stack += self._leads[node]
        self._budget.spend(len(seen))
        return frozenset(kept)


class _Symbols(NamedTuple):
    """Characters that no set tells apart, as numbers."""

    chars: list[CharSet]
    of: dict[CharSet, list[int]]


def _told_apart(reads: list[list[CharSet | None]], budget: _Budget) -> _Symbols:
    """Return the symbols of all sets that are read."""
    sets = list(dict.fromkeys(one for part in reads for one in part if one))
    turns: dict[int, int] = {}
    for bit, one in enumerate(sets):
        for first, last in one:
            turns[first] = turns.get(first, 0) ^ (1 << bit)
            turns[last + 1] = turns.get(last + 1, 0) ^ (1 << bit)
    found: dict[int, list[tuple[int, int]]] = {}
    inside, start = 0, 0
    budget.spend(len(turns) * (1 + len(sets) // 64))
    for at in sorted(turns):
        if inside:
            found.setdefault(inside, []).append((start, at - 1))
        inside, start = inside ^ turns[at], at
    of: dict[CharSet, list[int]] = {one: [] for one in sets}
    for number, which in enumerate(found):
        for bit in _bits(which):
            budget.spend(1)
            of[sets[bit]].append(number)
    return _Symbols([charset(ranges) for ranges in found.values()], of)


def _bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


_State = tuple[tuple[frozenset[int], ...], int]
"""The nodes of each pattern, and how many characters were read, as far as that matters."""


class _States:
    """All states that can be reached, made one by one."""

    def __init__(
        self,
        parts: Sequence[_Nodes],
        symbols: _Symbols,
        least: int,
        most: int | None,
        budget: _Budget,
    ) -> None:
        self._parts, self._symbols, self._budget = parts, symbols, budget
        self._known: list[dict[frozenset[int], dict[int, frozenset[int]]]] = [{} for _ in parts]
        self.steps: list[dict[int, int]] = []
        self.ends: list[bool] = []
        numbers: dict[_State, int] = {}
        waiting: list[_State] = [(tuple(part.start() for part in parts), 0)]
        numbers[waiting[0]] = 0
        for nodes, length in waiting:
            reached: dict[int, int] = {}
            count = length + 1 if most is not None else min(length + 1, least)
            self.steps.append(reached)
            self.ends.append(
                length >= least
                and all(
                    part.ended(those) != part.never
                    for part, those in zip(parts, nodes, strict=True)
                )
            )
            if most is not None and count > most:
                continue
            for symbol, target in self._targets(nodes):
                state = (target, count)
                if state not in numbers:
                    numbers[state] = len(waiting)
                    waiting.append(state)
                    # Those that lead nowhere are not known yet, so there may be some more.
                    if len(waiting) > 4 * MAX_STATES:
                        raise _too_large()
                reached[symbol] = numbers[state]

    def _targets(
        self, nodes: tuple[frozenset[int], ...]
    ) -> Iterator[tuple[int, tuple[frozenset[int], ...]]]:
        each = [self._after(at, those) for at, those in enumerate(nodes)]
        # The first is never one that must not match.
        for symbol in each[0]:
            self._budget.spend(len(each))
            target = tuple(targets.get(symbol, _NOTHING) for targets in each)
            if all(map(self._may_match, self._parts, target)):
                yield symbol, target

    def _may_match(self, part: _Nodes, nodes: frozenset[int]) -> bool:
        """Whether a text that led a pattern to some nodes may still be as it should."""
        return _ACCEPT not in nodes if part.never else bool(nodes)

    def _after(self, at: int, nodes: frozenset[int]) -> dict[int, frozenset[int]]:
        """Return where each symbol leads one of the patterns; nowhere is left out."""
        found = self._known[at].get(nodes)
        if found is None:
            part = self._parts[at]
            reading: dict[int, list[int]] = {}
            for node in sorted(nodes - {_START}):
                if chars := part.reads[node]:
                    self._budget.spend(len(self._symbols.of[chars]))
                    for symbol in self._symbols.of[chars]:
                        reading.setdefault(symbol, []).append(node)
            same: dict[tuple[int, ...], frozenset[int]] = {}
            found = {}
            for symbol, readers in sorted(reading.items()):
                key = tuple(readers)
                if key not in same:
                    same[key] = part.after(readers)
                if same[key]:
                    found[symbol] = same[key]
            self._known[at][nodes] = found
        return found


def _useful(
    steps: list[dict[int, int]], ends: list[bool]
) -> tuple[list[dict[int, int]], list[bool]]:
    """Return the states from which an end can be reached; the first one is 0, if any is left."""
    before: list[list[int]] = [[] for _ in steps]
    for state, reached in enumerate(steps):
        for target in set(reached.values()):
            before[target].append(state)
    stack = [state for state, end in enumerate(ends) if end]
    found = set(stack)
    while stack:
        for state in before[stack.pop()]:
            if state not in found:
                found.add(state)
                stack.append(state)
    if 0 not in found:
        return [], []
    number = {state: at for at, state in enumerate(sorted(found))}
    return (
        [{s: number[t] for s, t in steps[state].items() if t in number} for state in number],
        [ends[state] for state in number],
    )


def _smallest(
    steps: list[dict[int, int]], ends: list[bool], budget: _Budget
) -> tuple[list[dict[int, int]], list[bool]]:
    """Return the automaton with as few states as can be (Hopcroft's algorithm)."""
    before: list[list[tuple[int, int]]] = [[] for _ in steps]
    for state, reached in enumerate(steps):
        for symbol, target in reached.items():
            before[target].append((symbol, state))
    of = [int(end) for end in ends]
    blocks = [{state for state, end in enumerate(of) if end == block} for block in (0, 1)]
    waiting = {0, 1}
    while waiting:
        leading: dict[int, list[int]] = {}
        for state in blocks[waiting.pop()]:
            budget.spend(1 + len(before[state]))
            for symbol, source in before[state]:
                leading.setdefault(symbol, []).append(source)
        for sources in leading.values():
            touched: dict[int, set[int]] = {}
            for source in sources:
                touched.setdefault(of[source], set()).add(source)
            for block, part in touched.items():
                if len(part) == len(blocks[block]):
                    continue
                blocks[block] -= part
                new = len(blocks)
                blocks.append(part)
                for state in part:
                    of[state] = new
                fewer = new if len(part) <= len(blocks[block]) else block
                waiting.add(new if block in waiting else fewer)
    # Numbered as they are reached, so that the same texts have the same automaton.
    number = {of[0]: 0}
    order = [0]
    merged: list[dict[int, int]] = []
    for state in order:
        for target in steps[state].values():
            if of[target] not in number:
                number[of[target]] = len(order)
                order.append(target)
        merged.append({symbol: number[of[target]] for symbol, target in steps[state].items()})
    if len(order) > MAX_STATES:
        raise _too_large()
    return merged, [ends[state] for state in order]


def _ways(steps: list[dict[int, int]], symbols: _Symbols) -> list[list[tuple[CharSet, int]]]:
    """Return the ways of each state, with characters for symbols."""
    ways: list[list[tuple[CharSet, int]]] = []
    for reached in steps:
        leading: dict[int, list[tuple[int, int]]] = {}
        for symbol, target in reached.items():
            leading.setdefault(target, []).extend(symbols.chars[symbol])
        ways.append([(charset(ranges), target) for target, ranges in leading.items()])
    return ways
