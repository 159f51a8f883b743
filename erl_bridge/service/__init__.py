"""erllama's API over terms, served by a distribution node."""

from __future__ import annotations

from erl_bridge.service.node import ErllamaNode

__all__ = ("ErllamaNode",)
