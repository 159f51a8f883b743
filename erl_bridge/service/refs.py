"""The references that stand for the core's: streams of Python, pins, reservations.

A reference carries the number of what it stands for, so nothing has to be kept for those
that are never given back.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

from erl_bridge.etf import Reference
from erl_bridge.runtime import Node
from erllama_py.types import Ref

__all__ = ("Refs",)

_LOW_BITS: Final = 18
_LOW: Final = (1 << _LOW_BITS) - 1
_WORD: Final = 0xFFFFFFFF


class Refs:
    """Both ways, for one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        # Neither one of a former life nor one that the node made itself is ours.
        self._salt = secrets.randbits(32)

    def reference_of(self, ref: Ref) -> Reference:
        """Return the reference that stands for a ref: always the same one."""
        fresh = self._node.make_ref()
        words = (ref.serial & _LOW, (ref.serial >> _LOW_BITS) & _WORD, self._salt)
        return Reference(fresh.node, fresh.creation, words)

    def ref_of(self, term: Any) -> Ref | None:
        """Return what a term stands for, if it is one of ours."""
        match term:
            case Reference(node=node, ids=(low, high, salt)) if salt == self._salt:
                ours = node.name == self._node.name
                return Ref(high << _LOW_BITS | low) if ours else None
        return None
