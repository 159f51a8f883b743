"""The one checksum of cached payloads: CRC-32C (Castagnoli).

The engine accepts corrupted state without a word, so every payload is checked before
it is restored.  The model process makes and checks the sums; this is here so that
both sides, and every tier, use the same function.
"""

from __future__ import annotations

from typing import Final

import crc32c

__all__ = ("crc",)

_EMPTY: Final = 0


def crc(data: bytes | bytearray | memoryview, before: int = _EMPTY) -> int:
    """Return the CRC-32C of ``data`` as an unsigned 32-bit number.

    :param before: the sum of what comes before ``data``.
    """
    return int(crc32c.crc32c(data, before))
