"""``erllama_registry``: model ids and the pids behind them.

The core registers models itself, when they are loaded and unloaded; nobody else can.
"""

from __future__ import annotations

from typing import Any

from erllama_py._engine.registry import core, id_text
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom, ModelPid

__all__ = ("all", "register_name", "send", "unregister_name", "whereis_name")


def whereis_name(model_id: Any) -> ModelPid | None:
    """Return the pid of a model's process; ``None`` for any term that is no loaded id."""
    if not isinstance(model_id, str | bytes) or isinstance(model_id, Atom):
        return None
    host = core().find(id_text(model_id))
    return host.pid if host else None


def all() -> list[tuple[str, ModelPid]]:  # noqa: A001 - the original's name
    """Return (id, pid) of every model that is up; do not rely on the order."""
    return [(host.id, pid) for host in core().hosts() if (pid := host.pid) is not None]


def send(model_id: Any, message: Any) -> ModelPid:
    """Send a message to a model's process, which takes none from Python and drops it.

    On the node it reaches what the pid stands for there: a call is answered.

    :return: the pid.
    :raises BadCall: ``{badarg, {Id, Message}}``: there is no such model.
    """
    pid = whereis_name(model_id)
    if pid is None:
        raise BadCall((Atom("badarg"), (model_id, message)), f"no model {model_id!r} is loaded")
    return pid


def register_name(model_id: Any, pid: Any) -> Atom:  # noqa: ARG001 - the original's arity
    """Refuse: an id is its model's, and is taken by loading one.

    :return: ``no``, always.
    """
    return Atom("no")


def unregister_name(model_id: Any) -> Any:
    """Refuse to take a loaded model's id away.

    :return: the id, where there is no such model.
    :raises ErllamaError: ``not_supported``, where there is: unload it instead.
    """
    if whereis_name(model_id) is not None:
        raise ErllamaError("not_supported", f"{model_id!r} is a loaded model's id", "unload it")
    return model_id
