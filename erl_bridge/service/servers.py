"""The original's registered processes besides models and tier servers.

Nobody sends them requests by hand, but they are monitored, looked at with ``sys``, and the
supervisors are asked for their children.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from erl_bridge.etf import UNDEFINED, Atom
from erl_bridge.runtime import Caller, GenHandler, Node
from erl_bridge.runtime.system import NOT_SUPPORTED
from erl_bridge.service.served import Values
from erllama_py.otp import inflight, model_sup, registry, scheduler

__all__ = ("SERVERS", "SUPERVISORS", "UNKNOWN_CALL", "register_servers")

UNKNOWN_CALL: Final = (Atom("error"), Atom("unknown_call"))

_MODELS: Final = "erllama_model_sup"
_WORKER, _SUPERVISOR = Atom("worker"), Atom("supervisor")

SERVERS: Final[Mapping[str, Callable[[], Any]]] = {
    "erllama_cache_meta_srv": dict,
    "erllama_cache_ram": dict,
    "erllama_cache_writer": dict,
    "erllama_registry": registry.all,
    "erllama_inflight": inflight.queue_depth,
    "erllama_scheduler": scheduler.status,
}
"""What ``sys:get_state`` shows of each: who watches one in the original can do so here."""

SUPERVISORS: Final[Mapping[str, tuple[str, ...]]] = {
    "erllama_sup": (
        *("erllama_cache_sup", "erllama_registry", "erllama_inflight"),
        *(_MODELS, "erllama_scheduler"),
    ),
    "erllama_cache_sup": ("erllama_cache_meta_srv", "erllama_cache_ram", "erllama_cache_writer"),
    _MODELS: (),
}
"""The children of each in the order they were started in; those of the last are models."""


def register_servers(node: Node, values: Values) -> None:
    """Register the names of them all."""
    for name, read in SERVERS.items():
        node.register_name(name, _Server(values, read))
    for name in SUPERVISORS:
        node.register_name(name, _Supervisor(node, values, name))


class _Server(GenHandler):
    """A server whose requests are its module's affair."""

    def __init__(self, values: Values, read: Callable[[], Any]) -> None:
        self._values = values
        self._read = read

    def handle_call(self, request: Any, caller: Caller) -> Any:  # noqa: ARG002
        """Answer as it answers what it does not know."""
        return UNKNOWN_CALL

    def state(self) -> Any:
        """Return what its module says of it."""
        return self._values.to_term(self._read())


class _Supervisor(GenHandler):
    """Names its children; nobody changes them through it."""

    def __init__(self, node: Node, values: Values, name: str) -> None:
        self._node = node
        self._values = values
        self._name = name

    def handle_call(self, request: Any, caller: Caller) -> Any:  # noqa: ARG002
        """Serve ``which_children`` and ``count_children``."""
        match request:
            case Atom(name="which_children"):
                return self._children()
            case Atom(name="count_children"):
                kinds = [kind for _, _, kind, _ in self._children()]
                supervisors = kinds.count(_SUPERVISOR)
                return [
                    (Atom("specs"), 1 if self._name == _MODELS else len(kinds)),
                    (Atom("active"), len(kinds)),
                    (Atom("supervisors"), supervisors),
                    (Atom("workers"), len(kinds) - supervisors),
                ]
        return NOT_SUPPORTED

    def state(self) -> Any:
        """Return the children."""
        return self._children()

    def _children(self) -> list[tuple[Any, Any, Atom, list[Atom]]]:
        if self._name == _MODELS:
            children: list[Any] = self._values.to_term(model_sup.models())
            return children
        return [
            (
                Atom(name),
                process.pid if (process := self._node.whereis(name)) else UNDEFINED,
                _SUPERVISOR if name in SUPERVISORS else _WORKER,
                [Atom(name)],
            )
            for name in reversed(SUPERVISORS[self._name])
        ]
