"""``erllama_cache_kvc``: the file format of rows.  See :mod:`erllama_py._cache.kvc`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erllama_py._cache import kvc
from erllama_py.otp._maps import info_of, meta_of

__all__ = ("build", "parse", "parse_meta")


def build(meta: Mapping[str, Any], payload: bytes) -> bytes:
    """Return what comes before a payload in its file.

    :param meta: as in the original; times, host name and version are filled in.
    :raises ErllamaError: ``{missing_key, K}``.
    """
    return kvc.prefix(meta_of(meta), payload)


def parse(data: bytes, expected_key: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the info map and the payload of a whole file, fully checked.

    :raises ErllamaError: one of the original's reasons.
    """
    parsed = kvc.parse(data, expected_key)
    return info_of(parsed.facts), bytes(parsed.payload)


def parse_meta(data: bytes) -> dict[str, Any]:
    """Return the info map of a whole file without checking payload and key.

    :raises ErllamaError: one of the original's reasons.
    """
    return info_of(kvc.parse_meta(data))
