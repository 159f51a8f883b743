"""What a packed part looks like, learnt from samples of it.

The engine writes a head that names the sequence, and for each half of the cache (one,
or two with a sliding window) a table with a record for each cell, then K and V:

    magic, sequence | streams, cells, cell records ..., V order, layers, K rows, V rows | ...

A record is position, number of sequences (1), sequence; three 32-bit numbers.  In a
whole row of a recurrent model there is one state instead of cells, and in a hybrid
model's one after them:

    states (1), position of the last token, number of sequences (0), order, layers ...

We need to know where these tables are, for two reasons:

* The engine believes them.  A damaged position is stored as it stands, and a negative
  one can never be removed again: every call that removes cells counts from 0.  Another
  number of states is an assertion.  So a part's tables are compared with what they must
  be before the engine sees them.
* They name the scratch sequence, whose number depends on the number of slots.  Written
  as 0 the same tokens give the same bytes in every context; restoring ignores it.  What
  somebody else packed may name another, but only one.

With a sliding window the engine leaves out of the second half what the window has passed:
a part longer than that has fewer cells there, the last ones.

Offsets are found by looking for the records, and sizes by difference, so that a layout
with other heads is learnt as well.  One with other records (some models add two
coordinates) has no tables that we find; its parts then go unchecked.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ("PartLayout", "Sample", "learn")

_RECORD = struct.Struct("<iIi")
_RECORD_TYPE = np.dtype([("pos", "<i4"), ("sequences", "<u4"), ("sequence", "<i4")])
_STATE = struct.Struct("<IiI")
_HEAD = struct.Struct("<Ii")  # magic, sequence


class Sample(NamedTuple):
    """A part as the engine wrote it: tokens [start, end) through sequence ``seq``."""

    start: int
    end: int
    seq: int
    data: bytes


class PartLayout:
    """Sizes and cell tables of packed parts.

    :param head: bytes of a part besides its tokens; ``per_token``: bytes of a token.
    :param tables: for each table its offset, and what that grows by for each token.
    :param states: the same for each record of a state.
    :param window: most tokens that the second half has cells for; 0 for all.
    """

    def __init__(
        self,
        head: int,
        per_token: int,
        tables: Sequence[tuple[int, int]],
        states: Sequence[tuple[int, int]] = (),
        window: int = 0,
    ) -> None:
        self._head = head
        self._per_token = per_token
        self._tables = tuple(tables)
        self._states = tuple(states)
        self._named = bool(self._tables or self._states)
        self._window = window

    def size(self, tokens: int) -> int:
        """Return the exact size of a part of so many tokens; 0 where it is not known."""
        gone = self._gone(tokens)
        if not gone:
            return self._head + self._per_token * tokens
        if len(self._tables) != 2:
            return 0
        # What comes before the second table is the first half's, and grows with all tokens.
        second = self._per_token - self._tables[1][1]
        return self._head + self._per_token * tokens - second * gone

    def _gone(self, tokens: int) -> int:
        """Return how many of so many tokens the second half has no cells for."""
        return max(0, tokens - self._window) if self._window else 0

    def make_canonical(self, part: memoryview, tokens: int) -> None:
        """Write 0 for the sequence the part was packed through."""
        if self._named:
            _HEAD.pack_into(part, 0, _HEAD.unpack_from(part)[0], 0)
        for table in self._records(part, tokens):
            table["sequence"] = 0

    def fits(self, part: memoryview, start: int, end: int) -> bool:
        """Whether the part's records are those of tokens [start, end)."""
        tokens = end - start
        due = np.zeros(tokens, _RECORD_TYPE)
        due["pos"] = np.arange(start, end)
        due["sequences"] = 1
        due["sequence"] = _HEAD.unpack_from(part)[1] if self._named else 0
        return all(
            _same(table, due[tokens - len(table) :]) for table in self._records(part, tokens)
        ) and all(
            _STATE.unpack_from(part, offset + growth * tokens) == _state_record(end)
            for offset, growth in self._states
        )

    def _records(self, part: memoryview, tokens: int) -> list[Any]:
        gone = (0, self._gone(tokens))
        return [
            np.frombuffer(part, _RECORD_TYPE, tokens - gone[at > 0], offset + growth * tokens)
            for at, (offset, growth) in enumerate(self._tables)
        ]


def learn(samples: Sequence[Sample], window: int = 0) -> PartLayout | None:
    """Learn the layout from parts of at least two lengths, none longer than the window.

    Returns None where a size is not a head plus so much a token.
    """
    short, long = min(samples, key=_length), max(samples, key=_length)
    further = _length(long) - _length(short)
    per_token = (len(long.data) - len(short.data)) // further
    head = len(short.data) - per_token * _length(short)
    tables: list[tuple[int, int]] = []
    states: list[tuple[int, int]] = []
    if _named(short):
        tables = _places(short, long, _cell_table)
        states = _places(short, long, lambda sample: _STATE.pack(*_state_record(sample.end)))
    layout = PartLayout(head, per_token, tables, states, window)
    for sample in samples:
        if layout.size(_length(sample)) != len(sample.data):
            return None
        part = memoryview(bytearray(sample.data))
        layout.make_canonical(part, _length(sample))
        if not layout.fits(part, sample.start, sample.end):
            return PartLayout(head, per_token, (), window=window)
    return layout


def _same(table: Any, due: Any) -> bool:
    """Compare records in any order: theirs is that of the cells, which may have been reused."""
    wanted = due.tobytes()
    return bool(table.tobytes() == wanted or np.sort(table, order="pos").tobytes() == wanted)


def _length(sample: Sample) -> int:
    return sample.end - sample.start


def _named(sample: Sample) -> bool:
    return bool(_HEAD.unpack_from(sample.data)[1] == sample.seq)


def _cell_table(sample: Sample) -> bytes:
    return b"".join(_RECORD.pack(pos, 1, sample.seq) for pos in range(sample.start, sample.end))


def _state_record(end: int) -> tuple[int, int, int]:
    return 1, end - 1, 0


def _places(short: Sample, long: Sample, what: Callable[[Sample], bytes]) -> list[tuple[int, int]]:
    """Return the offset and the growth a token of each place of ``what`` in the samples."""
    found = [_find(sample.data, what(sample)) for sample in (short, long)]
    if len(found[0]) != len(found[1]):
        return []
    places = []
    for low, high in zip(*found, strict=True):
        growth = (high - low) // (_length(long) - _length(short))
        places.append((low - growth * _length(short), growth))
    return places


def _find(data: bytes, what: bytes) -> list[int]:
    offsets = []
    at = data.find(what)
    while at >= 0:
        offsets.append(at)
        at = data.find(what, at + 1)
    return offsets
