"""The few functions of ``erlang`` that peers may ask of this node: facts about its processes.

A model's pid is of another node for those who hold it, where ``is_process_alive/1`` fails
with ``badarg``; what is usual then is ``rpc:call(node(Pid), erlang, is_process_alive,
[Pid])``.  Nothing here changes anything, and everything else of ``erlang`` is ``undef``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from erl_bridge.etf import FALSE, TRUE, UNDEFINED, Atom, Pid
from erl_bridge.runtime import ErlangError, Node

__all__ = ("FACTS", "fact")


def _is_process_alive(node: Node, pid: Any) -> Any:
    if not isinstance(pid, Pid) or pid.node.name != node.name:
        raise ValueError("not a pid of this node")
    return FALSE if node.find(pid) is None else TRUE


def _whereis(node: Node, name: Any) -> Any:
    if not isinstance(name, Atom):
        raise ValueError("not a name")  # noqa: TRY004  # badarg either way
    process = node.whereis(name.name)
    return UNDEFINED if process is None else process.pid


FACTS: Final[Mapping[tuple[str, int], Callable[..., Any]]] = {
    ("is_process_alive", 1): _is_process_alive,
    ("node", 0): lambda node: Atom(node.name),
    ("registered", 0): lambda node: [Atom(name) for name in node.registered()],
    ("whereis", 1): _whereis,
}
"""By (function, arity)."""


def fact(node: Node, function: str, args: list[Any]) -> Any:
    """Return one.

    :raises ErlangError: ``error:badarg``, as it does there.
    """
    try:
        return FACTS[function, len(args)](node, *args)
    except ValueError as error:
        where = (Atom("erlang"), Atom(function), args, list[Any]())
        raise ErlangError("error", Atom("badarg"), [where]) from error
