"""``erllama_cache_bench``: how fast a tier server saves and loads."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from erllama_py.errors import BadCall
from erllama_py.otp import cache_disk_srv
from erllama_py.otp.cache_key import make

__all__ = ("save_load",)

_PARTS = {
    "fingerprint": b"\xaa" * 32,
    "quant_type": "f16",
    "ctx_params_hash": b"\xbb" * 32,
}


def save_load(server: Any, runs: int, payload_bytes: int) -> dict[str, int]:
    """Save and load so many rows of one token; they are deleted again.

    :return: ``save_us_avg``, ``load_us_avg`` (whole microseconds), ``runs``,
        ``payload_bytes``.
    :raises BadCall: ``function_clause``: not numbers from 1.
    """
    for number in (runs, payload_bytes):
        if type(number) is not int or number < 1:
            raise BadCall("function_clause", f"{number!r} is no number from 1")
    payload = b"x" * payload_bytes

    def save(run: int) -> None:
        meta = {
            **_PARTS,
            "save_reason": "cold",
            "quant_bits": 16,
            "fingerprint_mode": "safe",
            "tokens": [run],
            "context_size": 4096,
        }
        cache_disk_srv.save(server, meta, payload)

    try:
        save_ns = _total(save, runs)
        load_ns = _total(lambda run: cache_disk_srv.load(server, _key(run)), runs)
    finally:
        for run in range(1, runs + 1):
            cache_disk_srv.delete(server, _key(run))
    return {
        "save_us_avg": save_ns // runs // 1000,
        "load_us_avg": load_ns // runs // 1000,
        "runs": runs,
        "payload_bytes": payload_bytes,
    }


def _key(run: int) -> bytes:
    return make({**_PARTS, "tokens": [run]})


def _total(call: Callable[[int], object], runs: int) -> int:
    started = time.perf_counter_ns()
    for run in range(1, runs + 1):
        call(run)
    return time.perf_counter_ns() - started
