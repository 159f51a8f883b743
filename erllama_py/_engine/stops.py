"""Stop sequences over a stream of text fragments, with hold-back.  Pure.

Fragments are bytes and may split characters and stop strings anywhere.  While no
entry has matched, the last M - 1 bytes are held back, M being the longest entry's
length: they may be the beginning of a match.

Which match wins is a recorded choice where the documentation and the original part:
the leftmost position first, and at one position the order of the caller's list.
Matching restarts from the held bytes, so an entry completed by an earlier fragment
wins over one that began earlier but completes later.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ("StopScanner",)


class StopScanner:
    """Feed fragments, get back what may be shown.

    :param entries: stop strings as bytes; empty ones are ignored.
    """

    def __init__(self, entries: Iterable[bytes]) -> None:
        self._entries = tuple(entry for entry in entries if entry)
        self._keep = max(map(len, self._entries), default=1) - 1
        self._held = b""
        self.matched: bytes | None = None
        """The entry that fired, or ``None``."""

    @property
    def active(self) -> bool:
        """Whether there is anything to scan for."""
        return bool(self._entries)

    def feed(self, fragment: bytes) -> bytes:
        """Take the next fragment and return the bytes that are safe to show.

        On a match the text before it is returned, the rest is dropped and
        :attr:`matched` is set.
        """
        if not self._entries:
            return fragment
        text = self._held + fragment
        position, entry = self._first_match(text)
        if entry is not None:
            self.matched, self._held = entry, b""
            return text[:position]
        cut = max(0, len(text) - self._keep)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> bytes:
        """Return what is still held back, at the end of a stream without a match."""
        held, self._held = self._held, b""
        return held

    def _first_match(self, text: bytes) -> tuple[int, bytes | None]:
        best, winner = len(text), None
        for entry in self._entries:
            position = text.find(entry)
            # Strictly less: at one position the earlier entry of the list stays.
            if 0 <= position < best:
                best, winner = position, entry
        return best, winner


def cut_at(text: bytes, entry: bytes | None) -> bytes:
    """Cut a whole reply at the first occurrence of the entry that fired.

    The bulk text can differ from the fragments' concatenation, so the entry may not
    occur in it; then nothing is cut.
    """
    position = text.find(entry) if entry else -1
    return text if position < 0 else text[:position]
