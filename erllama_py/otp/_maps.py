"""The original's maps of a saved row: what a file is built from, and what a file says.

:func:`meta_of` takes back what :func:`info_of` gives; the keys that are left out of a build
map, such as sizes and sums, are ignored in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from erllama_py._cache import key as keys
from erllama_py._cache import kvc
from erllama_py._cache.kvc import Facts, Meta
from erllama_py._engine.exchange import provenance
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom

__all__ = ("info_of", "meta_of")


def meta_of(given: Mapping[str, Any]) -> Meta:
    """Return the facts of a build map: ``tokens`` are ids, texts ``bytes``.

    Times, host and version are ours where left out.  Unknown keys are ignored.

    :raises ErllamaError: ``{missing_key, K}`` for the first that is not there.
    :raises BadCall: a value is of the wrong kind.
    """
    for name in _NEEDED:
        if name not in given:
            raise ErllamaError(
                (Atom("missing_key"), Atom(name)), f"{name} is missing", f"give {name}"
            )
    whole = {**provenance(), **given}
    for name, fits in _KINDS.items():
        if name in whole and not fits(whole[name]):
            raise BadCall("function_clause", f"{name} cannot be {whole[name]!r}")
    known = {name: whole[name] for name in _KINDS if name in whole}
    return Meta(**{**known, "tokens": keys.encode_tokens(known["tokens"])})


def info_of(facts: Facts) -> dict[str, Any]:
    """Return the map of a parsed file, with ``engine`` and ``grade`` of ours."""
    meta = facts.meta
    found = {
        "magic": b"KVC",
        "version": kvc.VERSION,
        "save_reason": Atom(meta.save_reason),
        "quant_bits": meta.quant_bits,
        "cached_token_count": facts.token_count,
        "hit_count": meta.hit_count,
        "context_size": meta.context_size,
        "creation_time": meta.creation_time,
        "last_used_time": meta.last_used_time,
        "payload_byte_count": facts.payload_length,
        "payload_offset": facts.payload_offset,
        "payload_length": facts.payload_length,
        "payload_crc32c": facts.payload_crc,
        "prompt_text": meta.prompt_text,
        "fingerprint": meta.fingerprint,
        "fingerprint_mode": Atom(meta.fingerprint_mode),
        "quant_type": Atom(meta.quant_type),
        "ctx_params_hash": meta.ctx_params_hash,
        "tokens": keys.decode_tokens(meta.tokens),
    }
    optional = {
        "hostname": meta.hostname,
        "erllama_version": meta.erllama_version,
        "save_reason_detail": meta.save_reason_detail,
        "engine": meta.engine,
        "grade": Atom(meta.grade),
    }
    return {**found, **{name: value for name, value in optional.items() if value}}


def _is_number(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_hash(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == keys.HASH_BYTES


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and all(type(token) is int for token in value)


def _is_bytes(value: object) -> bool:
    return isinstance(value, bytes)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_NEEDED: Final = (
    *("save_reason", "quant_bits", "fingerprint", "fingerprint_mode", "quant_type"),
    *("ctx_params_hash", "tokens", "context_size"),
)
_KINDS: Final[dict[str, Callable[[object], bool]]] = {
    "save_reason": kvc.REASONS.__contains__,
    "quant_bits": _is_number,
    "fingerprint": _is_hash,
    "fingerprint_mode": kvc.MODES.__contains__,
    "quant_type": _is_text,
    "ctx_params_hash": _is_hash,
    "tokens": _is_tokens,
    "context_size": _is_number,
    "creation_time": _is_number,
    "last_used_time": _is_number,
    "hit_count": _is_number,
    "prompt_text": _is_bytes,
    "hostname": _is_bytes,
    "erllama_version": _is_bytes,
    "save_reason_detail": _is_bytes,
    "engine": _is_bytes,
    "grade": _is_text,
}
