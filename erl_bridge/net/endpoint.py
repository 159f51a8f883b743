"""The network half of a node: its listener, its registration, its connections.

Who wins when two nodes dial each other
    The handshake's status word settles it (:mod:`erl_bridge.proto.handshake`).  What we
    add is that nothing is torn down for a stranger: a connection that is up, and a dial
    that is under way, are only given up when the other connection has shown the cookie.
    A dial answered ``nok`` waits for the peer's own; a dial to a peer whose handshake is
    already coming in waits for that one.

Everything here runs in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from dataclasses import dataclass, field
from typing import Protocol

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from erl_bridge.net import epmd_client, fork, hosts
from erl_bridge.net.connection import Connection, Phase
from erl_bridge.net.errors import EpmdError, NotConnected
from erl_bridge.net.limits import NetLimits
from erl_bridge.proto import epmd
from erl_bridge.proto.errors import LocalProtocolError
from erl_bridge.proto.flags import offered
from erl_bridge.proto.handshake import (
    Event,
    Handshake,
    LocalNode,
    NameRequested,
    PeerNamed,
    Status,
    StillAlive,
)
from erl_bridge.proto.names import is_long, split_node

__all__ = ("Endpoint", "EndpointOwner")

log = logging.getLogger(__name__)

#: Another process may take the port on the second address between our two binds.
BIND_ATTEMPTS = 5

#: Turns of the event loop between its accept and :meth:`Endpoint.made`, one for its task
#: and one for the transport's first callback.  Until then only the loop knows the socket,
#: and a node that stopped would leave the peer waiting for a handshake.
ACCEPT_TURNS = 2

#: Peers without our cookie that the log names; a name costs a stranger nothing.
MAX_TOLD = 64

_BACKLOG = 128


class EndpointOwner(Protocol):
    """Who hears of peers.  Called in the loop; must not block."""

    def peer_up(self, connection: Connection) -> None:
        """A peer is connected and authenticated."""

    def peer_frame(self, connection: Connection, body: bytes) -> None:
        """A peer sent a frame.

        :raises erl_bridge.proto.errors.ProtocolError: close its connection.
        """

    def peer_down(self, connection: Connection, reason: str) -> None:
        """A peer that was up is not any more."""


@dataclass(slots=True)
class _Dial:
    """One attempt to connect, shared by everyone who waits for it."""

    done: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    error: NotConnected | None = None


class Endpoint:
    """Listens, dials, and keeps at most one connection per peer.

    :param name: the full node name.
    :param listen_host: address to listen on; 127.0.0.1 stands for every loopback address
        this node's host part resolves to.
    :param embedded_epmd: serve an epmd of our own where none answers.
    """

    def __init__(
        self,
        owner: EndpointOwner,
        name: str,
        cookie: bytes,
        *,
        hidden: bool,
        listen_host: str,
        port: int,
        epmd_port: int,
        embedded_epmd: bool,
        limits: NetLimits,
    ) -> None:
        self.name = name
        self.port = port
        self.epmd_port = epmd_port
        self.limits = limits
        self.creation = 0
        self._owner = owner
        self._cookie = cookie
        self._hidden = hidden
        self._listen_host = listen_host
        self._embedded_epmd = embedded_epmd
        self._local, self._host = split_node(name)
        self._us: LocalNode | None = None
        self._up: dict[str, Connection] = {}
        self._all: set[Connection] = set()
        self._incoming: dict[str, Connection] = {}
        self._told: set[str] = set()
        self._dials: dict[str, _Dial] = {}
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._tasks: TaskGroup | None = None
        self._registrar: epmd_client.Registrar | None = None

    # -- life -----------------------------------------------------------------------------

    async def start(self, tasks: TaskGroup) -> None:
        """Bind, register with epmd, and keep the registration up in ``tasks``.

        Nothing is accepted before :meth:`accept`; peers that are early wait.

        :raises OSError: the address cannot be listened on.
        :raises erl_bridge.net.errors.EpmdError: registration failed.
        """
        self._tasks = tasks
        found, warning = await hosts.listen_addresses(self._host, self._listen_host)
        if warning:
            log.warning("%s", warning)
        # Bound first, since epmd wants the port; accepted last, since the handshake wants
        # the creation epmd gives.
        self._sockets = _bind(found, self.port)
        for sock in self._sockets:
            fork.hold(sock.fileno())
        self.port = self._sockets[0].getsockname()[1]
        await self._register(tasks, found)
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            server = await loop.create_server(self._accepted, sock=sock, start_serving=False)
            self._servers.append(server)
        self._sockets.clear()
        tasks.start_soon(self._tick)

    async def accept(self) -> None:
        """Begin to take connections."""
        for server in self._servers:
            await server.start_serving()

    async def _register(self, tasks: TaskGroup, addresses: list[str]) -> None:
        entry = epmd.Registration(
            self._local, self.port, epmd.HIDDEN if self._hidden else epmd.VISIBLE
        )
        self._registrar = epmd_client.Registrar(
            entry,
            self.epmd_port,
            tasks,
            embedded_on=hosts.with_loopback(addresses) if self._embedded_epmd else (),
        )
        self.creation = await self._registrar.register()
        flags = offered(hidden=self._hidden)
        self._us = LocalNode(self.name, self.creation, flags, self._cookie)

    async def stop(self) -> None:
        """Close the listener and every connection, and wait until their sockets are gone."""
        for sock in self._sockets:
            fork.release(sock.fileno())
            sock.close()
        await self._stop_accepting()
        for server in self._servers:
            for listening in server.sockets:
                fork.release(listening.fileno())
            server.close()
        self._servers.clear()
        for dial in list(self._dials.values()):
            dial.scope.cancel()
        for connection in list(self._all):
            connection.close("the node was stopped")
        while self._all:
            await next(iter(self._all)).lost.wait()

    async def _stop_accepting(self) -> None:
        """Accept nothing more, and wait for what is accepted to be a connection of ours.

        A server that is closed first makes asyncio drop such a socket, open as it is.
        """
        loop = asyncio.get_running_loop()
        for server in self._servers:
            for listening in server.sockets:
                loop.remove_reader(listening.fileno())
        for _ in range(ACCEPT_TURNS):
            await anyio.lowlevel.checkpoint()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await anyio.sleep(self.limits.net_ticktime / 4)
            now = loop.time()
            for connection in list(self._up.values()):
                connection.check(now)

    # -- connections ---------------------------------------------------------------------

    @property
    def embedded_epmd_running(self) -> bool:
        """True while the epmd on this machine is ours."""
        return self._registrar is not None and self._registrar.server is not None

    def connection(self, node: str) -> Connection | None:
        """Return the connection to a node if it is up."""
        return self._up.get(node)

    async def connect(self, node: str) -> Connection:
        """Return the connection to a node, dialling it where there is none.

        :raises NotConnected: with the reason in words.
        """
        found = self._up.get(node)
        if found is not None:
            return found
        dial = self._dials.get(node)
        if dial is None:
            if self._tasks is None:
                raise NotConnected(node, "our node is not running")
            dial = self._dials[node] = _Dial()
            self._tasks.start_soon(self._dial, node, dial)
        await dial.done.wait()
        found = self._up.get(node)
        if found is None:
            raise dial.error or NotConnected(node, "the connection closed at once")
        return found

    async def _dial(self, node: str, dial: _Dial) -> None:
        timeout = self.limits.handshake_timeout
        connection: Connection | None = None
        try:
            with dial.scope, anyio.fail_after(timeout):
                coming = self._incoming.get(node)
                if coming is not None:
                    await coming.settled.wait()
                if node not in self._up:
                    connection = await self._open(node)
                    await connection.settled.wait()
                    if connection.refused == Status.NOK.value:
                        await dial.done.wait()  # the peer's own dial ends it: see opened()
                    if connection.phase is not Phase.UP:
                        dial.error = NotConnected(node, connection.close_reason)
        except TimeoutError:
            dial.error = NotConnected(node, f"no answer within {timeout:g} s")
        except (OSError, LocalProtocolError) as error:
            dial.error = NotConnected(node, str(error))
        finally:
            if connection is not None and connection.phase is Phase.HANDSHAKE:
                connection.close("the attempt was given up", abort=True)
            if self._dials.get(node) is dial:
                del self._dials[node]
            dial.done.set()

    async def _open(self, node: str) -> Connection:
        if self._us is None:
            raise LocalProtocolError("our node is not running")
        handshake = Handshake.connect(self._us, node)
        address, port = await self._locate(node)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self, handshake, self.limits, accepted=False), address, port
        )
        return connection

    async def _locate(self, node: str) -> tuple[str, int]:
        local, host = split_node(node)
        candidates = [hosts.LOOPBACK] if host == self._host else []
        candidates += [a for a in await hosts.addresses(host) if a not in candidates]
        if not candidates:
            raise EpmdError(f"the host name {host!r} is unknown")
        error: EpmdError | None = None
        for address in candidates:
            try:
                entry = await epmd_client.lookup(address, self.epmd_port, local)
            except EpmdError as failed:
                error = failed
                continue
            if entry is not None:
                return address, entry.port
        raise error or EpmdError(f"epmd on {host} knows no node {local!r}")

    def _accepted(self) -> Connection:
        if self._us is None:
            raise LocalProtocolError("a connection before our node was registered")
        return Connection(self, Handshake.accept(self._us), self.limits, accepted=True)

    # -- ConnectionOwner ---------------------------------------------------------------

    def made(self, connection: Connection) -> None:
        """Count a socket, and turn it away when there are too many."""
        if connection.accepted:
            # Here and not where it is accepted: a burst is accepted as a whole first.
            half_open = sum(1 for known in self._all if known.phase is Phase.HANDSHAKE)
            if half_open >= self.limits.max_handshakes:
                connection.reject("too many connections without a cookie (max_handshakes)")
            elif len(self._up) >= self.limits.max_connections:
                connection.reject("too many connections (max_connections)")
        self._all.add(connection)

    def lost(self, connection: Connection) -> None:
        """A socket is closed and needs no more waiting for."""
        self._all.discard(connection)

    def handshake_event(self, connection: Connection, event: Event) -> None:
        """Arbitrate between this connection and what is known of its peer."""
        if isinstance(event, PeerNamed):
            name = event.peer.name
            if name in self._up:
                connection.decide(Status.ALIVE)
            elif name not in self._dials:
                connection.decide(Status.OK)
            elif self.name > name:
                connection.decide(Status.NOK)
                return
            else:
                connection.decide(Status.OK_SIMULTANEOUS)
            self._incoming[name] = connection
        elif isinstance(event, NameRequested):
            self._give_name(connection, event.host)
        elif isinstance(event, StillAlive):
            # Its older connection is none of ours any more, unless one came up meanwhile.
            known = connection.expected in self._up
            connection.decide(Status.NOK if known else Status.OK)

    def opened(self, connection: Connection) -> None:
        """Make this the peer's connection, and the end of any other."""
        name = connection.name
        self._forget_incoming(connection)
        older = self._up.get(name)
        if older is not None:
            older.close("replaced by a newer connection of the same node", abort=True)
        self._up[name] = connection
        log.debug("connected to %s", name)
        self._owner.peer_up(connection)
        dial = self._dials.pop(name, None)
        if dial is not None:
            dial.done.set()
            if connection.accepted:
                dial.scope.cancel()

    def frame(self, connection: Connection, body: bytes) -> None:
        """Hand a frame on."""
        self._owner.peer_frame(connection, body)

    def closed(self, connection: Connection, reason: str) -> None:
        """Forget a connection."""
        self._forget_incoming(connection)
        name = connection.name
        if name and self._up.get(name) is connection:
            del self._up[name]
            log.info("%s is down: %s", name, reason)
            self._owner.peer_down(connection, reason)
        elif connection.refused == "cookie":
            self._tell_of_cookie(reason, connection.address)
        else:
            who = connection.expected or connection.address
            log.info("a connection with %s did not come up: %s", who, reason)

    def _tell_of_cookie(self, reason: str, address: str) -> None:
        """Say who has another cookie, once: it may try a thousand times a second."""
        level = logging.INFO
        if reason not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(reason)
            level = logging.WARNING
        log.log(level, "%s (%s): start both with the same one", reason, address)

    def _forget_incoming(self, connection: Connection) -> None:
        for name in [n for n, known in self._incoming.items() if known is connection]:
            del self._incoming[name]

    def _give_name(self, connection: Connection, host: str) -> None:
        if is_long(host) != is_long(self._host) or not host:
            connection.close(f"a nameless node on {host!r}: its host part is not of our kind")
            return
        # As many random bits as a name nobody registers needs; letters and digits only.
        connection.give_name(f"{secrets.token_hex(8)}@{host}", 4 + secrets.randbits(31))


def _bind(addresses: list[str], port: int) -> list[socket.socket]:
    """Return listening sockets on all addresses and one port, a free one for 0."""
    for attempt in range(BIND_ATTEMPTS):
        sockets: list[socket.socket] = []
        chosen = port
        try:
            for address in addresses:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                sock = socket.socket(family, socket.SOCK_STREAM)
                sockets.append(sock)
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((address, chosen))
                sock.listen(_BACKLOG)
                chosen = sock.getsockname()[1]
        except OSError:
            for sock in sockets:
                sock.close()
            if port or attempt == BIND_ATTEMPTS - 1:
                raise
        else:
            return sockets
    raise OSError(f"no free port on {addresses}")
