"""LoRA adapters as a model process knows them: sets with a number.

Which files they are, and who attached them: ``adapters``, on the core's side.
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ("NO_ADAPTERS", "Adapter", "AdapterSet")


class Adapter(msgspec.Struct, frozen=True, array_like=True):
    """A LoRA adapter as the engine is to apply it."""

    number: int
    """Names it for as long as the model process lives."""
    path: bytes
    scale: float


class AdapterSet(msgspec.Struct, frozen=True, array_like=True):
    """The adapters that requests compute with.  Sets are equal if their numbers are."""

    number: int
    adapters: tuple[Adapter, ...] = ()


NO_ADAPTERS: Final = AdapterSet(0)
