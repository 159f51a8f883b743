"""A port mapper of our own, for machines where none is running.

It serves every node on the machine, not just ours, and lives as long as its task.  Real
nodes registered with it find the next epmd by themselves when it ends: they reconnect.
Loopback only: ports of local nodes are nobody else's business.
"""

from __future__ import annotations

import logging

import anyio
from anyio.abc import Listener, SocketAttribute, SocketStream, TaskGroup, TaskStatus
from anyio.streams.stapled import MultiListener

from erl_bridge.net import fork
from erl_bridge.net.hosts import LOOPBACK
from erl_bridge.proto.epmd import DEFAULT_PORT, EpmdDirectory, EpmdSession
from erl_bridge.proto.errors import RemoteProtocolError

__all__ = ("EpmdServer",)

log = logging.getLogger(__name__)

#: A client that has not asked anything after so long is not one.
REQUEST_TIMEOUT = 5.0

#: How long to wait before accepting again when the machine refused.
ACCEPT_PAUSE = 0.5

#: Open connections, registered nodes included.
MAX_CLIENTS = 1024


class EpmdServer:
    """Serves epmd's protocol.

    :param port: TCP port, 0 for a free one (then see :attr:`port`).
    :param hosts: addresses to listen on.
    """

    def __init__(self, port: int = DEFAULT_PORT, hosts: tuple[str, ...] = (LOOPBACK,)) -> None:
        self.port = port
        self.directory = EpmdDirectory(port)
        self._hosts = hosts
        self._clients = 0

    async def serve(self, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; ``task_status`` gets the port once it listens.

        :raises OSError: the port is taken, most often by another epmd.
        """
        listeners: list[MultiListener[SocketStream]] = []
        held: list[int] = []
        try:
            for host in self._hosts:
                listener = await anyio.create_tcp_listener(local_host=host, local_port=self.port)
                listeners.append(listener)
                held += [fork.hold(fork.descriptor_of(part)) for part in listener.listeners]
                self.port = listener.extra(SocketAttribute.local_port)  # noqa: S610  # not Django's
            self.directory.port = self.port
            async with anyio.create_task_group() as tasks:
                for listener in listeners:
                    tasks.start_soon(self._accept, listener, tasks)
                task_status.started(self.port)
        finally:
            for descriptor in held:
                fork.release(descriptor)
            with anyio.CancelScope(shield=True):
                for listener in listeners:
                    await listener.aclose()

    async def _accept(self, listener: Listener[SocketStream], tasks: TaskGroup) -> None:
        while True:
            try:
                await listener.serve(self._client, tasks)
            except OSError as error:
                # Out of file descriptors, most likely: that passes, the nodes must not.
                log.warning("epmd: cannot accept: %s", error)
                await anyio.sleep(ACCEPT_PAUSE)

    async def _client(self, stream: SocketStream) -> None:
        session = EpmdSession(self.directory)
        descriptor = fork.hold(fork.descriptor_of(stream))
        self._clients += 1
        try:
            if self._clients <= MAX_CLIENTS:
                await self._talk(stream, session)
        except _GONE:
            pass
        except RemoteProtocolError as error:
            log.debug("epmd: closing a client: %s", error)
        finally:
            fork.release(descriptor)
            self._clients -= 1
            session.end()
            await anyio.aclose_forcefully(stream)

    async def _talk(self, stream: SocketStream, session: EpmdSession) -> None:
        with anyio.fail_after(REQUEST_TIMEOUT):
            while not session.closed and session.registered is None:
                answer = session.receive(await stream.receive())
                if answer:
                    await stream.send(answer)
        # A registration has no time limit: it is the node's life.
        while session.registered is not None:
            session.receive(await stream.receive())


_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)
