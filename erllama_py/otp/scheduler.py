"""``erllama_scheduler``: evicts from the cache when memory runs short.

Off unless enabled here or by ``ERLLAMA_SCHEDULER``.  While it is enabled it samples a
source every ``interval_ms``; at or above the high watermark it has the cache free
``(high - low) * total`` bytes.  Models and their live KV are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erllama_py._engine import pressure
from erllama_py._engine.registry import core
from erllama_py.types import Atom

__all__ = (
    "enable",
    "force_check",
    "sample",
    "set_pressure_source",
    "set_thresholds",
    "status",
    "validate_config",
)


def enable(on: bool) -> Atom:
    """Start polling, afresh where it runs already, or stop.

    When this returns after ``enable(False)``, nothing is evicted any more.

    :return: ``ok``.
    :raises BadCall: ``function_clause``: neither true nor false.
    """
    return core().pressure.enable(on)


def set_pressure_source(source: Any) -> Atom:
    """Read another source from the next sample on.

    :param source: ``noop``, ``system``, ``nvidia_smi``, ``("module", m)`` or a callable,
        as in :func:`erllama_py.otp.pressure.sample`.  It is not checked: one that cannot
        be read is logged once, and reads (0, 1), which is no pressure.
    :return: ``ok``.
    """
    return core().pressure.set_pressure_source(source)


def set_thresholds(high: float, low: float) -> Atom:
    """Set the watermarks, as parts of the total.

    :return: ``ok``.
    :raises ErllamaError: ``bad_thresholds``, unless 0 <= low < high <= 1.
    """
    return core().pressure.set_thresholds(high, low)


def sample() -> tuple[int, int]:
    """Read the source now and evict nothing; works while disabled.

    :return: (used, total) bytes.
    """
    return core().pressure.sample()


def force_check() -> tuple[Any, ...]:
    """Sample now, and evict if need be.

    :return: ``("evicted", rows, bytes)``, or ``("skipped", why)`` with ``disabled``,
        ``below_watermark`` or ``nothing_to_evict``.
    """
    return core().pressure.force_check()


def status() -> dict[str, Any]:
    """Return the settings, and what was seen last.

    ======================  =============================================================
    key                     value
    ======================  =============================================================
    ``enabled``             whether it polls
    ``pressure_source``     a callable as ``("module", name)``
    ``interval_ms``         between two checks
    ``high_watermark``      part of the total from which on it evicts
    ``low_watermark``       part of the total it aims at
    ``min_evict_bytes``     least it asks for
    ``evict_tiers``         a list of tiers, or ``all``
    ``last_used``           bytes at the latest sample; 0 before the first
    ``last_total``          bytes at the latest sample; 1 before the first
    ``last_ratio``          of these two
    ``last_evicted_bytes``  freed by the latest eviction that freed any; 0 before it
    ``sampled_at``          monotonic ns of the latest sample, or ``None``
    ``last_evicted_at``     monotonic ns of that eviction, or ``None``
    ======================  =============================================================
    """
    return core().pressure.status()


def validate_config(config: Mapping[str, Any]) -> Atom:
    """Check the watermarks and the interval of a config map.

    :return: ``ok``.
    :raises ErllamaError: ``{invalid_config, {watermarks | interval_ms, Text}}``.
    :raises BadCall: ``{badmap, Config}``.
    """
    return pressure.validate_config(config)
