"""Sequences of a context: cutting them, and packing and restoring parts of them.

A part [start, end) of a sequence is packed through the scratch sequence: sharing its
cells with the scratch is metadata only, and the state of the scratch is then exactly
the part.  Restoring goes the same way back.  This works because KV is unified: on
split KV the partial share would be an assertion, and the end of the process.

The engine's return values are not believed.  ``seq_rm`` answers true for a cut that
left a sliding window without cells it needs, and ``set_data`` accepts damaged bytes.
Positions tell: a sequence's lowest and highest are asked for after every operation.
For a sliding window they are those of the windowed half of the cache.  A part's own
table of positions is checked before the engine sees it (``llama_layout`` says why).

A whole sequence that is longer than a sliding window goes without the windowed cells
that nothing looks at any more; the engine leaves them out by itself.  What it packed can
be gone on from at its very end, and is not cut into parts.

Recurrent and hybrid models keep *states*, one for all tokens of a sequence, which have
neither parts nor a way back.  Of them whole rows are packed, from the sequence itself;
their lowest and highest position are both that of the last token, and where the two
differ, the state and the cells of a hybrid model have come apart.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np

from erllama_py._backends.base import BackendError, RestoreFailed
from erllama_py._backends.llama_layout import PartLayout

__all__ = ("Memory",)

_BYTES = ctypes.POINTER(ctypes.c_uint8)


class Memory:
    """The KV memory of one context.

    :param states: the model is recurrent or hybrid; its context has no scratch sequence.
    """

    def __init__(
        self, context: Any, memory: Any, n_seq_max: int, n_swa: int, *, states: bool = False
    ) -> None:
        self._context = context
        self._memory = memory
        self.scratch = n_seq_max
        self._n_swa = n_swa
        self.states = states
        self.whole_rows = states
        """Set where parts do not work: then only whole sequences are packed."""
        self.layout: PartLayout | None = None
        """Known once the self-test has learnt it; parts are checked against it."""

    def close(self) -> None:
        """Forget the context, which is about to be freed."""
        self._context = self._memory = None

    def clear(self, seq: int) -> None:
        """See :meth:`erllama_py._backends.base.Backend.clear`."""
        native.llama_memory_seq_rm(self._memory, self._checked(seq), -1, -1)

    def clear_all(self) -> None:
        """Empty the context: the next sequence begins at the first cell again."""
        native.llama_memory_clear(self._memory, False)

    def truncate(self, seq: int, length: int) -> bool:
        """See :meth:`erllama_py._backends.base.Backend.truncate`."""
        if length == self.length(seq):
            return True
        if length <= 0:
            self.clear(seq)
            return length == 0
        if self.states:
            return False
        native.llama_memory_seq_rm(self._memory, seq, length, -1)
        return self._can_go_on(seq, length)

    def share(self, source: int, target: int, length: int) -> bool:
        """See :meth:`erllama_py._backends.base.Backend.share`."""
        self.clear(target)
        if self.whole_rows or not 0 < length <= self.length(source):
            return False
        native.llama_memory_seq_cp(self._memory, source, target, 0, length)
        if self._can_go_on(target, length):
            return True
        self.clear(target)
        return False

    def _can_go_on(self, seq: int, length: int) -> bool:
        """Whether a sequence is so long, with all the cells its next token looks at."""
        lowest, highest = self._span(seq)
        needed = max(0, length - self._n_swa) if self._n_swa else 0
        return highest == length - 1 and 0 <= lowest <= needed

    def lend_head(self, seq: int, length: int) -> bool:
        """Give the scratch sequence a head; whether it can go on from there.

        :meth:`clear_scratch` takes it back.
        """
        if self.whole_rows or self.length(seq) < length:
            return False
        native.llama_memory_seq_cp(self._memory, seq, self.scratch, 0, length)
        lowest, highest = self._span(self.scratch)
        if highest == length - 1 and 0 <= lowest <= max(0, length - (self._n_swa or length)):
            return True
        self.clear_scratch()
        return False

    def clear_scratch(self) -> None:
        """Empty the scratch sequence."""
        self._take_back(self.scratch)

    def length(self, seq: int) -> int:
        """See :meth:`erllama_py._backends.base.Backend.length`."""
        return int(native.llama_memory_seq_pos_max(self._memory, self._checked(seq))) + 1

    def packed_size(self, seq: int, start: int, end: int) -> int:
        """See :meth:`erllama_py._backends.base.Backend.packed_size`."""
        source = self._lend(seq, start, end)
        if source is None:
            return 0
        size = int(native.llama_state_seq_get_size(self._context, source))
        self._take_back(source)
        return size

    def pack(self, seq: int, start: int, end: int, out: memoryview) -> int:
        """See :meth:`erllama_py._backends.base.Backend.pack`."""
        if out.readonly:  # the engine would write there all the same
            raise BackendError("badarg", "the memory to pack into is read-only")
        source = self._lend(seq, start, end)
        if source is None:
            return 0
        try:
            size = int(native.llama_state_seq_get_size(self._context, source))
            if size > out.nbytes:
                return 0
            address = _address(np.frombuffer(out, np.uint8))
            written = int(native.llama_state_seq_get_data(self._context, address, size, source))
        finally:
            self._take_back(source)
        if self.layout is not None:
            self.layout.make_canonical(out, end - start)
        return written

    def unpack(self, seq: int, start: int, end: int, data: memoryview) -> None:
        """See :meth:`erllama_py._backends.base.Backend.unpack`."""
        size = data.nbytes
        if not 0 <= start < end or self.length(seq) != start:
            raise RestoreFailed(
                "restore_failed",
                f"part {start} to {end} on sequence {seq} of {self.length(seq)} tokens",
            )
        if self.whole_rows and start:
            raise RestoreFailed("restore_failed", "this model restores whole sequences only")
        if self.layout is not None:
            self._check_part(self.layout, start, end, data)
        target = seq if self.whole_rows else self.scratch
        address = _address(np.frombuffer(data, np.uint8))
        read = native.llama_state_seq_set_data(self._context, address, size, target)
        span = self._span(target)
        fits = self._is_whole(span, end) if self.whole_rows else self._is_part(span, start, end)
        if read != size or not fits:
            native.llama_memory_seq_rm(self._memory, target, -1, -1)
            raise RestoreFailed(
                "restore_failed",
                f"the engine took {read} of {size} bytes, positions {span[0]} to {span[1]}"
                if read
                else "the engine refused the part: damaged, or no room for it",
            )
        if target == seq:
            return
        native.llama_memory_seq_cp(self._memory, target, seq, start, end)
        self._take_back(target)
        if self.length(seq) != end:
            raise RestoreFailed("restore_failed", f"sequence {seq} ends at {self.length(seq)}")

    def _check_part(self, layout: PartLayout, start: int, end: int, data: memoryview) -> None:
        if data.nbytes != layout.size(end - start):
            raise RestoreFailed(
                "restore_failed",
                f"{data.nbytes} bytes for {end - start} tokens, not {layout.size(end - start)}",
            )
        if not layout.fits(data, start, end):
            raise RestoreFailed(
                "restore_failed", f"the part is damaged or not of tokens {start} to {end}"
            )

    def _lend(self, seq: int, start: int, end: int) -> int | None:
        """Return the sequence whose state is the part [start, end), or None if it is gone."""
        self._checked(seq)
        if not 0 <= start < end:
            return None
        if self.whole_rows:
            return seq if start == 0 and self._is_whole(self._span(seq), end) else None
        native.llama_memory_seq_cp(self._memory, seq, self.scratch, start, end)
        if self._is_part(self._span(self.scratch), start, end):
            return self.scratch
        self._take_back(self.scratch)
        return None

    def _take_back(self, source: int) -> None:
        if source == self.scratch:
            native.llama_memory_seq_rm(self._memory, source, -1, -1)

    def _is_part(self, span: tuple[int, int], start: int, end: int) -> bool:
        """Whether a sequence of this span is the part, with all the cells it is used for."""
        lowest, highest = span
        if start == 0 and 0 < self._n_swa < end:
            return highest == end - 1 and 0 <= lowest <= end - self._n_swa
        return span == (start, end - 1)

    def _is_whole(self, span: tuple[int, int], length: int) -> bool:
        """Whether a sequence of this span is whole and ``length`` tokens long."""
        if self.states:
            return span == (length - 1, length - 1)
        return span[1] == length - 1  # the lowest may have left a sliding window

    def _span(self, seq: int) -> tuple[int, int]:
        return (
            native.llama_memory_seq_pos_min(self._memory, seq),
            native.llama_memory_seq_pos_max(self._memory, seq),
        )

    def _checked(self, seq: int) -> int:
        if not 0 <= seq < self.scratch:
            raise BackendError("badarg", f"there is no sequence {seq}")
        return seq


def _address(array: Any) -> Any:
    """Point at an array's memory, which ctypes itself does for writable memory only.

    The pointer keeps the array, and through it the caller's memory, until it is gone.
    """
    return array.ctypes.data_as(_BYTES)
