"""A row on its way out of a model's cache, or into it, as a request of its own.

It waits for a slot and for cells like any other request, so nothing that runs is held up
by more than the restore and the packing of one sequence.  It is no admission: no counter
moves, and what it restores is not remembered as a hit.

========  =====================================  ========================================
mode      restores                               is packed as
========  =====================================  ========================================
export    the pieces of a row, pinned by the     one payload, as a file holds it
          caller
import    one payload, from a descriptor of the  blocks and a tail; one payload where the
          caller's                               model cannot use blocks, or where its
                                                 sliding window is shorter than the row
========  =====================================  ========================================

What came from outside goes through the engine once before anything of it is stored: a
payload that the engine does not take is refused there and then, and what is stored are
parts that this very engine packed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from erllama_py._cache.lease import Piece
from erllama_py._cache.ram import Extent
from erllama_py._engine.frames import Done, Forget, Packed, PackedPart, Plan, Segment
from erllama_py._engine.request import Request
from erllama_py._engine.tokenbytes import unpack_tokens
from erllama_py.config import GenerateOptions
from erllama_py.errors import ErllamaError
from erllama_py.types import Event

if TYPE_CHECKING:
    from erllama_py._engine.wire import Wire

__all__ = ("Payload", "Transfer")


class Payload(NamedTuple):
    """A payload in a file that is open."""

    fd: int
    offset: int
    nbytes: int
    crc: int


class Transfer(Request):
    """See the module.  Exactly one of ``pieces`` and ``payload`` is given.

    The pieces stay pinned, and the payload's descriptor open, until it is over.
    """

    def __init__(
        self,
        tokens: bytes,
        *,
        pieces: Sequence[Piece] = (),
        payload: Payload | None = None,
    ) -> None:
        mode = "import" if payload else "export"
        super().__init__(mode, GenerateOptions(cached=False), tokens=unpack_tokens(tokens))
        self.pieces = list(pieces)
        self._payload = payload
        self._lent: tuple[Wire, int] | None = None
        self.parts: list[PackedPart] = []
        self.fd = -1
        """Of the memory with the parts, once they are there; to be closed by the caller."""

    # -- called by the host ---------------------------------------------------------------

    def lend(self, wire: Wire, number: int) -> None:
        """Give the model process the payload of an import, as a segment of this number."""
        payload = self._payload
        if payload is None:
            return
        wire.send(Segment(number, payload.offset + payload.nbytes, file=True), payload.fd)
        self._lent = (wire, number)
        extent = Extent(number, payload.offset, payload.nbytes)
        self.pieces = [Piece(0, extent, payload.nbytes, payload.crc, 0, self.prompt_len)]

    def take_back(self) -> None:
        """The model process needs the payload no more."""
        lent, self._lent = self._lent, None
        if lent is not None:
            wire, number = lent
            wire.send(Forget(number))

    def plan(self) -> Plan:
        """Return the answer to its lookup."""
        length = self.prompt_len
        return Plan(
            self.id, "partial", length, length, self.pieces, None, canonical=False, captured=0
        )

    def on_packed(self, frame: Packed, fd: int) -> None:
        """What it was for is there; takes over the descriptor."""
        if self.over:
            os.close(fd)
            return
        self.parts, self.fd = frame.parts, fd
        self._end(Event("done", self.ref))

    def on_done(self, frame: Done, finish_key: bytes | None) -> None:
        """It was cancelled before it was sent."""
        del frame, finish_key
        self.on_error(ErllamaError("cancelled"))
