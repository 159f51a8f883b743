"""The cache a core opens, and which of its tiers a model is saved to."""

from __future__ import annotations

import logging
from pathlib import Path

from erllama_py._cache.filetier import FileTier
from erllama_py._cache.store import Cache
from erllama_py._machine.environment import CacheSettings, Environment
from erllama_py._machine.quotas import default_disk_quota, default_quota
from erllama_py.config import LoadConfig, invalid

__all__ = ("DEFAULT_DISK", "DEFAULT_RAM_FILE", "home_of", "open_cache", "start_tier")

DEFAULT_DISK = "erllama_cache_disk"
DEFAULT_RAM_FILE = "erllama_cache_ramfile"

_log = logging.getLogger(__name__)


def open_cache(settings: CacheSettings) -> Cache:
    """Open a core's cache with its default tiers.

    A directory that cannot be used is a warning, and the core works without it: a full or
    read-only home must keep nobody from a reply.
    """
    cache = Cache(
        default_quota() if settings.ram is None else settings.ram,
        save=settings.save == "soon",
        demote=settings.save != "off",
        promote=settings.promote,
    )
    if settings.ram_file:
        _add(cache, "ram_file", DEFAULT_RAM_FILE, settings.ram_file_dir, settings.ram_file)
    disk = default_disk_quota(settings.disk_dir) if settings.disk is None else settings.disk
    if disk:
        cache.home = _add(cache, "disk", DEFAULT_DISK, settings.disk_dir, disk)
    return cache


def _add(cache: Cache, kind: str, name: str, path: Path, quota: int) -> FileTier | None:
    try:
        return cache.add_tier(kind, name, path, quota)
    except OSError as error:
        _log.warning("nothing is cached in %s: %s", path, error)
        return None


def start_tier(cache: Cache, kind: str, name: str, path: Path) -> FileTier:
    """Use a directory as the tier a caller named; the one of that name if it is there.

    :raises OSError: the directory cannot be made.
    """
    known = cache.tier(name)
    if known is not None:
        return known
    settings = Environment().cache()
    if kind == "ram_file":
        quota = settings.ram_file
    else:
        quota = default_disk_quota(path) if settings.disk is None else settings.disk
    memory = default_quota() if settings.ram is None else settings.ram
    return cache.add_tier(kind, name, path, quota or memory)


def home_of(cache: Cache, config: LoadConfig) -> FileTier | None:
    """Return the file tier a model is saved to; None where it is saved nowhere.

    :raises ErllamaError: ``{invalid, tier_srv, Name}``: it names no tier of that kind.
    """
    if config.tier == "ram":
        return cache.home
    default = DEFAULT_DISK if config.tier == "disk" else DEFAULT_RAM_FILE
    name = config.tier_srv or default
    tier = cache.tier(name)
    if tier is None or tier.kind != config.tier:
        raise invalid(
            "tier_srv",
            name,
            f"the name of a {config.tier} tier that was started, or leave tier out",
        )
    return tier
