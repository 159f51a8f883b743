"""LoRA adapters of one model, and those that its context computes with.

The engine is told the whole set each time.  The set is the context's, for all of its
sequences, and a change has the next step build its graph anew: some milliseconds.  An
adapter with scale 0 is left out, and the results are those without it, bit for bit.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as native

from erllama_py._backends import native_log
from erllama_py._backends.base import BackendError

__all__ = ("LlamaAdapters",)


class LlamaAdapters:
    """Native adapters by number.  They are freed with the model at the latest."""

    def __init__(self, model: Any, context: Any) -> None:
        self._model = model
        self._context = context
        self._loaded: dict[int, Any] = {}
        self._used: tuple[tuple[int, float], ...] = ()

    @property
    def used(self) -> tuple[tuple[int, float], ...]:
        """The set that the context computes with, as (number, scale)."""
        return self._used

    def load(self, number: int, path: str) -> None:
        """Load a file.

        :raises BackendError: see :meth:`erllama_py._backends.base.Backend.load_adapter`.
        """
        point = native_log.mark()
        adapter = native.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not adapter:
            text = "; ".join(native_log.errors_since(point))
            reason = "oom" if "allocate" in text else "load_failed"
            raise BackendError(reason, f"{path}: {text or 'no reason given by the engine'}")
        self._loaded[number] = adapter

    def free(self, number: int) -> None:
        """Free an adapter that is not in use."""
        native.llama_adapter_lora_free(self._loaded.pop(number))

    def use(self, adapters: Sequence[tuple[int, float]]) -> None:
        """Compute with these, in this order, and no others."""
        count = len(adapters)
        # Not of length 0: with NULL for them, the engine would look into them.
        pointers = (native.llama_adapter_lora_p_ctypes * max(count, 1))()
        scales = (ctypes.c_float * max(count, 1))()
        for at, (number, scale) in enumerate(adapters):
            pointers[at] = self._loaded[number]
            scales[at] = scale
        code = native.llama_set_adapters_lora(self._context, pointers, count, scales)
        if code:
            raise BackendError("exception", f"the engine refused adapters: it answered {code}")
        self._used = tuple(adapters)
