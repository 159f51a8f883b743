"""A node in a thread of its own, for callers without an event loop: notebooks, scripts.

``start`` returns when the node is registered, ``stop`` when nothing of it is left: no
thread, no socket, no registration.  Both block, and both may be called from any thread
that is not the node's own.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from erl_bridge.etf import Pid
from erl_bridge.runtime.node import Destination, Node

__all__ = ("NodeThread",)

T = TypeVar("T")


class NodeThread:
    """Runs a node.  Methods of :attr:`node` marked *any thread* are called there.

    :param node: a node that was not started yet.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self._lock = threading.Lock()
        self._stack: ExitStack | None = None
        self._portal: BlockingPortal | None = None

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

    @property
    def running(self) -> bool:
        """True between :meth:`start` and :meth:`stop`."""
        return self._portal is not None

    def start(self) -> None:
        """Start the node.

        :raises erl_bridge.net.errors.NameTaken: a living node has our name.
        :raises erl_bridge.net.errors.EpmdError: no epmd, and none could be started.
        :raises OSError: the address cannot be listened on.
        :raises RuntimeError: it was started before.
        """
        with self._lock:
            if self._portal is not None:
                raise RuntimeError(f"{self.node.name} is running already")
            with ExitStack() as stack:
                portal = stack.enter_context(
                    start_blocking_portal("asyncio", name=f"erl_bridge {self.node.name}")
                )
                stack.enter_context(portal.wrap_async_context_manager(self.node))
                self._portal = portal
                self._stack = stack.pop_all()

    def stop(self) -> None:
        """Stop the node; a node that does not run is no error.

        :raises RuntimeError: called in the node's own thread, which would wait for itself.
        """
        if self.node.in_loop:
            raise RuntimeError(f"{self.node.name} cannot be stopped from one of its own callbacks")
        with self._lock:
            stack, self._stack, self._portal = self._stack, None, None
            if stack is not None:
                stack.close()

    def run(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run a coroutine function in the node's loop and return its result.

        :raises RuntimeError: the node does not run.
        """
        portal = self._portal
        if portal is None:
            raise RuntimeError(f"{self.node.name} is not running")
        return portal.call(function, *args)

    def connect(self, name: str) -> None:
        """Do :meth:`Node.connect`."""
        self.run(self.node.connect, name)

    def ping(self, name: str, timeout: float | None = 10.0) -> bool:
        """Do :meth:`Node.ping`."""
        return self.run(self.node.ping, name, timeout)

    def call(
        self,
        name: str,
        module: str,
        function: str,
        args: list[Any],
        timeout: float | None = None,
    ) -> Any:
        """Do :meth:`Node.call`."""
        return self.run(self.node.call, name, module, function, args, timeout)

    def send_wait(self, to: Destination, term: Any) -> None:
        """Send, and wait until the peer keeps up: what a fast stream calls now and then."""
        self.node.send(to, term)
        if isinstance(to, Pid):
            self.run(self.node.drain, to.node.name)
