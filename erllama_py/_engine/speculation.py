"""Speculation: tokens a small model drafted, compared with what a large one would say.

``verify`` is a request like others on its way to the end of its prefix: queued, restored
from the cache, prefilled.  It has exactness ``bit``, so it is alone in the context and
its prefix is computed in the same cuts every time: the same question has the same answer.
Then come the candidates, a few at a time, and nothing of them is kept.
"""

from __future__ import annotations

from erllama_py._backends.base import GUESSED_TOKENS, Backend, Row
from erllama_py._engine.job import Job

__all__ = ("compare",)


def compare(backend: Backend, job: Job, row: int) -> tuple[int, int | None]:
    """Return how many candidates the model would have said itself, and what follows them.

    The job's sequence holds its prefix; afterwards candidates, too.

    :param row: number of the last step's row with the prefix's last logits.
    :return: the leading candidates that are right, and the model's next token, ``None``
        where that ends generation.  It is no candidate then: one that ends generation
        is never accepted.
    :raises BackendError: the engine failed.
    """
    size = min(GUESSED_TOKENS, backend.info.n_ubatch)
    following = backend.likeliest(row)
    accepted = 0
    guesses: list[int] = []
    for candidate in job.candidates:
        if candidate != following or backend.is_eog(following):
            break
        at = accepted % size
        if not at:
            part = job.candidates[accepted : accepted + size]
            guesses = backend.guess(Row(job.slot, len(job.ledger) + accepted, part, logits=True))
        following = guesses[at]
        accepted += 1
    return accepted, None if backend.is_eog(following) else following
