"""The original's modules besides ``erllama`` that peers may call.

Their functions take any terms, check them themselves, and are answered from worker
threads: a sampler may run a tool, an eviction takes a while.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from erl_bridge.runtime import Undef
from erllama_py.errors import BadCall
from erllama_py.otp import pressure, scheduler

__all__ = ("MODULES",)


def _sample(source: Any) -> tuple[int, int]:
    """Read a source; a sampler that nobody offered is a module that is not there."""
    try:
        return pressure.sample(source)
    except BadCall as error:
        match error.reason, source:
            case "undef", ("module", str(name)):
                raise Undef(name, "sample", []) from error
        raise


MODULES: Final[Mapping[str, Mapping[tuple[str, int], Callable[..., Any]]]] = {
    "erllama_pressure": {
        ("available_sources", 0): pressure.available_sources,
        ("sample", 1): _sample,
    },
    "erllama_scheduler": {
        ("enable", 1): scheduler.enable,
        ("force_check", 0): scheduler.force_check,
        ("sample", 0): scheduler.sample,
        ("set_pressure_source", 1): scheduler.set_pressure_source,
        ("set_thresholds", 2): scheduler.set_thresholds,
        ("status", 0): scheduler.status,
        ("validate_config", 1): scheduler.validate_config,
    },
}
"""Module, then (function, arity)."""
