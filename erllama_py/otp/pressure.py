"""``erllama_pressure``: where memory pressure is read.

``add_sampler`` and ``remove_sampler`` have no counterpart in the original, where a sampler
is a module: here a name stands for what was offered under it, and nothing is imported
because a peer names it.
"""

from __future__ import annotations

from erllama_py._machine.pressure import (
    add_sampler,
    available_sources,
    remove_sampler,
    sample,
)

__all__ = ("add_sampler", "available_sources", "remove_sampler", "sample")
