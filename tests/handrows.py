"""Rows saved by hand, through the original's cache modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from erllama_py.errors import ErllamaError
from erllama_py.otp import cache, cache_key

META = {
    "save_reason": "finish",
    "quant_bits": 16,
    "fingerprint": b"\x07" * 32,
    "fingerprint_mode": "safe",
    "quant_type": "f16",
    "ctx_params_hash": b"\x08" * 32,
    "tokens": [1, 2, 3],
    "context_size": 4096,
}
META_KEY = cache_key.make(META)

KEY = b"k" * 32
"""Of a row that says nothing of itself."""
HEADER = bytes(48)
"""What is kept of its file."""

QUOTA = 1 << 20
"""Of the memory of the tests' cache."""


def reason(call: Callable[..., object], *args: object) -> object:
    """Return why a call is refused."""
    with pytest.raises(ErllamaError) as caught:
        call(*args)
    return caught.value.reason


def counted(name: str) -> int:
    """Return one of the 20 counters."""
    return cache.get_counters()[name]


def meta_of(*tokens: int, **more: object) -> dict[str, object]:
    """Return a build map of these tokens."""
    return {**META, "tokens": list(tokens), **more}


def key_of(*tokens: int) -> bytes:
    """Return the key of a row of these tokens."""
    return cache_key.make(meta_of(*tokens))


def rows_in(path: Path) -> list[str]:
    """Names of rows, finished or not; the engine's own files are there too."""
    return sorted(entry.name for entry in path.iterdir() if ".kvc" in entry.name)
