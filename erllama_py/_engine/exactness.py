"""What a warm run of a prompt has in common with a cold one, by their traces.

Positions are generated tokens.  The logits of two runs are comparable as long as both
have said the same: up to the first token that differs, and no further.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from erllama_py.types import Atom

if TYPE_CHECKING:
    from erllama_py._engine.request import Request

__all__ = ("compare",)


def compare(cold: Request, warm: Request) -> dict[str, Any]:
    """Compare two traced requests that are over; see :func:`erllama_py.api.verify_exact`."""
    said, again = cold.drawn, warm.drawn
    rows = list(zip(_rows(cold), _rows(warm), strict=False))
    positions = min(_common(said, again) + 1, len(rows))
    differing = [at for at in range(positions) if rows[at][0] != rows[at][1]]
    return {
        "equal": said == again and not differing,
        "same_tokens": said == again,
        "largest_difference": max((_difference(*rows[at]) for at in differing), default=0.0),
        "first_difference": differing[0] if differing else None,
        "positions": positions,
        "kind": Atom(warm.kind),
        "prefix_len": warm.prefix_len,
        "exactness": Atom(warm.exactness) if warm.exactness else None,
        "tier": Atom(warm.tier) if warm.tier else None,
    }


def _rows(request: Request) -> list[memoryview]:
    """Return the logits of each generated token."""
    trace, count = memoryview(request.trace or b""), len(request.drawn)
    if not trace or not count:
        return []
    size = len(trace) // count
    return [trace[at * size : (at + 1) * size] for at in range(count)]


def _common(one: array[int], other: array[int]) -> int:
    """Return how many tokens are the same from the front."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _difference(one: memoryview, other: memoryview) -> float:
    """Return the largest difference of two rows of float32."""
    # Half the time that importing the API takes; few programs verify anything.
    import numpy as np  # noqa: PLC0415

    a, b = (np.frombuffer(row, np.float32).astype(np.float64) for row in (one, other))
    with np.errstate(invalid="ignore"):  # an infinity less itself
        apart = np.where(a == b, 0.0, np.abs(a - b))
    return float(np.nan_to_num(apart, nan=np.inf).max())
