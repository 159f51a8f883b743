"""The namespaces of one model: one for each set of LoRA adapters it computes with.

A request has that of the set it was admitted with, to its end.  What is asked without a
request is answered from that of the set there is now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from erllama_py._cache.identity import Identity
from erllama_py._cache.key import applied_scale, effective_fingerprint
from erllama_py._cache.namespace import Namespace

if TYPE_CHECKING:
    from erllama_py._cache.filetier import FileTier
    from erllama_py._cache.store import Cache
    from erllama_py._engine.adapters import Scales

__all__ = ("Spaces",)


class Spaces:
    """Thread-safe.  There are none before :meth:`begin`.

    :param home: where they are saved; None for the cache's own.
    """

    def __init__(self, cache: Cache, home: FileTier | None) -> None:
        self._cache = cache
        self._home = home
        self._identity: Identity | None = None
        self._sets: dict[int, Scales] = {0: ()}
        self._made: dict[int, Namespace] = {}
        self._turned = 0
        self.present: Namespace | None = None
        """That of the next request."""

    def begin(self, identity: Identity | None) -> None:
        """Start anew with an engine's identity without adapters; None: with nothing cached."""
        self._identity, self._made = identity, {}
        self.turn_to(self._turned)

    def expect(self, number: int, scales: Scales) -> None:
        """Prepare for requests with a set of adapters, before the first of them.

        What file tiers hold for it is read in here, and not while a request waits.
        """
        self._sets[number] = scales
        self.of(number)

    def turn_to(self, number: int) -> None:
        """The next request will be of this set."""
        self._turned = number
        self.present = self.of(number)

    def of(self, number: int) -> Namespace | None:
        """Return the namespace of a set."""
        identity, made = self._identity, self._made
        if identity is None or number in made:
            return made.get(number)
        if scales := self._sets[number]:
            # The fingerprint says it, but a caller can give any, and that of another
            # model with adapters too.  And this can be read, by who asks why it missed.
            said = [f"{sha.hex()} x {applied_scale(scale)}" for sha, scale in scales]
            identity = msgspec.structs.replace(
                identity,
                fingerprint=effective_fingerprint(identity.fingerprint, scales),
                engine=tuple(sorted([*identity.engine, ("adapters", " + ".join(said))])),
            )
        made[number] = self._cache.namespace(identity, self._home)
        return made[number]

    def all(self) -> list[Namespace]:
        """Return the namespaces of all sets so far, the present one first.

        To restore and pack what is in them takes the model, but not their adapters.
        """
        present = self.present
        return sorted(dict.fromkeys(self._made.values()), key=lambda one: one is not present)
