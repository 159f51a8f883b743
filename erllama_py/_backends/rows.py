"""The checks of a batch that every backend makes before it computes anything.

llama.cpp answers a batch over its limits with ``GGML_ASSERT``, which ends the process;
the stub makes the same checks so that tests of the scheduler against it are honest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from erllama_py._backends.base import BackendError, Row, StepFailed

__all__ = ("check_row_number", "check_rows")


def check_rows(
    rows: Sequence[Row], *, n_batch: int, n_seq_max: int, length: Callable[[int], int]
) -> int:
    """Check sequences, positions and size of a batch; return its number of tokens.

    :param length: gives a sequence's present length.
    :raises StepFailed: ``empty_batch``, ``batch_overflow``, ``bad_sequence`` or
        ``bad_position``, with the row in the detail.
    """
    total = 0
    seen: set[int] = set()
    for number, row in enumerate(rows):
        if not 0 <= row.seq < n_seq_max or row.seq in seen:
            raise StepFailed(
                "bad_sequence",
                f"row {number} names sequence {row.seq}: sequences are 0 to {n_seq_max - 1}, "
                "one row each",
            )
        seen.add(row.seq)
        if row.pos != length(row.seq):
            raise StepFailed(
                "bad_position",
                f"row {number} starts at {row.pos}, but sequence {row.seq} has "
                f"{length(row.seq)} tokens",
            )
        count = len(row.tokens)
        if not count:
            raise StepFailed("empty_batch", f"row {number} has no tokens")
        total += count
    if not total:
        raise StepFailed("empty_batch", "the batch has no rows")
    if total > n_batch:
        raise StepFailed("batch_overflow", f"{total} tokens in a batch of at most {n_batch}")
    return total


def check_row_number(row: int, outputs: Sequence[int]) -> int:
    """Return what ``outputs`` holds for a row whose logits were asked for.

    :param outputs: one entry per row of the last step; negative: not asked for.
    :raises BackendError: ``badarg``.
    """
    if not 0 <= row < len(outputs):
        raise BackendError("badarg", f"the last step had no row {row}")
    if outputs[row] < 0:
        raise BackendError("badarg", f"logits of row {row} were not asked for")
    return outputs[row]
