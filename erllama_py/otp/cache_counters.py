"""``erllama_cache_counters``: the 20 counters by slot number, from 1."""

from __future__ import annotations

from typing import Any

from erllama_py._cache.counters import GAUGES, NAMES
from erllama_py.errors import BadCall
from erllama_py.otp._index import index
from erllama_py.types import Atom

__all__ = ("add", "get", "incr", "init", "reset", "snapshot")


def init() -> Atom:
    """Do nothing: the counters are there.

    :return: ``ok``.
    """
    return Atom("ok")


def incr(slot: int, amount: int = 1) -> Atom:
    """Add to a counter; see :func:`add`."""
    return add(slot, amount)


def add(slot: int, amount: int) -> Atom:
    """Add to a counter.

    The ``bytes_*`` (13 to 15) tell what the tiers hold and are left as they are.

    :return: ``ok``.
    :raises BadCall: ``badarg``: no such slot, or not a number from 0 below 2^63.
    """
    name = _name(slot)
    if type(amount) is not int or not 0 <= amount < 1 << 63:
        raise BadCall("badarg", f"cannot count by {amount!r}")
    if name not in GAUGES:
        index().source.counters.add(name, amount)
    return Atom("ok")


def get(slot: int) -> int:
    """Return one counter.

    :raises BadCall: ``badarg``: no such slot.
    """
    return snapshot()[_name(slot)]


def snapshot() -> dict[str, int]:
    """Return all by name."""
    return index().source.counters.snapshot()


def reset() -> Atom:
    """Set what counts events to zero.

    :return: ``ok``.
    """
    index().source.counters.reset()
    return Atom("ok")


def _name(slot: Any) -> str:
    if type(slot) is not int or not 1 <= slot <= len(NAMES):
        raise BadCall("badarg", f"no counter {slot!r}: slots are 1 to {len(NAMES)}")
    return NAMES[slot - 1]
