"""A plan on its way from shared memory into a sequence.

Two threads share the work.  The control thread verifies checksums, piece by piece; the
engine thread restores what is verified, between ticks.  The engine accepts corrupted
state without a word (measured: 77 of 200 damaged blocks), so nothing unverified may
reach it, and hashing does not belong into a tick.
"""

from __future__ import annotations

import threading
import time

from erllama_py._backends.base import Backend, RestoreFailed
from erllama_py._cache.lease import Piece
from erllama_py._engine.frames import Plan, Stored
from erllama_py._engine.sharedkv import SharedKv

__all__ = ("BadPiece", "Restore")


class BadPiece(Exception):
    """A piece cannot be restored.

    :param corrupt: its bytes failed their checksum; else the engine refused them.
    """

    def __init__(self, node: int, *, corrupt: bool) -> None:
        self.node = node
        self.corrupt = corrupt
        super().__init__(node)


class Restore:
    """One plan; see the module."""

    def __init__(self, plan: Plan, kv: SharedKv) -> None:
        self.plan = plan
        self.logits = plan.logits if plan.logits and kv.intact(plan.logits) else None
        """The stored logits of the prompt's last token, verified."""
        self.keep = plan.keep
        """Tokens to have in the KV in the end."""
        self.spent_ns = 0
        """Time spent unpacking."""
        self._kv = kv
        self._done = 0
        self._lock = threading.Lock()
        self._verified = 0
        self._bad: int | None = None
        self._dropped = False

    # -- control thread ----------------------------------------------------------------

    def verify_next(self) -> bool:
        """Verify one more piece; return whether there are more to do."""
        pieces = self.plan.pieces
        if self._dropped or self._verified >= len(pieces):
            return False
        piece = pieces[self._verified]
        intact = self._kv.intact(Stored(piece.extent, piece.nbytes, piece.crc))
        with self._lock:
            if intact:
                self._verified += 1
            else:
                self._bad = piece.node_id
        return intact and self._verified < len(pieces)

    # -- engine thread -----------------------------------------------------------------

    def drop(self) -> None:
        """No more pieces are needed."""
        self._dropped = True

    @property
    def complete(self) -> bool:
        """Whether every piece is in the sequence."""
        return self._done == len(self.plan.pieces)

    def advance(self, backend: Backend, slot: int, budget: int | None) -> bool:
        """Move verified pieces into the sequence; return whether any moved.

        :param budget: bytes after which to stop; ``None`` for all there is.
        :raises BadPiece: the sequence must be cleared.
        """
        with self._lock:
            verified, bad = self._verified, self._bad
        moved = 0
        while self._done < verified and (budget is None or moved < budget):
            piece = self.plan.pieces[self._done]
            self._unpack(backend, slot, piece)
            self._done += 1
            moved += piece.nbytes
        if bad is not None and self._done == verified:
            raise BadPiece(bad, corrupt=True)
        return moved > 0

    def cut(self, backend: Backend, slot: int) -> None:
        """Cut the complete sequence to :attr:`keep` tokens.

        A sliding window cut inside a piece may have lost cells it needs; then the
        sequence is restored again up to that piece's start, which is a place it can go
        on from, and :attr:`keep` is lowered to it.

        :raises BadPiece: the sequence must be cleared.
        """
        if backend.length(slot) == self.keep or backend.truncate(slot, self.keep):
            return
        *whole, last = self.plan.pieces
        backend.clear(slot)
        for piece in whole:
            self._unpack(backend, slot, piece)
        self.keep = last.start

    def _unpack(self, backend: Backend, slot: int, piece: Piece) -> None:
        began = time.perf_counter_ns()
        try:
            data = self._kv.view(piece.extent, piece.nbytes)
            backend.unpack(slot, piece.start, piece.end, data)
        except RestoreFailed as error:
            raise BadPiece(piece.node_id, corrupt=False) from error
        finally:
            self.spent_ns += time.perf_counter_ns() - began
