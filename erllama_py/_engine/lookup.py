"""Prompt lookup: what came after these tokens the last time.  Pure.

Text that is edited, quoted or summed up says again what stands before it.  The last few
tokens are looked for earlier in the context; what followed them there is the draft.

The index has one entry for every run of ``size`` tokens: where the last of them ended.
It grows with the context, a bounded part at a time, so that a long prompt holds up no
step.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

__all__ = ("Lookup",)

PORTION = 4096
"""Tokens indexed at once: about a millisecond."""


class Lookup:
    """The tokens of a context, and where each run of them was last.

    :param size: tokens that must be the same; from 1.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._tokens = array("I")
        self._ends: dict[bytes, int] = {}
        self._indexed = size - 1
        """Runs that end here or before are in the index."""

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """The context goes on with these."""
        self._tokens.extend(tokens)

    def guess(self, count: int) -> list[int]:
        """Return up to ``count`` tokens that may follow; none while still indexing."""
        tokens, size, length = self._tokens, self._size, len(self._tokens)
        # The run at the very end is what is looked for: it would only find itself.
        last = min(length - 1, self._indexed + PORTION)
        for end in range(self._indexed + 1, last + 1):
            self._ends[tokens[end - size : end].tobytes()] = end
        self._indexed = max(self._indexed, last)
        if self._indexed < length - 1 or length < size:
            return []
        start = self._ends.get(tokens[length - size :].tobytes())
        if start is None:
            return []
        found = tokens[start : start + count].tolist()
        # What repeats itself right up to the end goes on with its own beginning.
        period = length - start
        while len(found) < count:
            found.append(found[len(found) - period])
        return found
