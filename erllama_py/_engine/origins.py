"""Which computation made what is in the context's sequences.

By slot, as runs: from this position on the tokens have this origin (see
:mod:`erllama_py._cache.origin`).  Runs follow what is done to a slot, as
:class:`~erllama_py._engine.cells.Cells` do.  A sequence in which something has no origin,
or does not stand behind what it was computed behind, is no *stream*, and nothing that is
computed in it has an origin.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from erllama_py._cache.origin import Origin

__all__ = ("Origins", "new_origin")


class _Run(NamedTuple):
    start: int
    number: int
    """0 where it is unknown."""


class Origins:
    """The origins of all slots."""

    def __init__(self) -> None:
        self._runs: dict[int, list[_Run]] = {}

    def clear(self, slot: int) -> None:
        """The slot is empty."""
        self._runs.pop(slot, None)

    def cut(self, slot: int, length: int) -> None:
        """The slot has at most its first ``length`` tokens now."""
        runs = self._runs.get(slot, [])
        if runs and runs[-1].start > length:
            # Whoever computes on there says so; until then nobody knows.
            self._runs[slot] = [*_upto(runs, length), _Run(length, 0)]

    def share(self, source: int, target: int, length: int) -> None:
        """The target is the source's first ``length`` tokens now."""
        self._runs[target] = _upto(self._runs.get(source, []), length)

    def put(self, slot: int, start: int, origin: Origin) -> None:
        """A stored payload was put behind a slot's first ``start`` tokens."""
        runs = self._runs[slot] = _upto(self._runs.get(slot, []), start)
        fits = not start or 0 != self._at(slot, start - 1) == origin.before
        number = origin.own if fits else 0
        if not runs or runs[-1].number != number:
            runs.append(_Run(start, number))

    def begin(self, slot: int, length: int) -> None:
        """Whatever follows the slot's first ``length`` tokens is computed from now on."""
        number = new_origin() if self.is_stream(slot, length) else 0
        self._runs[slot] = [*_upto(self._runs.get(slot, []), length), _Run(length, number)]

    def of(self, slot: int, start: int, end: int) -> Origin:
        """Return the origin of positions [start, end) of a slot."""
        return Origin(self._at(slot, end - 1), self._at(slot, start - 1) if start else 0)

    def is_stream(self, slot: int, length: int) -> bool:
        """Whether a slot's first ``length`` tokens are what one stream computed."""
        runs = _upto(self._runs.get(slot, []), length)
        return not length or (bool(runs) and all(run.number for run in runs))

    def _at(self, slot: int, position: int) -> int:
        for run in reversed(self._runs.get(slot, [])):
            if run.start <= position:
                return run.number
        return 0


def new_origin() -> int:
    """Return a number of 64 bits that nothing else has."""
    return int.from_bytes(os.urandom(8), "little") or 1


def _upto(runs: list[_Run], length: int) -> list[_Run]:
    return [run for run in runs if run.start < length]
