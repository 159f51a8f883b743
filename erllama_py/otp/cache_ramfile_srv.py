"""``erllama_cache_ramfile_srv``: tier servers over directories in memory (tmpfs).

The same as :mod:`erllama_py.otp.cache_disk_srv`, but that rows are of tier ``ram_file``.
"""

from __future__ import annotations

from typing import Any

from erllama_py.otp import cache_disk_srv
from erllama_py.otp._servers import TierPid
from erllama_py.otp.cache_disk_srv import delete, dir, load, save, scan, stop  # noqa: A004
from erllama_py.types import Atom

__all__ = ("delete", "dir", "load", "save", "scan", "start_link", "stop")


def start_link(name: str, where: Any) -> TierPid:
    """Start a server of tier ``ram_file``; see :func:`.cache_disk_srv.start_link`."""
    return cache_disk_srv.start_link(name, Atom("ram_file"), where)
