"""Inference engines behind one contract (:mod:`erllama_py._backends.base`)."""

from __future__ import annotations

from erllama_py._backends.base import Backend, BackendConfig, BackendError

__all__ = ("open_backend",)


def open_backend(config: BackendConfig) -> Backend:
    """Load a model and make its context.  The calling thread becomes its engine thread.

    llama.cpp is imported here and not before: the core asks for backends it never runs.

    :raises BackendError: ``load_failed``, ``malformed_gguf``, ``context_failed``,
        ``oom``, ``badarg``, ``undef`` (no such backend).  Nothing is left behind.
    """
    if config.backend == "stub":
        from erllama_py._backends.stub import StubBackend  # noqa: PLC0415 (see above)

        return StubBackend(config)
    if config.backend == "llama":
        from erllama_py._backends.llama import LlamaBackend  # noqa: PLC0415 (see above)

        return LlamaBackend(config)
    raise BackendError("undef", f"there is no backend {config.backend!r}: llama and stub exist")
