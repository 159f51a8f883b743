"""Which adapters a context computes with, and which requests are to have.

A change is for requests admitted after it; those that run keep theirs.  A context
computes with one set at a time, for all of its sequences.  So at any time every sequence
in it, running or parked, is of the *present* set, and the next request waits until that
is its own (:mod:`~erllama_py._engine.admission`).
"""

from __future__ import annotations

from collections.abc import Iterable

from erllama_py._backends.base import Backend, BackendError
from erllama_py._engine.adapterset import NO_ADAPTERS, AdapterSet

__all__ = ("Adapting",)

REPRODUCIBLE = 2
"""The engine adds up adapters in an order that is that of a hash table of pointers.  Two
always come in the same one; the sum of more may differ in its last bits."""


class Adapting:
    """The adapters of a model process.  Engine thread."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._loaded: set[int] = set()
        self.coming = NO_ADAPTERS
        """What the next request to be admitted computes with."""
        self.present = NO_ADAPTERS
        """What every sequence of the context was computed with."""

    def change(self, adapters: AdapterSet, *, tried: bool) -> None:
        """Load what is not loaded, for the requests to come.

        :param tried: see :meth:`erllama_py._backends.base.Backend.load_adapter`.
        :raises BackendError: nothing has changed.
        """
        fresh: list[int] = []
        try:
            for one in adapters.adapters:
                if one.number not in self._loaded:
                    path = one.path.decode(errors="surrogateescape")
                    self._backend.load_adapter(one.number, path, tried=tried)
                    self._loaded.add(one.number)
                    fresh.append(one.number)
        except BackendError:
            for number in fresh:
                self._free(number)
            raise
        self.coming = adapters

    def switch(self, adapters: AdapterSet) -> None:
        """Compute with these; the context must be empty of sequences of others."""
        if adapters != self.present:
            self._backend.use_adapters([(one.number, one.scale) for one in adapters.adapters])
            self.present = adapters

    @property
    def reproducible(self) -> bool:
        """Whether the same tokens give the same bits in any process."""
        return sum(one.scale != 0 for one in self.present.adapters) <= REPRODUCIBLE

    @property
    def surplus(self) -> bool:
        """Whether something is loaded that requests to come do not need."""
        return not self._loaded <= _numbers(self.coming)

    def free_all_but(self, used: Iterable[AdapterSet]) -> None:
        """Free what neither these sets have nor the context computes with."""
        needed = _numbers(self.coming, self.present, *used)
        for number in self._loaded - needed:
            self._free(number)

    def _free(self, number: int) -> None:
        self._backend.free_adapter(number)
        self._loaded.remove(number)


def _numbers(*sets: AdapterSet) -> set[int]:
    return {one.number for adapters in sets for one in adapters.adapters}
