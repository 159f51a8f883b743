"""What peers may cost a node."""

from __future__ import annotations

from dataclasses import dataclass, field

from erl_bridge.etf import Limits
from erl_bridge.net.limits import NetLimits

__all__ = ("NodeLimits",)


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """Bounds of the wire, of terms, and of what runs."""

    net: NetLimits = field(default_factory=NetLimits)
    terms: Limits = field(default_factory=Limits)
    max_requests_per_peer: int = 1024
    """Calls of one node that run at the same time; further ones fail with system_limit."""
