"""What steps and restores take on this machine, as running averages."""

from __future__ import annotations

__all__ = ("Measures",)

_WEIGHT = 0.2
"""Of the newest value: a busy neighbour passes, a changed thread count stays."""

_RESTORE_NS_PER_BYTE = 0.1
"""Until one was measured: 1024 tokens of a 135M model are 23.6 MB and take 2.2 ms."""


class Measures:
    """Running averages; 0 or a guess until there is a value."""

    def __init__(self) -> None:
        self.decode_ns = 0.0
        """One step in which every sequence decoded one token."""
        self.restore_ns_per_byte = _RESTORE_NS_PER_BYTE
        self._restored = False

    def decoded(self, took_ns: int) -> None:
        """Take in a decoding step."""
        self.decode_ns = _mixed(self.decode_ns, took_ns) if self.decode_ns else took_ns

    def restored(self, took_ns: int, nbytes: int) -> None:
        """Take in a restore."""
        if nbytes:
            value = took_ns / nbytes
            before = self.restore_ns_per_byte
            self.restore_ns_per_byte = _mixed(before, value) if self._restored else value
            self._restored = True

    def worth_parking(self, nbytes: float) -> bool:
        """Whether restoring so much again costs more than half a decoding step."""
        return nbytes * self.restore_ns_per_byte > self.decode_ns / 2 > 0


def _mixed(before: float, value: float) -> float:
    return (1 - _WEIGHT) * before + _WEIGHT * value
