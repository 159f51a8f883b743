"""Ranges of numbers as digits.

Whole numbers are written with at most 16 digits.  Other numbers between bounds are written
without an exponent and with at most 15 digits in all, so that what a reader makes of them
(a 64-bit float) is on the same side of a bound as what is written.
"""

from __future__ import annotations

import decimal
import math
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple

__all__ = ("Bound", "integers", "reals")

INTEGER_DIGITS: Final = 16
PLACES: Final = 6
"""Decimal places of a bound; one with more is moved inwards."""
_ALL_PLACES: Final = 8
_FRACTIONAL: Final = 10**7
"""Larger numbers between bounds are whole."""

_ANY_FRACTION: Final = f'("." [0-9]{{1,{PLACES}}})?'


class Bound(NamedTuple):
    """A bound and whether it is itself outside."""

    value: int | float
    exclusive: bool


def integers(low: Bound | None, high: Bound | None) -> str | None:
    """Return the expression of the whole numbers between two bounds; ``None``: there is none."""
    least = None if low is None else _first_whole(low)
    most = None if high is None else -_first_whole(Bound(-high.value, high.exclusive))
    return _any_of(_signed(least, most))


def _first_whole(low: Bound) -> int:
    value = Fraction(low.value)
    first = math.ceil(value)
    return first + 1 if low.exclusive and first == value else first


def _signed(least: int | None, most: int | None) -> list[str]:
    """Return alternatives for least to most."""
    found: list[str] = []
    if least is None or least < 0:
        nearest = 1 if most is None or most >= 0 else -most
        farthest = None if least is None else -least
        found += [f'"-" ({part})' for part in _naturals(nearest, farthest)]
    if most is None or most >= 0:
        found += _naturals(max(0, least or 0), most)
    return found


def _naturals(least: int, most: int | None) -> list[str]:
    """Return alternatives for the natural numbers from least to most."""
    top = 10**INTEGER_DIGITS - 1 if most is None else min(most, 10**INTEGER_DIGITS - 1)
    found: list[str] = []
    while least <= top:
        digits = len(str(least))
        end = min(top, 10**digits - 1)
        if least == 10 ** (digits - 1) and digits > 1 and top == 10 ** len(str(top)) - 1:
            # All that are left, of any length.
            return [*found, f"[1-9] [0-9]{{{digits - 1},{len(str(top)) - 1}}}"]
        found.append(_between(str(least), str(end)))
        least = end + 1
    return found


def _between(low: str, high: str) -> str:
    """Return the expression of the numbers between two of the same number of digits."""
    if not low:
        return ""
    if low == "0" * len(low) and high == "9" * len(high):
        return _digits(len(low))
    if low[0] == high[0]:
        return f'"{low[0]}" {_between(low[1:], high[1:])}'.rstrip()
    rest = len(low) - 1
    parts = []
    first, last = int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        parts.append(f'"{first}" {_between(low[1:], "9" * rest)}'.rstrip())
        first += 1
    if high[1:] != "9" * rest:
        parts.append(f'"{last}" {_between("0" * rest, high[1:])}'.rstrip())
        last -= 1
    if first <= last:
        parts.append(f"[{first}-{last}] {_digits(rest)}".rstrip())
    return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"


def _digits(count: int) -> str:
    return "" if not count else "[0-9]" if count == 1 else f"[0-9]{{{count}}}"


def reals(low: Bound | None, high: Bound | None) -> str | None:
    """Return the expression of the numbers between two bounds; ``None``: there is none."""
    least = None if low is None else _rounded(low, decimal.ROUND_CEILING)
    most = None if high is None else _rounded(high, decimal.ROUND_FLOOR)
    zero = _Edge(Decimal(0), open=False)
    found = []
    if least is None or least.at < 0:
        nearest = zero if most is None or most.at >= 0 else most.negated
        found += [f'"-" ({part})' for part in _magnitudes(nearest, least and least.negated)]
    if most is None or most.at >= 0:
        found += _magnitudes(least if least is not None and least.at >= 0 else zero, most)
    return _any_of(found)


class _Edge(NamedTuple):
    at: Decimal
    open: bool

    @property
    def negated(self) -> _Edge:
        return _Edge(-self.at, self.open)

    @property
    def whole(self) -> int:
        return int(self.at)

    @property
    def places(self) -> str:
        """The digits behind the point, without zeros at the end."""
        return f"{self.at % 1:f}".partition(".")[2].rstrip("0")


