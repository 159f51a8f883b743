"""The pids that stand for model processes, so that peers can monitor and link them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import anyio.to_thread

from erl_bridge.etf import Atom, Pid
from erl_bridge.runtime import GenHandler, Node, Process
from erllama_py import api
from erllama_py.types import ModelPid

__all__ = ("ModelProcesses",)

_SHUTDOWN: Final = Atom("shutdown")
_NORMAL: Final = Atom("normal")
_KILL: Final = Atom("kill")
_KILLED: Final = Atom("killed")


class ModelProcesses:
    """One process of the node for each life of a model process.

    A peer's monitor fires, and its link breaks, when that life ends: on unload with
    ``shutdown``, after a crash with what ended it.  ``exit(Pid, Reason)`` of a peer unloads
    the model, unless the reason is ``normal``: so a supervisor that started one ends it.
    ``gen_statem:stop`` does, too, with any reason.  What they are told is then that reason,
    ``killed`` for ``kill``.

    :param handler_of: what a model's process serves as ``gen_server`` calls.
    :param reason_term: the term of an exit reason.
    """

    def __init__(
        self,
        node: Node,
        handler_of: Callable[[ModelPid], GenHandler],
        reason_term: Callable[[Any], Any],
    ) -> None:
        self._node = node
        self._handler_of = handler_of
        self._reason_term = reason_term
        self._lock = threading.Lock()
        self._by_model: dict[ModelPid, Process] = {}
        self._by_pid: dict[Pid, ModelPid] = {}
        self._reasons: dict[ModelPid, Any] = {}
        """Of models that a peer has asked to end."""
        self._forget = api.watch(self._watch)
        for pid in api.models():
            self._add(pid)

    def close(self) -> None:
        """End them all; models live on."""
        self._forget()
        with self._lock:
            processes = list(self._by_model.values())
            self._by_model.clear()
            self._by_pid.clear()
        for process in processes:
            process.exit(_SHUTDOWN)

    def model_of(self, pid: Pid) -> ModelPid | None:
        """Return the model a pid stands for, dead ones included."""
        return self._by_pid.get(pid)

    def pid_of(self, model: ModelPid) -> Pid:
        """Return the pid that stands for a model."""
        return self._add(model).pid

    def stop(self, model: ModelPid, reason: Any) -> None:
        """Unload a model, soon; its monitors are told this reason.  In the loop."""
        self._reasons[model] = reason
        self._node.start_task(_unloaded(model))

    def _watch(self, what: str, _model_id: str, model: ModelPid, reason: Any) -> None:
        # Made here if need be: whoever asks for its pid later must get that of a process
        # that has ended, not of one that never will.
        process = self._add(model)
        if what == "down":
            asked = model in self._reasons
            process.exit(self._reasons.pop(model) if asked else self._reason_term(reason))

    def _add(self, model: ModelPid) -> Process:
        with self._lock:
            process = self._by_model.get(model)
            if process is None:
                process = self._node.spawn_process(
                    handler=self._handler_of(model),
                    on_exit_request=lambda _, reason: self._asked(model, reason),
                )
                self._by_model[model] = process
                self._by_pid[process.pid] = model
            return process

    def _asked(self, model: ModelPid, reason: Any) -> None:
        """Hear ``exit/2``; what comes of it is told as any end of a model is."""
        if reason is not _NORMAL:
            self.stop(model, _KILLED if reason is _KILL else reason)


async def _unloaded(model: ModelPid) -> None:
    # By its pid: where that life has ended, and another has begun, nothing happens.
    await anyio.to_thread.run_sync(api.unload, model)
