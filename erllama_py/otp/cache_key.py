"""``erllama_cache_key``: how rows are addressed.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from erllama_py._cache import key as keys
from erllama_py._cache.key import decode_tokens, effective_fingerprint, quant_byte, quant_tag
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom

__all__ = (
    "decode_tokens",
    "effective_fingerprint",
    "encode_tokens",
    "make",
    "quant_atom",
    "quant_byte",
    "quant_tag",
)


def make(*args: Any) -> bytes:
    """Return the key of some tokens: ``make(map)`` or ``make(F, quant, C, encoded)``.

    The map has ``fingerprint``, ``quant_type``, ``ctx_params_hash`` and ``tokens``, ids.

    :raises BadCall: ``function_clause``: a part is missing or cannot be.
    """
    match args:
        case (Mapping() as parts,):
            try:
                fingerprint, quant = parts["fingerprint"], parts["quant_type"]
                context, tokens = parts["ctx_params_hash"], parts["tokens"]
            except KeyError as error:
                raise BadCall("function_clause", f"{error.args[0]} is missing") from None
            return _make(fingerprint, quant, context, encode_tokens(tokens))
        case (fingerprint, quant, context, bytes() as encoded):
            return _make(fingerprint, quant, context, encoded)
        case _:
            raise BadCall("function_clause", "make takes a map, or four parts of a key")


def quant_atom(code: Any) -> Atom:
    """Return the name of a quantisation's code.

    :raises ErllamaError: ``unknown_quant``.
    """
    name = keys.quant_atom(code) if type(code) is int else None
    if name is None:
        raise ErllamaError("unknown_quant", f"no quantisation has the code {code!r}")
    return name


def encode_tokens(tokens: Iterable[int]) -> bytes:
    """Encode token ids as unsigned 32-bit little-endian.

    :raises BadCall: ``function_clause``: not a list of numbers.
    """
    if not isinstance(tokens, list) or any(type(token) is not int for token in tokens):
        raise BadCall("function_clause", f"tokens are a list of numbers, not {tokens!r}")
    return keys.encode_tokens(tokens)


def _make(fingerprint: Any, quant: Any, context: Any, encoded: bytes) -> bytes:
    hashes = isinstance(fingerprint, bytes) and isinstance(context, bytes)
    if not hashes or not isinstance(quant, str):
        raise BadCall("function_clause", "a key is made of two hashes and a quantisation's name")
    return keys.make(fingerprint, quant, context, encoded)
