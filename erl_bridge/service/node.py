"""erllama's node: the core of this process, answering Erlang and Elixir.

Peers reach it three ways, all through the one table of functions:

* ``rpc:call``, ``erpc:call`` and their kin: ``erllama:complete(M, P)`` as it stands;
* ``gen_server:call({erllama, Node}, {complete, M, P})``: a function and its arguments as
  one tuple, for callers that speak ``gen_server``;
* ``gen_server:call(ModelPid, {complete, P})``: the same without the model.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from erl_bridge.etf import Atom
from erl_bridge.runtime import CallContext, Caller, ErlangError, GenHandler, Node, NodeThread
from erl_bridge.service.convert import Converter
from erl_bridge.service.handles import Handles
from erl_bridge.service.mfa import Table
from erl_bridge.service.models import ModelProcesses
from erl_bridge.service.others import OtherModules
from erl_bridge.service.roots import Roots
from erl_bridge.service.streams import Streams
from erllama_py.errors import ErllamaError
from erllama_py.types import ModelPid

__all__ = ("ErllamaNode",)

NAME = "erllama"
"""Registered name of the service, and the Erlang module it answers for."""


class ErllamaNode:
    """A running node that serves this process's models.  Use it as a context manager.

    :param name: ``x`` or ``x@host``; short names where the host has no dot.
    :param roots: folders below which remote callers may load models and adapters and keep
        rows; by default the working directory, and the model files in the usual caches.
    :param options: further arguments of :class:`erl_bridge.runtime.Node`: ``cookie``,
        ``hidden``, ``listen_host``, ``port``, ``epmd_port``.
    :raises ValueError: the name cannot be a node's, or the cookie cannot be used.
    """

    def __init__(self, name: str, *, roots: Iterable[Path] = (), **options: Any) -> None:
        self.node = Node(name, apply=self._apply, **options)
        self._thread = NodeThread(self.node)
        converter = Converter(self._model_of, self._pid_of)
        self._streams = Streams(self.node, converter)
        allowed = Roots(roots)
        self._table = Table(converter, self._streams, allowed, Handles(self.node))
        self._others = OtherModules(self.node, self._table, converter, self._streams, allowed)
        self._converter = converter
        self._models: ModelProcesses | None = None
        self._connections = 0
        self.node.watch_peers(self._count)

    @property
    def name(self) -> str:
        """The full name, ``x@host``."""
        return self.node.name

    @property
    def running(self) -> bool:
        """True between :meth:`start` and :meth:`stop`."""
        return self._thread.running

    def stats(self) -> dict[str, int]:
        """Return ``peers`` now and ``connections`` so far, and ``streams`` of peers now.

        Hidden peers count.  Any thread.
        """
        return {
            "peers": len(self.node.nodes()),
            "connections": self._connections,
            "streams": len(self._streams.references()),
        }

    def _count(self, _peer: str, up: bool, _reason: str) -> None:
        self._connections += up

    def start(self) -> None:
        """Listen and register; returns when peers can connect.

        :raises erl_bridge.net.errors.NameTaken: a living node has this name.
        :raises erl_bridge.net.errors.EpmdError: no epmd, and none could be started.
        :raises OSError: the address cannot be listened on.
        """
        self._thread.start()
        self._models = ModelProcesses(
            self.node,
            lambda model: _ModelServer(self._table, self._pid_of, self._stop_model, model),
            self._converter.to_term,
        )
        self.node.register_name(NAME, _Functions(self._table, self.stats))
        self._others.start()

    def stop(self) -> None:
        """Cancel the peers' streams and leave; models live on."""
        self._streams.close()
        self._others.close()
        if self._models is not None:
            self._models.close()
            self._models = None
        self._thread.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _apply(
        self, context: CallContext, module: str, function: str, args: list[Any]
    ) -> Awaitable[Any] | Any:
        return self._others.apply(context, module, function, args)

    def _model_of(self, pid: Any) -> Any:
        return self._models.model_of(pid) if self._models else None

    def _pid_of(self, model: Any) -> Any:
        return self._models.pid_of(model) if self._models else None

    def _stop_model(self, model: Any, reason: Any) -> None:
        if self._models:
            self._models.stop(model, reason)


class _Functions(GenHandler):
    """Serves ``{Function, Args...}``.

    :param stats: what it says of itself, numbers by their names.
    """

    def __init__(self, table: Table, stats: Callable[[], dict[str, int]]) -> None:
        self._table = table
        self._stats = stats

    def handle_call(self, request: Any, caller: Caller) -> Awaitable[Any] | Any:
        """Apply the function named by the request."""
        match request:
            case (Atom() as function, *args) if type(request) is tuple:  # a list is no request
                return self._serve(caller, function, args)
            case Atom():
                return self._serve(caller, request, [])
        return super().handle_call(request, caller)

    def state(self) -> Any:
        """Return how many peers there are, and streams of theirs."""
        return {Atom(name): number for name, number in self._stats().items()}

    def _serve(self, caller: Caller, function: Atom, args: list[Any]) -> Awaitable[Any] | Any:
        return self._table.apply(caller.context(), NAME, function.name, args)


class _ModelServer(_Functions):
    """Serves the same for one model, whose pid goes before a request's arguments."""

    def __init__(
        self,
        table: Table,
        pid_of: Callable[[ModelPid], Any],
        stop: Callable[[ModelPid, Any], None],
        model: ModelPid,
    ) -> None:
        super().__init__(table, dict)
        self._pid_of = pid_of
        self._stop = stop
        self._model = model

    def state(self) -> Any:
        """Return ``{Phase, Info}``, as the state of a ``gen_statem``."""
        try:
            info = self._table.info(self._model)
        except ErllamaError as error:  # it ends at this moment
            raise ErlangError("exit", Atom("noproc")) from error
        return info[Atom("phase")], info

    def handle_stop(self, reason: Any) -> Any:
        """Unload it."""
        self._stop(self._model, reason)
        return Atom("ok")

    def _serve(self, caller: Caller, function: Atom, args: list[Any]) -> Awaitable[Any] | Any:
        return super()._serve(caller, function, [self._pid_of(self._model), *args])
