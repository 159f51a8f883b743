"""Which rows of several tokens have the bits of single steps.

A step of several tokens is another computation than several steps: other kernels, other
cuts of the attention, and so other last bits, which change what is likeliest where two
tokens are nearly equally likely.  Worse, they stay: the KV of such a step is what every
later token looks at.  Whether bits differ depends on the weights' type, the processor,
the threads and the number of cells, so it is not assumed but tried: tokens that were just
decoded one by one are computed again as one row, on a copy of their sequence, and the
logits of every position are compared bit for bit.

What was found holds for a *shape*: 256 cells of the context, which is how the engine
rounds them, how many sequences decode, and the adapters.  A row of fewer tokens has the
bits of one of more.  A size that failed is not tried again with more cells; with fewer,
or with other adapters or more company, it may be exact all the same.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from erllama_py._backends.base import GUESSED_TOKENS, Backend, BackendError, Row

__all__ = ("CELLS", "Proofs", "Seen", "Shape")

CELLS = 256
"""The engine rounds the cells that it looks at to a multiple of this."""
SMALLEST = 4
"""Fewer tokens at once save too little to be tried."""


class Shape(NamedTuple):
    """What decides, besides the number of tokens, how a step is computed."""

    cells: int
    """Cells in use, in units of :data:`CELLS`."""
    decoding: int
    """Sequences that decode in one step."""
    adapters: int
    """The number of the adapter set."""


class Seen:
    """The last tokens that a sequence decoded one by one, with digests of their logits."""

    def __init__(self) -> None:
        self.shape: Shape | None = None
        self.end = 0
        self.digests: list[bytes] = []

    def add(self, shape: Shape, pos: int, digest: bytes) -> None:
        """Note a step of one token at ``pos``; what does not join on is forgotten."""
        if shape != self.shape or pos != self.end:
            self.shape, self.digests = shape, []
        self.end = pos + 1
        self.digests = [*self.digests[1 - GUESSED_TOKENS :], digest]


class Proofs:
    """What is known of a context."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._sizes: dict[Shape, int] = {}
        self._largest = min(GUESSED_TOKENS, backend.info.n_ubatch, backend.info.n_batch)
        self._failed: list[tuple[Shape, int]] = []
        """Sizes that were found to have other bits."""

    def size(self, shape: Shape) -> int | None:
        """Return how many tokens a step may have; 0 for none, ``None`` where unknown."""
        return self._sizes.get(shape, 0 if self.hopeless(shape) else None)

    def hopeless(self, shape: Shape) -> bool:
        """Whether no size is left to be tried."""
        return self._limit(shape) < SMALLEST

    def ready(self, seen: Seen, used: int) -> bool:
        """Whether enough was seen to be tried, and there is room for it in the same shape.

        :param used: cells in use.
        """
        if seen.shape is None or self.size(seen.shape) is not None:
            return False
        limit = self._limit(seen.shape)
        room = (seen.shape.cells + 1) * CELLS - used
        return len(seen.digests) >= limit <= room

    def attempt(self, seen: Seen, slot: int, ledger: array[int]) -> None:
        """Compute what was seen again, as one row.  It is a step."""
        shape = seen.shape
        assert shape is not None
        size = self._limit(shape)
        start = seen.end - size
        try:
            row = Row(slot, start, ledger[start : seen.end], logits=True, every=True)
            same = self._backend.rehearse(row) == seen.digests[-size:]
        except BackendError:  # no cells for it, or a window that has lost what it needs
            self._sizes[shape] = 0
            return
        if same:
            self._sizes[shape] = size
        else:
            self._failed.append((shape, size))

    def _limit(self, shape: Shape) -> int:
        """Return the largest size that did not fail, for a shape that was not tried."""
        failed = [
            size
            for other, size in self._failed
            if other.cells <= shape.cells and other[1:] == shape[1:]
        ]
        return min(failed) // 2 if failed else self._largest