def _rounded(bound: Bound, mode: str) -> _Edge:
    exact = Decimal(repr(bound.value))
    with decimal.localcontext(prec=400):
        moved = exact.quantize(Decimal(1).scaleb(-PLACES), mode)
    return _Edge(moved, bound.exclusive and moved == exact)


def _magnitudes(low: _Edge, high: _Edge | None) -> list[str]:
    """Return alternatives for the numbers from 0 between two edges."""
    if high is not None and (high.at < low.at or (high.at == low.at and (low.open or high.open))):
        return []
    found: list[str | None] = []
    same = high is not None and high.whole == low.whole
    found.append(_at(low.whole, low, high if same else None))
    if not same:
        last = None if high is None else high.whole - 1
        small = min(_FRACTIONAL, _FRACTIONAL if last is None else last)
        found += [f"{part} {_ANY_FRACTION}" for part in _naturals(low.whole + 1, small)]
        found += _naturals(max(low.whole, _FRACTIONAL) + 1, last)
        if high is not None:
            found.append(_at(high.whole, None, high))
    return [part for part in found if part is not None]


def _at(whole: int, low: _Edge | None, high: _Edge | None) -> str | None:
    """Return the numbers with this whole part on the right side of edges that have it, too."""
    if len(str(whole)) > INTEGER_DIGITS:
        return None
    below = low.places if low else ""
    above = high.places if high else ""
    size = max(len(below), len(above))
    edges = _Digits(
        below.ljust(size, "0") if low else None,
        above.ljust(size, "0") if high else None,
        size,
        low_open=bool(low and low.open),
        high_open=bool(high and high.open),
    )
    alone = edges.may_end(0, low=low is not None, high=high is not None)
    fraction = None
    if whole <= _FRACTIONAL:
        fraction = edges.rest(0, low=low is not None, high=high is not None, least=1)
    if fraction is None:
        return f'"{whole}"' if alone else None
    return f'"{whole}" ("." ({fraction}))' + ("?" if alone else "")


class _Digits(NamedTuple):
    """The digits behind the point, between those of two edges.

    ``low`` and ``high`` of the methods say whether the digits so far are the edge's own.
    """

    below: str | None
    above: str | None
    size: int
    low_open: bool
    high_open: bool

    def may_end(self, at: int, *, low: bool, high: bool) -> bool:
        """Whether the number may end before digit ``at``."""
        if low and (self.below or "")[at:].strip("0"):
            return False
        if low and self.low_open:
            return False
        return not (high and self.high_open and not (self.above or "")[at:].strip("0"))

    def rest(self, at: int, *, low: bool, high: bool, least: int) -> str | None:
        """Return the expression of the digits from ``at`` on; ``None``: none is possible.

        :param least: 1 where there must be one.
        """
        if not low and not high:
            return f"[0-9]{{{least},{_ALL_PLACES - at}}}"
        if at == self.size:
            return self._end(low=low, high=high)
        first = int(self.below[at]) if low and self.below else 0
        last = int(self.above[at]) if high and self.above else 9
        parts = []
        for digit in sorted({first, last}):
            own = {"low": low and digit == first, "high": high and digit == last}
            if not any(own.values()):
                continue
            rest = self.rest(at + 1, **own, least=1)
            ends = self.may_end(at + 1, **own)
            if rest is not None:
                parts.append(f'"{digit}" ({rest})' + ("?" if ends else ""))
            elif ends:
                parts.append(f'"{digit}"')
        start, stop = first + bool(low), last - bool(high)
        if start <= stop:
            parts.append(f"[{start}-{stop}] {self.rest(at + 1, low=False, high=False, least=0)}")
        return _any_of(parts)

    def _end(self, *, low: bool, high: bool) -> str | None:
        """Return what may follow the edge's own digits, at least one."""
        places = _ALL_PLACES - self.size
        if high:
            closed = not self.high_open and not (low and self.low_open)
            return f'"0"{{1,{places}}}' if closed else None
        if self.low_open:
            return f'"0"{{0,{(places - 1) // 2}}} [1-9] [0-9]{{0,{places // 2}}}'
        return f"[0-9]{{1,{places}}}"


def _any_of(parts: list[str]) -> str | None:
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else " | ".join(parts)
