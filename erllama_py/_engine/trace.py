"""The logits every token of a request was drawn from, kept for a comparison."""

from __future__ import annotations

import os

from erllama_py._engine.anonymous import anonymous_file

__all__ = ("LogitsTrace",)


class LogitsTrace:
    """Rows of float32 in anonymous memory.

    :raises OSError: there is no memory.
    """

    def __init__(self) -> None:
        self._fd = anonymous_file("erllama-trace")
        self.rows = 0

    def add(self, logits: bytes | bytearray | memoryview) -> None:
        """Append one row.

        :raises OSError: there is no memory for it.
        """
        view = memoryview(logits)
        while view:
            view = view[os.write(self._fd, view) :]
        self.rows += 1

    def hand_over(self) -> int:
        """Return the descriptor, which is the caller's from now on."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Free the memory, unless it was handed over.  Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
