"""The references that stand for LoRA adapters' handles."""

from __future__ import annotations

import threading
from typing import Any

from erl_bridge.etf import Reference
from erl_bridge.runtime import Node
from erllama_py.types import Ref

__all__ = ("Handles",)


class Handles:
    """One reference of the node for each handle that went out, until it is forgotten."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._by_handle: dict[Ref, Reference] = {}
        self._by_reference: dict[Reference, Ref] = {}

    def reference_of(self, handle: Ref) -> Reference:
        """Return the reference that stands for a handle."""
        with self._lock:
            reference = self._by_handle.get(handle)
            if reference is None:
                reference = self._by_handle[handle] = self._node.make_ref()
                self._by_reference[reference] = handle
            return reference

    def handle_of(self, term: Any) -> Ref | None:
        """Return the handle that a term stands for, if any."""
        return self._by_reference.get(term) if isinstance(term, Reference) else None

    def forget(self, handle: Ref) -> None:
        """Drop the handle of an adapter that is detached."""
        with self._lock:
            reference = self._by_handle.pop(handle, None)
            if reference is not None:
                del self._by_reference[reference]
