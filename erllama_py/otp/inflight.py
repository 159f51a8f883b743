"""``erllama_inflight``: the live streams, and what each model last did.

Both tables are views of the core.  Nothing is put in by hand, so the original's
``register``, ``unregister``, ``obs_put`` and ``obs_delete`` refuse.
"""

from __future__ import annotations

from typing import Any, NoReturn

from erllama_py import api
from erllama_py._engine.registry import core, id_text
from erllama_py.errors import BadCall, ErllamaError, NotSupported
from erllama_py.types import Atom, ModelPid, Ref

__all__ = (
    "all",
    "lookup",
    "obs_delete",
    "obs_get",
    "obs_put",
    "queue_depth",
    "register",
    "unregister",
)


def lookup(ref: Any) -> ModelPid:
    """Return the model that serves a stream, be it admitted or queued.

    :raises ErllamaError: ``not_found``: it is over, or there never was one.
    """
    if isinstance(ref, Ref):
        for host in core().hosts():
            request, pid = host.request(ref.serial), host.pid
            if request and request.mode == "infer" and not request.over and pid:
                return pid
    raise ErllamaError("not_found", f"no live stream has the reference {ref!r}")


def all() -> list[tuple[Ref, ModelPid]]:  # noqa: A001 - the original's name
    """Return (reference, pid of the model) of every live stream, queued ones included."""
    return [
        (ref, pid)
        for host in core().hosts()
        if (pid := host.pid) is not None
        for ref in host.live_streams()
    ]


def queue_depth(model: ModelPid | None = None) -> int:
    """Return the number of admitted streams, of one model process or of all.

    :raises BadCall: ``function_clause``: not a :class:`~erllama_py.types.ModelPid`.
    """
    if model is None:
        return api.queue_depth()
    if not isinstance(model, ModelPid):
        raise BadCall("function_clause", f"a model process is named by its pid, not {model!r}")
    return sum(host.streams for host in core().hosts() if host.pid == model)


def obs_get(model_id: Any) -> tuple[str, Atom, int, Atom | None, int] | None:
    """Return what a model last did, or ``None`` if it is not loaded.

    :return: (id, phase, queued requests, kind of the latest cache hit or ``None``, tokens
        that it found).
    """
    if not isinstance(model_id, str | bytes) or isinstance(model_id, Atom):
        return None
    host = core().find(id_text(model_id))
    if host is None:
        return None
    hit = host.last_hit or {"kind": None, "prefix_len": 0}
    return host.id, Atom(host.phase), host.pending_len, hit["kind"], hit["prefix_len"]


def register(ref: Any, pid: Any) -> NoReturn:  # noqa: ARG001 - the original's arity
    """Refuse.

    :raises NotSupported: always, here and below.
    """
    raise NotSupported("erllama_inflight:register/2")


def unregister(ref: Any) -> NoReturn:  # noqa: ARG001 - the original's arity
    """Refuse; ``cancel`` ends a stream."""
    raise NotSupported("erllama_inflight:unregister/1")


def obs_put(model_id: Any, row: Any) -> NoReturn:  # noqa: ARG001 - the original's arity
    """Refuse."""
    raise NotSupported("erllama_inflight:obs_put/2")


def obs_delete(model_id: Any) -> NoReturn:  # noqa: ARG001 - the original's arity
    """Refuse."""
    raise NotSupported("erllama_inflight:obs_delete/1")
