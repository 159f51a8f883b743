"""The lock of a directory that several processes use: a file in it, which anyone may delete."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ("DirLock",)

_NAME: Final = ".lock"


class DirLock:
    """Between processes, not threads: one thread at a time holds or closes it.

    :param path: the directory; made, with its parents, if it is not there.
    :raises OSError: it cannot be made, or the file in it not opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = self._open()

    @property
    def closed(self) -> bool:
        """Whether it cannot be held any more."""
        return self._fd < 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold it for the length of a ``with`` block.

        :raises OSError: the directory was deleted, and cannot be made again.
        """
        while True:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._fd), (self._path / _NAME).stat()):
                    break
            # Somebody tidied up: locked is what nobody else will find.  The number may be
            # another file's in a moment, so it is forgotten before anything can fail.
            self.close()
            self._fd = self._open()
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file.  Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _open(self) -> int:
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(self._path / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
