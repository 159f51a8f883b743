"""Which bytes of a fixed run are granted, and which are free.

First fit with coalescing: grants are nearly all of one size (a block), and low addresses
first lets the last segments or files fall empty.  Not thread-safe.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

__all__ = ("Room",)


class Room:
    """The map of what is granted in ``size`` bytes."""

    __slots__ = ("free", "granted", "holes", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = size
        self.granted: dict[int, int] = {}
        self.holes: list[tuple[int, int]] = [(0, size)] if size else []
        """(offset, size) in address order, never touching each other."""

    @property
    def idle(self) -> bool:
        """Whether nothing in it is granted."""
        return not self.granted

    def take(self, size: int) -> int | None:
        """Grant ``size`` bytes; return their offset, or None where no hole is enough."""
        if self.free < size:
            return None
        for at, (offset, room) in enumerate(self.holes):
            if room >= size:
                if room == size:
                    del self.holes[at]
                else:
                    self.holes[at] = (offset + size, room - size)
                self.granted[offset] = size
                self.free -= size
                return offset
        return None

    def claim(self, offset: int, size: int) -> bool:
        """Grant exactly [offset, offset + size); False where not all of it is free."""
        at = bisect_right(self.holes, offset, key=lambda hole: hole[0]) - 1
        if at < 0:
            return False
        start, room = self.holes[at]
        before, after = offset - start, start + room - offset - size
        if after < 0:
            return False
        pieces = ((start, before), (offset + size, after))
        self.holes[at : at + 1] = [piece for piece in pieces if piece[1]]
        self.granted[offset] = size
        self.free -= size
        return True

    def give_back(self, offset: int, size: int) -> None:
        """Make [offset, offset + size) a hole again, joined with its neighbours."""
        self.free += size
        at = bisect_left(self.holes, (offset, 0))
        if at < len(self.holes) and self.holes[at][0] == offset + size:
            size += self.holes.pop(at)[1]
        if at and sum(self.holes[at - 1]) == offset:
            offset, before = self.holes[at - 1]
            self.holes[at - 1] = (offset, before + size)
        else:
            self.holes.insert(at, (offset, size))
