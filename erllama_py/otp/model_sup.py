"""``erllama_model_sup``: models as children of a supervisor, in its raw shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erllama_py import api
from erllama_py._engine.registry import core, id_text
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom, ModelPid

__all__ = ("models", "start_model", "stop_model")

Child = tuple[None, ModelPid, Atom, list[Atom]]


def start_model(model_id: str | bytes, config: Mapping[str, Any]) -> ModelPid | None:
    """Load a model; return the pid of its process.

    ``None`` if that has ended already, and is being started again.

    :raises ErllamaError: ``{already_started, Pid}``; else as
        :func:`erllama_py.api.load_model`.
    """
    try:
        return _pid_of(api.load_model(model_id, config))
    except ErllamaError as error:
        if error.reason != "already_loaded":
            raise
        raise ErllamaError(
            (Atom("already_started"), _pid_of(model_id)), error.message, error.hint
        ) from error


def stop_model(model: Any) -> Atom:
    """Do :func:`erllama_py.api.unload`."""
    return api.unload(model)


def models() -> list[Child]:
    """Return ``{undefined, Pid, worker, [erllama_model]}`` of every live model process."""
    return [(None, pid, Atom("worker"), [Atom("erllama_model")]) for pid in api.models()]


def _pid_of(model_id: str | bytes) -> ModelPid | None:
    """Return the pid behind an id, if it is up."""
    host = core().find(id_text(model_id))
    return host.pid if host else None
