"""A tier whose payloads are in files: a directory of containers, and its place in the index.

What is in files of another live process can be read, but neither counted on nor evicted:
it is a tier of its own, *borrowed*, beside ours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from erllama_py._cache.directory import Directory
from erllama_py._cache.tier import Tier

__all__ = ("FileTier",)


class FileTier(Tier):
    """A directory of containers as a tier.

    :param kind: ``ram_file`` for a directory on tmpfs, or ``disk``.
    :raises OSError: the directory cannot be made.
    """

    __slots__ = ("borrowed", "directory", "path", "quota")

    def __init__(
        self, kind: str, name: str, path: Path, quota: int, numbers: Callable[[], int], **sizes: int
    ) -> None:
        super().__init__(kind, name)
        self.path = path
        self.quota = quota
        self.directory = Directory(path, quota, numbers=numbers, **sizes)
        self.borrowed = Tier(kind, name, ours=False)
