"""What a model has done since it was loaded: sums that only grow.

A request is added when it is over, not with each token; what running ones have done so
far is added to what is read.  The lock is taken at the end of a request and by readers:
so each request is counted once, and no sum ever falls.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erllama_py._engine.request import Request

__all__ = ("Tally",)


class Tally:
    """One model's sums."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: Counter[str] = Counter()
        self._hits: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        self.starts = 0
        """How often its process has come up."""

    def note(self, request: Request) -> None:
        """Add a request that is over; once."""
        with self._lock:
            if request.tallied or not request.over:
                return
            request.tallied = True
            self._ends[_end_of(request)] += 1
            if request.admitted:
                self._hits[request.kind] += 1
            self._sums.update(_work_of(request))

    def read(self, running: Iterable[Request]) -> dict[str, Any]:
        """Return the sums: see :func:`erllama_py.api.model_totals`."""
        with self._lock:
            ends, hits, sums = Counter(self._ends), Counter(self._hits), Counter(self._sums)
            for request in running:  # a request leaves these after it was added
                if not request.tallied:
                    sums.update(_work_of(request))
        return {
            "starts": self.starts,
            "requests": dict(ends),
            "hits": {kind: hits[kind] for kind in ("exact", "partial", "sticky", "cold")},
            "prompt_tokens": sums["prompt_tokens"],
            "restored_tokens": sums["restored_tokens"],
            "generated_tokens": sums["generated_tokens"],
            "restores": sums["restores"],
            "restore_s": sums["restore_ns"] / 1e9,
            "prefill_s": sums["prefill_ms"] / 1e3,
            "generation_s": sums["generation_ms"] / 1e3,
        }


def _end_of(request: Request) -> str:
    if request.error is not None:
        return "error"
    return str(request.stats["finish_reason"]) if request.stats else "stop"


def _work_of(request: Request) -> dict[str, int]:
    """Return what a request has done; of a running one what is known."""
    # Before it is admitted, its tokens are being filled in.
    generated = len(request.tokens) - request.prompt_len if request.admitted else 0
    stats = request.stats or {}
    work = {
        "generated_tokens": generated,
        "prefill_ms": stats.get("prefill_ms", 0),
        "generation_ms": stats.get("generation_ms", 0),
    }
    if request.admitted and (generated or stats):  # or else its prompt is not done yet
        work["prompt_tokens"] = request.prompt_len
        work["restored_tokens"] = request.prefix_len
    if request.restore_ns is not None:
        work["restores"] = 1
        work["restore_ns"] = request.restore_ns
    return work
