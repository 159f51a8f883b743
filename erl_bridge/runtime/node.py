"""A node: everything together.

Threads
    A node lives in one event loop.  Methods marked *any thread* may be called from
    anywhere; what they do to the wire happens in the loop, in the order each thread asked
    for it.  The others, and everything async, belong into the loop
    (:class:`erl_bridge.runtime.thread.NodeThread` brings calls there).

Trust
    Who holds the cookie is a peer; what a peer may do is what ``apply`` serves, what
    registered names and processes take, and nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup

from erl_bridge.etf import Atom, Pid, Reference, encode
from erl_bridge.net.connection import Connection
from erl_bridge.net.endpoint import Endpoint
from erl_bridge.net.epmd_client import default_epmd_port
from erl_bridge.net.hosts import LOOPBACK, full_name
from erl_bridge.proto.names import check_node_name
from erl_bridge.runtime.calls import ApplyHandler, CallContext
from erl_bridge.runtime.client import Client
from erl_bridge.runtime.cookie import cookie_bytes, read_cookie
from erl_bridge.runtime.dispatch import Dispatch
from erl_bridge.runtime.errors import Undef
from erl_bridge.runtime.gen import GenHandler, GenServer
from erl_bridge.runtime.inbox import Inbox
from erl_bridge.runtime.limits import NodeLimits
from erl_bridge.runtime.monitors import Monitors
from erl_bridge.runtime.outbound import Outbound
from erl_bridge.runtime.peer import Peer
from erl_bridge.runtime.process import NOCONNECTION, OnDown, OnMessage, OnSignal, Process
from erl_bridge.runtime.services import GlobalNameServer, NetKernel, Rex

__all__ = ("Destination", "Node")

log = logging.getLogger(__name__)

Destination = Pid | Atom | tuple[Atom, Atom] | Process
"""A process, a name registered here, or a name and the node it is registered on."""

PeerListener = Callable[[str, bool, str], object]


def _serves_nothing(_context: CallContext, module: str, function: str, args: list[Any]) -> Any:
    raise Undef(module, function, args)


class Node:
    """A distribution node.  Use it as an async context manager.

    :param name: ``x`` or ``x@host``.  Without a host part this machine's short name is
        taken; a host part with a dot makes it a node with long names.
    :param cookie: the shared secret; by default that of ``~/.erlang.cookie``.
    :param hidden: stay out of ``nodes()`` and ``global`` of peers.
    :param listen_host: address to listen on.
    :param port: port to listen on, 0 for a free one.
    :param epmd_port: by default ``ERL_EPMD_PORT``, or 4369.
    :param embedded_epmd: serve an epmd of our own where none answers.
    :param apply: what peers may call, see :mod:`erl_bridge.runtime.calls`.
    :raises ValueError: the name cannot be a node's, or the cookie cannot be used.
    """

    def __init__(
        self,
        name: str,
        *,
        cookie: str | bytes | None = None,
        hidden: bool = True,
        listen_host: str = LOOPBACK,
        port: int = 0,
        epmd_port: int | None = None,
        embedded_epmd: bool = True,
        apply: ApplyHandler | None = None,
        limits: NodeLimits | None = None,
    ) -> None:
        self.name = full_name(name)
        check_node_name(self.name)
        self.hidden = hidden
        self.limits = limits or NodeLimits()
        self.apply: ApplyHandler = apply or _serves_nothing
        self.endpoint = Endpoint(
            self,
            self.name,
            cookie_bytes(read_cookie() if cookie is None else cookie),
            hidden=hidden,
            listen_host=listen_host,
            port=port,
            epmd_port=default_epmd_port() if epmd_port is None else epmd_port,
            embedded_epmd=embedded_epmd,
            limits=self.limits.net,
        )
        self.client = Client(self)
        self.monitors = Monitors(self)
        self._atom = Atom(self.name)
        self._dispatch = Dispatch(self)
        self._outbound = Outbound(self)
        self._peers: dict[str, Peer] = {}
        self._processes: dict[tuple[int, int], Process] = {}
        self._names: dict[str, Process] = {}
        self._listeners: list[PeerListener] = []
        self._pids = itertools.count(64)
        self._refs = itertools.count(1)
        # References of a former life with the same creation must not match ours.
        self._salt = secrets.randbits(32)
        self._running: set[asyncio.Task[None]] = set()
        self._inbox: Inbox | None = None
        self._tasks: TaskGroup | None = None
        self._process: Process | None = None

    def __repr__(self) -> str:
        state = "running" if self._inbox is not None else "not running"
        return f"<Node {self.name} {state}, {len(self._peers)} peers>"

    # -- life -----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Listen and register.

        :raises erl_bridge.net.errors.NameTaken: a living node has our name.
        :raises erl_bridge.net.errors.EpmdError: no epmd, and none could be started.
        :raises OSError: the address cannot be listened on.
        """
        if self._tasks is not None:
            raise RuntimeError(f"{self.name} was started before: a node has one life")
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        try:
            self._inbox = Inbox()
            await self.endpoint.start(self._tasks)
        except BaseException:
            await self._end(None)
            raise
        self._process = self.spawn_process(self.client.message)
        self.register_name("net_kernel", NetKernel())
        self.register_name("rex", Rex(self))
        if not self.hidden:
            self.register_name("global_name_server", GlobalNameServer(self))
        await self.endpoint.accept()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Close everything: connections, registration, running calls."""
        return await self._end(exc)

    async def _end(self, exc: BaseException | None) -> bool | None:
        with anyio.CancelScope(shield=True):
            if self._inbox is not None:
                self._inbox.close()
            await self.endpoint.stop()
            running = list(self._running)
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)
        if self._tasks is None:
            return None
        self._tasks.cancel_scope.cancel()
        # A cancellation may be the group's own; any other error goes on as it is, while the
        # group would wrap it.
        if isinstance(exc, anyio.get_cancelled_exc_class()):
            return await self._tasks.__aexit__(type(exc), exc, exc.__traceback__)
        await self._tasks.__aexit__(None, None, None)
        return None

    # -- identity; any thread ----------------------------------------------------------------

    @property
    def process(self) -> Process:
        """The process that speaks for the node itself."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self.endpoint.port

    def make_ref(self) -> Reference:
        """Return a reference nobody has seen."""
        n = next(self._refs)
        return Reference(
            self._atom,
            self.endpoint.creation,
            (n & 0x3FFFF, (n >> 18) & 0xFFFFFFFF, self._salt),
        )

    def nodes(self, *, hidden: bool = True) -> list[str]:
        """Return the connected peers, with or without hidden ones."""
        return [peer.name for peer in list(self._peers.values()) if hidden or not peer.hidden]

    def backlog(self, name: str) -> int:
        """Return how many bytes to a peer are unsent: what a stream can slow down by."""
        peer = self._peers.get(name)
        return peer.connection.backlog if peer is not None else 0

    # -- processes and names; any thread -----------------------------------------------------

    def spawn_process(
        self,
        on_message: OnMessage | None = None,
        on_exit: OnSignal | None = None,
        *,
        on_exit_request: OnSignal | None = None,
        handler: GenHandler | None = None,
    ) -> Process:
        """Make a process that peers can send to, link with, monitor and ask to exit.

        :param on_message: called with each message.
        :param on_exit: called with (pid, reason) when a linked process exits.
        :param on_exit_request: called with (pid, reason) when a peer does ``exit/2``.
        :param handler: serves gen calls, casts and messages instead of ``on_message``.
        """
        if self._inbox is None:
            raise RuntimeError(f"{self.name} is not running")
        n = next(self._pids)
        pid = Pid(self._atom, n & 0x0FFFFFFF, n >> 28, self.endpoint.creation)
        process = Process(self, pid, on_message, on_exit, on_exit_request)
        if handler is not None:
            limit = self.limits.max_requests_per_peer
            process.server = GenServer(self, process, handler, limit)
        self._processes[pid.id, pid.serial] = process
        return process

    def register_name(self, name: str, target: GenHandler | Process) -> Process:
        """Register a process, or a handler with a process of its own, under a name.

        :raises ValueError: the name is taken, or the process has one.
        """
        if name in self._names:
            raise ValueError(f"the name {name!r} is registered already")
        process = self.spawn_process(handler=target) if isinstance(target, GenHandler) else target
        if process.name is not None:
            raise ValueError(f"{process!r} is registered as {process.name!r} already")
        process.name = name
        self._names[name] = process
        return process

    def unregister_name(self, name: str) -> None:
        """Free a name.  Its process lives on; unknown names are no error."""
        process = self._names.pop(name, None)
        if process is not None:
            process.name = None

    def whereis(self, name: str) -> Process | None:
        """Return the process registered under a name."""
        return self._names.get(name)

    def registered(self) -> list[str]:
        """Return the registered names."""
        return list(self._names)

    def find(self, pid: Pid) -> Process | None:
        """Return our living process with this pid."""
        process = self._processes.get((pid.id, pid.serial))
        return process if process is not None and process.pid == pid else None

    # -- messages and monitors; any thread -----------------------------------------------------

    def send(self, to: Destination, term: Any, *, sender: Process | None = None) -> None:
        """Do ``To ! Term``: connect if needed, never block, say nothing if nobody is there.

        :raises erl_bridge.etf.EncodeError: the term has no external form.
        """
        self.send_encoded(to, encode(term), sender=sender)

    def send_encoded(
        self, to: Destination, payload: bytes, *, sender: Process | None = None
    ) -> None:
        """Do :meth:`send` with a term that is encoded already, version byte first."""
        target = to.pid if isinstance(to, Process) else to
        self.run_in_loop(self._outbound.message, target, payload, sender and sender.pid)

    def monitor(
        self, to: Destination, callback: OnDown, *, ref: Reference | None = None
    ) -> Reference:
        """Watch a process: ``callback(ref, to, reason)`` is called once, in the loop.

        The reason is ``noproc`` where there is no such process and ``noconnection`` where
        its node cannot be reached or goes away.
        """
        ref = ref or self.make_ref()
        target = to.pid if isinstance(to, Process) else to
        self.run_in_loop(self.monitors.add, ref, target, callback)
        return ref

    def demonitor(self, ref: Reference) -> None:
        """Take a monitor back; its callback is not called any more."""
        self.run_in_loop(self.monitors.remove, ref)

    def watch_peers(self, callback: PeerListener) -> Callable[[], None]:
        """Call ``callback(node, up, reason)`` in the loop whenever a peer comes or goes.

        :return: a function that ends this.
        """
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def disconnect(self, name: str) -> None:
        """Close the connection to a peer."""
        self.run_in_loop(self._disconnect, name)

    @property
    def in_loop(self) -> bool:
        """True in the thread of the node's event loop, while it runs."""
        return self._inbox is not None and self._inbox.here

    def run_in_loop(self, function: Callable[..., object], *args: Any) -> None:
        """Call ``function`` now if this is the loop's thread, else soon, there."""
        inbox = self._inbox
        if inbox is None:
            raise RuntimeError(f"{self.name} is not running")
        if inbox.here:
            function(*args)
        else:
            inbox.put(function, *args)

    # -- to other nodes; in the loop ---------------------------------------------------------

    async def connect(self, name: str) -> None:
        """Connect to a node.

        :raises erl_bridge.net.errors.NotConnected: with the reason in words.
        """
        await self.client.connect(full_name(name))

    async def ping(self, name: str, timeout: float | None = 10.0) -> bool:  # noqa: ASYNC109  # as in Erlang
        """Do ``net_adm:ping``."""
        return await self.client.ping(full_name(name), timeout)

    async def call(
        self,
        name: str,
        module: str,
        function: str,
        args: list[Any],
        timeout: float | None = None,  # noqa: ASYNC109  # as in Erlang
    ) -> Any:
        """Do ``erpc:call(Name, Module, Function, Args, Timeout)``.

        The function may or may not have been applied when this fails with ``noconnection``
        or ``timeout``.

        :raises ErlangError: throw, exit or error of the function; ``error`` with
            ``{erpc, Reason}`` when the call itself failed, as in Erlang.
        """
        return await self.client.call(full_name(name), module, function, args, timeout)

    async def gen_call(
        self,
        to: Pid | tuple[Atom, Atom],
        request: Any,
        timeout: float | None = 5.0,  # noqa: ASYNC109  # as in Erlang
    ) -> Any:
        """Do ``gen_server:call``.

        :raises ErlangError: ``exit`` with the server's reason, ``noproc`` or ``timeout``.
        :raises erl_bridge.net.errors.NotConnected: its node cannot be reached.
        """
        return await self.client.gen_call(to, request, timeout)

    async def drain(self, name: str) -> None:
        """Wait while a peer has too many unsent bytes; returns at once when it is gone."""
        peer = self._peers.get(name)
        if peer is not None:
            await peer.connection.drain()

    # -- for the runtime; in the loop --------------------------------------------------------

    def peer(self, name: str) -> Peer | None:
        """Return a connected peer."""
        return self._peers.get(name)

    def start_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine that handles its own errors, at most until the node stops."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def forget_process(self, process: Process) -> None:
        """Remove an ended process."""
        self._processes.pop((process.pid.id, process.pid.serial), None)
        if process.name is not None:
            self._names.pop(process.name, None)

    def home(self, to: Pid | Atom | tuple[Atom, Atom]) -> str:
        """Return the node a destination is on."""
        if isinstance(to, Pid):
            return to.node.name
        return self.name if isinstance(to, Atom) else to[1].name

    def local(self, to: Pid | Atom | tuple[Atom, Atom]) -> Process | None:
        """Return the process a destination on this node stands for."""
        if isinstance(to, Pid):
            return self.find(to)
        return self.whereis(to.name if isinstance(to, Atom) else to[0].name)

    # -- EndpointOwner ------------------------------------------------------------------------

    def peer_up(self, connection: Connection) -> None:
        """Take a new peer in."""
        peer = self._peers[connection.name] = Peer(connection, self.limits.terms)
        connection.context = peer
        self._outbound.up(peer.name)
        for listener in list(self._listeners):
            _call(listener, peer.name, True, "")

    def peer_frame(self, connection: Connection, body: bytes) -> None:
        """Carry out a frame."""
        self._dispatch.frame(connection.context, body)

    def peer_down(self, connection: Connection, reason: str) -> None:
        """End everything that was between us and a peer."""
        peer: Peer = connection.context
        del self._peers[peer.name]
        for ref, process in list(peer.monitors.items()):
            process.drop_monitor(ref)
        for process, pid in list(peer.links):
            process.exit_signal(pid, NOCONNECTION)
        for request in list(peer.requests):
            if not request.kept:
                request.cancel()
        self.monitors.peer_gone(peer)
        for listener in list(self._listeners):
            _call(listener, peer.name, False, reason)

    # -- inside -------------------------------------------------------------------------------

    def _disconnect(self, name: str) -> None:
        connection = self.endpoint.connection(full_name(name))
        if connection is not None:
            connection.close("we disconnected")


def _call(callback: Callable[..., object], *args: Any) -> None:
    try:
        callback(*args)
    except Exception:
        log.exception("the callback %r failed", callback)
