"""A plan on its way from the cache into a sequence.

Two threads share the work.  The loader reads and verifies, piece by piece; the engine
thread restores what is verified, between ticks.  The engine accepts corrupted state
without a word (measured: 77 of 200 damaged blocks), so nothing unverified may reach it,
and neither reading nor hashing belongs into a tick.

Each attribute is written by one thread only, and a loaded piece is published last, so
neither thread ever waits for the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from erllama_py._backends.base import Backend, NoSlot, RestoreFailed
from erllama_py._cache.lease import Piece
from erllama_py._cache.origin import Origin
from erllama_py._engine.frames import Plan
from erllama_py._engine.sharedkv import SharedKv

__all__ = ("BadPiece", "Restore")


class BadPiece(Exception):
    """A piece cannot be restored.

    :param corrupt: its bytes failed their checksum or could not be read; else the
        engine refused them.
    """

    def __init__(self, node: int, *, corrupt: bool) -> None:
        self.node = node
        self.corrupt = corrupt
        super().__init__(node)


class Restore:
    """One plan; see the module.

    Made on the control thread, which reads the logits: some 100 KB, and an exact hit's
    first token needs nothing else.

    :param nudge: called when the loader may go on.
    """

    def __init__(self, plan: Plan, kv: SharedKv, nudge: Callable[[], None]) -> None:
        self.plan = plan
        self.segments = frozenset(piece.extent.segment for piece in plan.pieces)
        """Held for this plan in ``kv``; the loader lets them go."""
        self._kv = kv
        self._nudge = nudge
        kv.hold(self.segments)
        began = time.perf_counter_ns()
        stored = plan.logits
        self.logits = kv.load(stored.extent, stored.nbytes, stored.crc) if stored else None
        """The stored logits of the prompt's last token, verified."""
        self.unread = stored is not None and self.logits is None
        """Whether there are stored logits, and they are damaged."""
        self.read_ns = time.perf_counter_ns() - began
        """Time spent reading and verifying."""
        self._pieces = plan.pieces
        self._next = 0
        self._loaded: dict[int, memoryview] = {}
        self._bad: BadPiece | None = None
        self._read_bytes = 0

        self.keep = plan.keep
        """Tokens to have in the KV in the end."""
        self.shared = 0
        """Leading tokens that came from another sequence of the context."""
        self.spent_ns = 0
        """Time spent unpacking."""
        self.unpacked_bytes = 0
        self.dropped = False
        self._first = 0
        self._done = 0
        self._freed_bytes = 0

    # -- loader thread -----------------------------------------------------------------

    @property
    def loading(self) -> bool:
        """Whether there is a piece to load."""
        return not self.dropped and self._bad is None and self._at() < len(self._pieces)

    @property
    def ahead(self) -> int:
        """Bytes read from files and not yet unpacked."""
        return 0 if self.dropped else self._read_bytes - self._freed_bytes

    def load_next(self) -> None:
        """Read and verify one more piece."""
        at = self._at()
        piece = self._pieces[at]
        began = time.perf_counter_ns()
        data = self._kv.load(piece.extent, piece.nbytes, piece.crc)
        self.read_ns += time.perf_counter_ns() - began
        if data is None:
            self._bad = BadPiece(piece.node_id, corrupt=True)
            return
        if self._kv.in_file(piece.extent):
            self._read_bytes += piece.nbytes
        self._next = at + 1
        self._loaded[at] = data
        if at < self._first and self._loaded.pop(at, None) is not None:
            # Left out meanwhile, and not seen there.
            self._read_bytes -= piece.nbytes if self._kv.in_file(piece.extent) else 0

    def _at(self) -> int:
        return max(self._next, self._first)

    # -- engine thread -----------------------------------------------------------------

    def drop(self) -> None:
        """No more pieces are needed."""
        self.dropped = True
        self._loaded = {}
        self._nudge()

    @property
    def complete(self) -> bool:
        """Whether every piece is in the sequence."""
        return self._done == len(self._pieces)

    def put_in(self) -> list[tuple[int, Origin]]:
        """Return where each piece that was not left out begins, and its origin."""
        return [(piece.start, piece.origin) for piece in self._pieces[self._first :]]

    def whole(self, tokens: int) -> int:
        """Return how many of so many leading tokens can be taken from elsewhere.

        Pieces go in whole, so what comes from elsewhere must end where one begins, or
        with the plan.
        """
        if tokens >= self.keep:
            return self.keep
        return max((piece.start for piece in self._pieces if piece.start <= tokens), default=0)

    def skip(self, tokens: int) -> None:
        """Leave out the pieces of so many leading tokens, as :meth:`whole` gave them."""
        self.shared = tokens
        first = sum(piece.start < tokens for piece in self._pieces)
        self._first = self._done = first
        for at in [at for at in list(self._loaded) if at < first]:
            self._free(at)

    def advance(
        self, backend: Backend, slot: int, budget: int | None, room: int | None = None
    ) -> bool:
        """Move verified pieces into the sequence; return whether any moved.

        :param budget: bytes after which to stop; ``None`` for all there is.
        :param room: free cells, where they are to be counted.  The engine refuses a piece
            without room as it does a damaged one.
        :raises NoSlot: the next piece has no room; those before it are in.
        :raises BadPiece: the sequence must be cleared.
        """
        moved = 0
        while (data := self._loaded.get(self._done)) is not None:
            if budget is not None and moved >= budget:
                return True
            piece = self._pieces[self._done]
            if room is not None:
                room -= piece.end - piece.start
                if room < 0:
                    raise NoSlot("no_slot", f"{-room} cells are missing")
            self._unpack(backend, slot, piece, data)
            self._free(self._done)
            self._done += 1
            moved += piece.nbytes
        if self._bad is not None and self._done not in self._loaded:
            raise self._bad
        return moved > 0

    def cut(self, backend: Backend, slot: int) -> None:
        """Cut the complete sequence to :attr:`keep` tokens.

        A sliding window cut inside a piece may have lost cells it needs.  Then the
        sequence is to be restored again, up to that piece's start, which is a place it
        can go on from: :attr:`keep` is lowered to it, and :attr:`complete` no more.
        """
        if backend.length(slot) == self.keep or backend.truncate(slot, self.keep):
            return
        backend.clear(slot)
        *whole, last = self._pieces
        self.keep = last.start
        self.shared = self._done = self._first = 0
        # The loader has nothing to do until `_next` says so, and then finds the rest.
        self._pieces = whole
        self._next = 0
        self._nudge()

    def _unpack(self, backend: Backend, slot: int, piece: Piece, data: memoryview) -> None:
        began = time.perf_counter_ns()
        try:
            backend.unpack(slot, piece.start, piece.end, data)
        except RestoreFailed as error:
            raise BadPiece(piece.node_id, corrupt=False) from error
        finally:
            self.spent_ns += time.perf_counter_ns() - began
        self.unpacked_bytes += piece.nbytes

    def _free(self, at: int) -> None:
        """Let go of a piece's bytes, which are private where they came from a file."""
        data = self._loaded.pop(at, None)
        if data is not None and self._kv.in_file(self._pieces[at].extent):
            self._freed_bytes += self._pieces[at].nbytes
            self._nudge()
