"""How many cores this process may use, and thread counts from that.

A wrong count costs more than any cache gains: one busy core beside two spinning ggml
threads slows decoding by a factor of four (measured: 132 to 36 tokens/s), and eight
threads under a two-core quota by forty.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from erllama_py._machine.groups import control_groups

__all__ = ("default_threads", "usable_cores")


def usable_cores(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the cores that affinity and the control groups' quotas allow, at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    quota = _quota(proc, cgroups)
    if quota is not None:
        cores = min(cores, max(1, math.floor(quota)))
    return max(1, cores)


def default_threads() -> tuple[int, int]:
    """Return (decode, batch) threads: one core is left to everybody else in decode.

    Decoding leaves a core because the caller, the core process and the front end want
    one at every token; prefill runs long between tokens and takes them all.  The engine
    counts a step of several streams as a batch: there the tokens of all come at once.
    """
    cores = usable_cores()
    return max(1, cores - 1), cores


def _quota(proc: Path, cgroups: Path) -> float | None:
    """Return the cores that the tightest quota allows, of our group and those above it."""
    read = {1: _quota_v1, 2: _quota_v2}
    groups = control_groups("cpu", proc, cgroups)
    found = [quota for folder, version in groups if (quota := read[version](folder)) is not None]
    return min(found, default=None)


def _quota_v2(folder: Path) -> float | None:
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        return limit / int((folder / "cpu.cfs_period_us").read_text()) if limit > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
