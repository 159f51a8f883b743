"""What the index knows of a tier: its name, its kind, and how it compares with others.

The bytes are somebody else's: shared memory (:mod:`erllama_py._cache.ram`) or files
(:mod:`erllama_py._cache.filetier`).
"""

from __future__ import annotations

from typing import Final

__all__ = ("KINDS", "RAM", "Tier")

KINDS: Final = ("ram", "ram_file", "disk")
"""Fastest first."""


class Tier:
    """A place for payloads, compared by identity.

    :param kind: one of :data:`KINDS`.
    :param name: of its server, as load options name it.
    :param ours: whether what is in it may be evicted; another live process's may not.
    """

    __slots__ = ("kind", "name", "ours", "rank")

    def __init__(self, kind: str, name: str, *, ours: bool = True) -> None:
        self.kind = kind
        self.name = name
        self.ours = ours
        self.rank = KINDS.index(kind)

    def __repr__(self) -> str:
        return f"<tier {self.name}>"


RAM: Final = Tier("ram", "erllama_cache_ram")
"""The shared memory of this process's core."""
