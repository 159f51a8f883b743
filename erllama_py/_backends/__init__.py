"""Inference engines behind one contract (:mod:`erllama_py._backends.base`)."""

from __future__ import annotations

from collections.abc import Callable

from erllama_py._backends.base import Backend, BackendConfig, BackendError

__all__ = ("Log", "open_backend")

_LEVELS = {2: 20, 3: 30, 4: 40}
"""The engine's levels as :mod:`logging` has them; all else is for debugging."""

Log = Callable[[int, str], None]


def open_backend(config: BackendConfig, log: Log | None = None) -> Backend:
    """Load a model and make its context.  The calling thread becomes its engine thread.

    llama.cpp is imported here and not before: the core asks for backends it never runs.

    :param log: takes the engine's own log lines as (:mod:`logging` level, text), on any
        thread; it must return at once.
    :raises BackendError: ``load_failed``, ``malformed_gguf``, ``context_failed``,
        ``oom``, ``badarg``, ``undef`` (no such backend).  Nothing is left behind.
    """
    if config.backend == "stub":
        from erllama_py._backends.stub import StubBackend  # noqa: PLC0415 (see above)

        return StubBackend(config)
    if config.backend == "llama":
        from erllama_py._backends import native_log  # noqa: PLC0415 (see above)
        from erllama_py._backends.llama import LlamaBackend  # noqa: PLC0415 (see above)

        if log:
            native_log.set_listener(lambda line: log(_LEVELS.get(line.level, 10), line.text))
        return LlamaBackend(config)
    raise BackendError("undef", f"there is no backend {config.backend!r}: llama and stub exist")
