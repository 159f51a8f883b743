"""Cache keys: SHA-256 over model identity, context identity and the exact tokens.

A key is ``SHA256(F + q + C + T)``:

====  =======  ====================================================================
part  bytes    content
====  =======  ====================================================================
F     32       effective fingerprint: the model file's, mixed with attached adapters
q     1        code of the weights' quantisation, :func:`quant_byte`
C     32       the caller's ``ctx_params_hash``
T     4 x n    the tokens, unsigned 32-bit little-endian
====  =======  ====================================================================

It is what ``finish_key`` and ``parent_key`` carry, so it is byte for byte the
original's.  Tokens travel in form T throughout the cache.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from erllama_py.errors import BadCall
from erllama_py.types import Atom

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = (
    "KeyHasher",
    "applied_scale",
    "decode_tokens",
    "effective_fingerprint",
    "encode_tokens",
    "make",
    "quant_atom",
    "quant_byte",
    "quant_tag",
)

HASH_BYTES: Final = 32
TOKEN_BYTES: Final = 4

_QUANTS: Final = (
    *("f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k_m", "q4_k_s", "q5_k_m"),
    *("q5_k_s", "q6_k", "q8_k", "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "iq2_xxs", "iq2_xs"),
    *("iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "iq3_s", "iq3_m", "iq1_s", "iq1_m", "iq4_nl"),
    *("iq4_xs", "bf16"),
)
"""Position is the code, in keys and in files."""

_CODES: Final = {name: code for code, name in enumerate(_QUANTS)}
UNKNOWN_QUANT: Final = 255

_SCALE_ONE: Final = 1 << 32
_SCALE_MASK: Final = (1 << 64) - 1
"""Adapter scales enter the fingerprint as fixed-point numbers with 32 binary places."""


def quant_byte(quant_type: str) -> int:
    """Return the code of a quantisation name; 255 for a name not in the list."""
    return _CODES.get(quant_type, UNKNOWN_QUANT)


def quant_atom(code: int) -> Atom | None:
    """Return the name of a code, or None for a code that names nothing."""
    return Atom(_QUANTS[code]) if 0 <= code < len(_QUANTS) else None


def quant_tag(quant_type: str, bits: int) -> bytes:  # noqa: ARG001 - the original's arity
    """Return the quantisation's name as text.  The bits make no difference."""
    return quant_type.encode()


def encode_tokens(tokens: Iterable[int]) -> bytes:
    """Encode token ids as unsigned 32-bit little-endian, modulo 2**32."""
    ids = array("I", [token & 0xFFFFFFFF for token in tokens])
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()


def decode_tokens(data: bytes) -> list[int]:
    """Decode what :func:`encode_tokens` made.

    :raises BadCall: the length is not a multiple of four.
    """
    _check_tokens(data)
    ids = array("I")
    ids.frombytes(data)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tolist()


class KeyHasher:
    """A running key: feed tokens, ask for the key of what was fed so far.

    :meth:`copy` keeps a prefix's state, so the keys of many prefixes of one prompt
    cost one pass over it.
    """

    __slots__ = ("_hash",)

    def __init__(self, fingerprint: bytes, quant_type: str, ctx_params_hash: bytes) -> None:
        """Start with no tokens.

        :raises BadCall: fingerprint or context hash are not 32 bytes.
        """
        _check_hash("fingerprint", fingerprint)
        _check_hash("ctx_params_hash", ctx_params_hash)
        head = fingerprint + bytes((quant_byte(quant_type),)) + ctx_params_hash
        self._hash: _Hash = hashlib.sha256(head)

    def update(self, tokens: bytes | memoryview) -> None:
        """Append encoded tokens."""
        self._hash.update(tokens)

    def digest(self) -> bytes:
        """Return the key of the tokens so far."""
        return self._hash.digest()

    def copy(self) -> KeyHasher:
        """Return an independent hasher with the same tokens so far."""
        other = object.__new__(KeyHasher)
        other._hash = self._hash.copy()
        return other


def make(fingerprint: bytes, quant_type: str, ctx_params_hash: bytes, tokens: bytes) -> bytes:
    """Return the key of encoded ``tokens``.

    :raises BadCall: a hash is not 32 bytes, or the tokens' length is no multiple of 4.
    """
    _check_tokens(tokens)
    hasher = KeyHasher(fingerprint, quant_type, ctx_params_hash)
    hasher.update(tokens)
    return hasher.digest()


def effective_fingerprint(base: bytes, adapters: Iterable[tuple[bytes, float]]) -> bytes:
    """Mix attached adapters, as (SHA-256 of the file, scale), into a fingerprint.

    Neither the order of attachment nor handles matter; a file attached twice counts
    twice.  Entries whose hash is not 32 bytes are left out, as in the original.
    """
    _check_hash("fingerprint", base)
    mixed = sorted((sha, scale) for sha, scale in adapters if len(sha) == HASH_BYTES)
    if not mixed:
        return base
    hasher = hashlib.sha256(base)
    for sha, scale in mixed:
        hasher.update(sha)
        hasher.update((_fixed_point(scale) & _SCALE_MASK).to_bytes(8, "little"))
    return hasher.digest()


def applied_scale(scale: float) -> float:
    """Return the scale that the fingerprint has: of two that it takes for one, one."""
    return _fixed_point(scale) / _SCALE_ONE


def _fixed_point(scale: float) -> int:
    """Round ``scale * 2**32`` half away from zero."""
    exact = scale * _SCALE_ONE
    whole = int(exact)
    # Adding a half and flooring would round numbers just below a half up.
    if abs(exact - whole) >= 0.5:
        whole += 1 if exact > 0 else -1
    return whole


def _check_hash(name: str, value: bytes) -> None:
    if len(value) != HASH_BYTES:
        raise BadCall("function_clause", f"{name} has {len(value)} bytes, must have {HASH_BYTES}")


def _check_tokens(tokens: bytes) -> None:
    if len(tokens) % TOKEN_BYTES:
        raise BadCall("function_clause", f"{len(tokens)} bytes are not whole tokens of 4 bytes")
