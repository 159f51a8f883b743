"""This process's control groups, of versions 1 and 2, and those above them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ("control_groups",)


def control_groups(controller: str, proc: Path, cgroups: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folders that may limit us, ours before those above it, with their version.

    Nothing elsewhere than on Linux, or without ``/proc``.

    :param controller: ``cpu`` or ``memory``; version 2 has them all in one tree.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, version = cgroups, 2
        elif controller in controllers.split(","):
            top, version = cgroups / controller, 1
        else:
            continue
        # Inside a container the path may not exist below the mount, which then shows
        # the container's own group: the walk up ends there.
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            yield folder, version
            if folder == top:
                break
