"""What identifies a model file.

Two values, for two purposes.  The *fingerprint* is the caller's, part of every cache
key as in the original; computed here where the caller gives none.  The *file identity*
is ours, checked besides: a caller who gives the same fingerprint for two files, or
thirty-two zero bytes for all of them, must still never be served another model's KV.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

__all__ = ("file_fingerprint", "file_identity")

WHOLE_FILE_BYTES: Final = 1 << 30
"""Up to here the whole file is hashed: about a second at SHA-256's 1.2 GB/s."""

SAMPLE_BYTES: Final = 1 << 20
SAMPLES: Final = 64


def file_fingerprint(path: str) -> bytes:
    """Return 32 bytes that stand for a file's content.

    SHA-256 of the whole file where that takes about a second; of larger files, of
    their size and 64 samples of 1 MiB spread evenly, first and last included, so that
    no load waits for more.

    :raises OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= WHOLE_FILE_BYTES:
            return hashlib.file_digest(file, "sha256").digest()
        digest = hashlib.sha256(size.to_bytes(8, "little"))
        for index in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * index // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
        return digest.digest()


def file_identity(path: str) -> str:
    """Return a text that changes when the file at ``path`` does; empty without a file."""
    if not path:
        return ""
    status = Path(path).stat()
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
