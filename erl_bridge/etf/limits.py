"""How much a peer may make us build from one term.

A term is small on the wire and large in memory: five bytes make an empty map, two
megabytes of zlib make two gigabytes.  So size is bounded before it is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("DEFAULT_LIMITS", "Limits")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds the decoder enforces; exceeding one is a :class:`DecodeError`."""

    max_depth: int = 256
    """Containers inside containers.  Code that walks terms recursively must survive any term
    we accept: two Python frames a level stay well under the interpreter's limit of 1000."""

    max_terms: int = 4_000_000
    """Terms in one message, containers and their items alike.  At 64 bytes a term (the cost of
    an empty list, one byte on the wire) this bounds memory to about 256 MB."""

    max_atom_chars: int = 255
    """The emulator's own limit; in UTF-8 it can be 1020 bytes."""

    max_binary_bytes: int = 256 * 1024 * 1024
    """One binary or bit string."""

    max_big_bytes: int = 64 * 1024
    """Magnitude of one big integer.  Half a million bits is far more than any caller needs;
    arithmetic on larger ones stalls a thread for seconds."""

    max_inflated_bytes: int = 64 * 1024 * 1024
    """What one compressed term may inflate to; both its claim and the inflating are held to it."""


DEFAULT_LIMITS = Limits()
