"""``erllama_cache_ram``: payloads in memory, by hand.

They count against the memory tier's quota, of which they may take a quarter.
"""

from __future__ import annotations

from erllama_py.errors import BadCall
from erllama_py.otp._index import index, key_argument
from erllama_py.otp.cache_disk_srv import exported
from erllama_py.types import Atom

__all__ = ("delete", "load", "put", "size_bytes")


def put(key: bytes, slab: bytes, header: bytes) -> Atom:
    """Keep a payload as a row without tokens, which no engine restores.

    The oldest others go where there is no room.

    :return: ``ok``.
    :raises ErllamaError: ``quota_exceeded``.
    """
    if not isinstance(slab, bytes) or not isinstance(header, bytes):
        raise BadCall("function_clause", "a payload and its header are binaries")
    index().put_slab(key_argument(key), slab, header)
    return Atom("ok")


def load(key: bytes) -> bytes | Atom:
    """Return a payload that was put, or that of a row of the engine's, or ``miss``.

    :raises ErllamaError: as :func:`.cache_disk_srv.load`, for a row of the engine's.
    """
    here = index()
    found = here.slab(key_argument(key))
    if found is None and here.source.has(key):
        row = exported(key)
        return row if isinstance(row, Atom) else row[1]
    return Atom("miss") if found is None else found


def delete(key: bytes) -> Atom:
    """Drop a payload that was put, and its row.

    :return: ``ok``, where there is none too.
    """
    index().delete_slab(key_argument(key))
    return Atom("ok")


def size_bytes() -> int:
    """Return the bytes of the memory tier that are in use."""
    return index().source.counters.snapshot()["bytes_ram"]
