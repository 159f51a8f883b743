"""How much memory this process may use, and what the cache takes of that and of a disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from erllama_py._machine.groups import control_groups

__all__ = ("default_disk_quota", "default_quota", "usable_memory")

SHARE: Final = 4
"""The default quota is one part in four of the memory."""

LIMIT: Final = 4 << 30
"""The most anyone gets without asking: beyond it, people take a cache for a leak."""

DISK_SHARE: Final = 10
DISK_LIMIT: Final = 8 << 30

_LIMITS: Final = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}
"""Files of a control group, by version."""


def default_quota() -> int:
    """Return the default byte quota of the RAM tier."""
    return min(usable_memory() // SHARE, LIMIT)


def default_disk_quota(path: Path) -> int:
    """Return the default byte quota of a disk tier in ``path``, which need not be there.

    A tenth of the file system, at most 8 GiB: a few hundred thousand tokens of a small
    model, ten thousand of a large one.
    """
    for folder in (path, *path.parents):
        try:
            return min(shutil.disk_usage(folder).total // DISK_SHARE, DISK_LIMIT)
        except OSError:
            continue
    return 0


def usable_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes this process may use: the tightest of machine and control groups."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder, version in control_groups("memory", proc, cgroups):
        limits.extend(_numbers(folder / name for name in _LIMITS[version]))
    return min(limits)


def _numbers(files: Iterable[Path]) -> list[int]:
    numbers = []
    for file in files:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdigit():  # "max" is no limit
            numbers.append(int(text))
    return numbers
