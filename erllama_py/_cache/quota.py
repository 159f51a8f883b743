"""How much memory this process may use, and the tiers' shares of memory and disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ("default_disk_quota", "default_quota", "usable_memory")

SHARE: Final = 4
"""The default quota is one part in four of the memory."""

LIMIT: Final = 4 << 30
"""The most anyone gets without asking: beyond it, people take a cache for a leak."""

DISK_SHARE: Final = 10
DISK_LIMIT: Final = 8 << 30


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
    limits.extend(_group_limits(proc, cgroups))
    return min(limits)


def _group_limits(proc: Path, cgroups: Path) -> list[int]:
    """Read the limits of this process's groups and all groups above them, v1 and v2."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []  # not Linux, or no /proc
    found: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = cgroups, ["memory.max", "memory.high"]
        elif "memory" in controllers.split(","):
            top, names = cgroups / "memory", ["memory.limit_in_bytes"]
        else:
            continue
        # Inside a container the path may not exist below the mount, which then shows
        # the container's own group: the walk up ends there.
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            found.extend(_numbers(folder / name for name in names))
            if folder == top:
                break
    return found


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
