"""Whether to restore or to compute: the quicker of the two, by this model's own timings.

A restore usually wins by a factor of a hundred.  It loses on a slow disk, a network file
system, or a machine that swaps, and a cache that makes replies slower is worse than none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from erllama_py._cache.trie import Payload

__all__ = ("Gate",)

_WEIGHT: Final = 0.25
"""Of the newest sample in a running mean."""

_RETRY: Final = 32
"""One in so many restores that would lose is tried all the same: disks recover."""

_FEWEST_TOKENS: Final = 32
"""Shorter prefills say more about the step than about its tokens."""


class Gate:
    """One model's timings.  Until both sides are measured, everything is restored."""

    def __init__(self) -> None:
        self.prefill_ns: float | None = None
        """Of a token."""
        self.restore_ns: dict[str, float] = {}
        """Of a byte, by kind of tier."""
        self.refused = 0
        """Restores that were cut short or left out."""

    def prefilled(self, tokens: int, took_ns: int) -> None:
        """Note a prefill that had the engine to itself."""
        if tokens >= _FEWEST_TOKENS:
            self.prefill_ns = _mean(self.prefill_ns, took_ns / tokens)

    def restored(self, kinds: Iterable[str], nbytes: int, took_ns: int) -> None:
        """Note a restore; one from several tiers tells nothing about either."""
        only = set(kinds)
        if len(only) == 1 and nbytes and took_ns:
            (kind,) = only
            self.restore_ns[kind] = _mean(self.restore_ns.get(kind), took_ns / nbytes)

    def worth(self, payloads: Sequence[Payload]) -> int:
        """Return how many payloads, from the front, to restore for the quickest prefill.

        A refusal is counted, and one in so many is not kept, to try again.
        """
        best = self.quicker(payloads)
        if best < len(payloads):
            self.refused += 1
            if self.refused % _RETRY == 0:
                return len(payloads)
        return best

    def quicker(self, payloads: Sequence[Payload]) -> int:
        """Return the same for who only asks."""
        if self.prefill_ns is None or not self.restore_ns:
            return len(payloads)
        best, most_saved, restoring = 0, 0.0, 0.0
        for count, payload in enumerate(payloads, 1):
            restoring += payload.nbytes * self.restore_ns.get(payload.tier.kind, 0.0)
            saved = payload.node.end * self.prefill_ns - restoring
            if saved > most_saved:
                best, most_saved = count, saved
        return best


def _mean(before: float | None, sample: float) -> float:
    return sample if before is None else before + _WEIGHT * (sample - before)
