"""The embedding thread: embeddings are computed here, beside everything else.

They have a context of their own, and they take long: the control thread has cancellations
to pass on, the engine thread has streams to serve, so neither waits for one.  Questions
are answered in the order they came.  One that nobody waits for any more is stopped between
two pieces of its work, or not begun.

While requests run, an embedding takes only the cores that generation leaves over; alone
it takes them all.  A context that nothing asked for in a while is freed.
"""

from __future__ import annotations

import queue
from collections.abc import Callable

from erllama_py._backends.base import Backend, BackendError
from erllama_py._engine.channel import Sink
from erllama_py._engine.frames import Answer, Call, Refused
from erllama_py._engine.tokenbytes import unpack_tokens

__all__ = ("IDLE_S", "Embeddings")

IDLE_S = 30.0
"""How long the context of the last embedding is kept for another."""


class Embeddings:
    """Answers ``embed`` calls on a thread of its own, which runs :meth:`run`.

    :param crowded: whether generation computes just now.
    """

    def __init__(
        self, backend: Backend, out: Sink, crowded: Callable[[], bool], *, idle_s: float = IDLE_S
    ) -> None:
        self._backend = backend
        self._out = out
        self._crowded = crowded
        self._idle_s = idle_s
        self._asked: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._wanted: set[int] = set()
        """The questions that are to be answered with a vector.  Its operations are atomic."""
        self._closed = False

    def ask(self, call: Call) -> None:
        """Queue a question; :class:`Answer` or :class:`Refused` follows."""
        self._wanted.add(call.id)
        self._asked.put(call)

    def cancel(self, number: int) -> None:
        """Refuse a question as ``cancelled``; unknown and answered ones are ignored."""
        self._wanted.discard(number)

    def close(self) -> None:
        """End the thread after the embedding that is running."""
        self._closed = True
        self._asked.put(None)

    def run(self) -> None:
        """Answer until closed."""
        idle_s = None
        while not self._closed:
            try:
                call = self._asked.get(timeout=idle_s)
            except queue.Empty:
                self._backend.drop_embedder()
                idle_s = None
                continue
            if call is not None:
                self._answer(call)
                idle_s = self._idle_s

    def _answer(self, call: Call) -> None:
        def crowded() -> bool:
            if call.id not in self._wanted:
                raise BackendError("cancelled", "nobody waits for this embedding any more")
            return self._crowded()

        try:
            crowded()
            vector = self._backend.embed(unpack_tokens(call.data), crowded)
        except BackendError as error:
            self._out.put(Refused(call.id, error.reason, error.detail))
        else:
            self._out.put(Answer(call.id, vector))
        self._wanted.discard(call.id)
