"""How many cores this process may use, and thread counts from that.

A wrong count costs more than any cache gains: one busy core beside two spinning ggml
threads slows decoding by a factor of four (measured: 132 to 36 tokens/s), and eight
threads under a two-core quota by forty.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ("default_threads", "usable_cores")

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def usable_cores() -> int:
    """Return the cores that affinity and the cgroup's quota allow, at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    quota = _quota()
    if quota is not None:
        cores = min(cores, max(1, math.floor(quota)))
    return max(1, cores)


def default_threads() -> tuple[int, int]:
    """Return (decode, batch) threads: one core is left to everybody else in decode.

    Decoding leaves a core because the caller, the core process and the front end want
    one at every token; prefill runs long between tokens and takes them all.
    """
    cores = usable_cores()
    return max(1, cores - 1), cores


def _quota() -> float | None:
    try:
        limit, period = _CGROUP_V2.read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit_us = int((_CGROUP_V1 / "cpu.cfs_quota_us").read_text())
        period_us = int((_CGROUP_V1 / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return limit_us / period_us if limit_us > 0 else None
