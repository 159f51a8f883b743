"""How many of the context's cells are taken, with shared ones counted once.  Pure.

The engine shares a cell between sequences, and tells nobody how many it has left.  So
each slot is kept as *runs*: cells that were filled one after the other.  A sequence that
shares another's head has the same runs up to there, and since a run is always shared
from its beginning, its cells are those of whoever has most of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ("Cells",)


class Run(NamedTuple):
    """Cells [start, end) of a slot, filled together."""

    number: int
    start: int
    end: int


class Cells:
    """The cells of all slots."""

    def __init__(self) -> None:
        self._runs: dict[int, list[Run]] = {}
        self._own: dict[int, int] = {}
        """The run that a slot may still lengthen, which nobody shares to its end."""
        self._numbers = itertools.count()

    def length(self, slot: int) -> int:
        """Return the number of tokens of a slot."""
        runs = self._runs.get(slot)
        return runs[-1].end if runs else 0

    def resize(self, slot: int, length: int) -> None:
        """The slot has so many tokens now: it was cut, or has grown."""
        before = self.length(slot)
        if length < before:
            self._runs[slot] = _cut(self._runs[slot], length)
            self._own.pop(slot, None)
        elif length > before:
            runs = self._runs.setdefault(slot, [])
            if slot in self._own:
                runs[-1] = runs[-1]._replace(end=length)
            else:
                self._own[slot] = next(self._numbers)
                runs.append(Run(self._own[slot], before, length))

    def share(self, source: int, target: int, length: int) -> None:
        """The target is the source's first ``length`` tokens now."""
        self._runs[target] = _cut(self._runs[source], length)
        self._own.pop(target, None)

    def used(self, cuts: Mapping[int, int] | None = None) -> int:
        """Return how many cells are taken.

        :param cuts: count as if these slots were cut to so many tokens.
        """
        ends: dict[int, tuple[int, int]] = {}
        for slot, runs in self._runs.items():
            for run in _cut(runs, cuts[slot]) if cuts and slot in cuts else runs:
                end = ends.get(run.number, (0, 0))[1]
                ends[run.number] = (run.start, max(end, run.end))
        return sum(end - start for start, end in ends.values())


def _cut(runs: list[Run], length: int) -> list[Run]:
    return [run._replace(end=min(run.end, length)) for run in runs if run.start < length]
