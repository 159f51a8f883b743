"""Asking epmd for nodes, and staying registered with it.

A registration is an open connection.  When it breaks, epmd was restarted and knows
nobody: the :class:`Registrar` registers again, as real nodes do, and where no epmd is
left it brings up one of our own.  Our creation stays what the first registration said,
for pids that carry it are in use.
"""

from __future__ import annotations

import logging
import os

import anyio
from anyio.abc import ByteStream, TaskGroup, TaskStatus

from erl_bridge.net import fork
from erl_bridge.net.epmd_server import EpmdServer
from erl_bridge.net.errors import EpmdError, NameTaken
from erl_bridge.net.hosts import LOOPBACK
from erl_bridge.proto import epmd
from erl_bridge.proto.errors import RemoteProtocolError

__all__ = ("Registrar", "default_epmd_port", "lookup", "registered_names")

log = logging.getLogger(__name__)

#: epmd answers from memory; one that takes longer is not going to.
ANSWER_TIMEOUT = 5.0

#: Pause between attempts to get registered again, the emulator's own.
RETRY_SECONDS = 2.0

#: Two nodes may start an embedded epmd at once; the loser finds the winner's on its next try.
START_ATTEMPTS = 3

_MAX_REPLY = 1024 * 1024


def default_epmd_port() -> int:
    """Return ``ERL_EPMD_PORT``, or epmd's well-known port.

    :raises ValueError: the variable is set to something that is no port.
    """
    value = os.environ.get("ERL_EPMD_PORT", "")
    if not value:
        return epmd.DEFAULT_PORT
    if not (value.isdecimal() and 0 < int(value) < 65536):
        raise ValueError(f"ERL_EPMD_PORT is {value!r}, which is no port number")
    return int(value)


async def lookup(host: str, port: int, name: str) -> epmd.Registration | None:
    """Ask the epmd of ``host`` for the node ``name`` (without host part).

    :return: its registration, or None when it has none.
    :raises EpmdError: nobody answers, or not as epmd does.
    """
    answer = await _ask(host, port, epmd.port_request(name))
    try:
        return epmd.port_reply(answer)
    except RemoteProtocolError as error:
        raise EpmdError(f"{host}:{port}: {error}") from None


async def registered_names(host: str, port: int) -> list[tuple[str, int]]:
    """Ask the epmd of ``host`` for all its nodes, as (name, port).

    :raises EpmdError: nobody answers, or not as epmd does.
    """
    answer = await _ask(host, port, epmd.names_request())
    try:
        return epmd.names_reply(answer)
    except RemoteProtocolError as error:
        raise EpmdError(f"{host}:{port}: {error}") from None


async def _ask(host: str, port: int, request: bytes) -> bytes:
    answer = bytearray()
    try:
        with anyio.fail_after(ANSWER_TIMEOUT):
            async with await anyio.connect_tcp(host, port) as stream:
                await stream.send(request)
                while len(answer) < _MAX_REPLY:
                    answer += await stream.receive()
    except anyio.EndOfStream:
        pass
    except (OSError, anyio.BrokenResourceError) as error:
        raise EpmdError(f"no epmd answers on {host}:{port}: {error}") from None
    return bytes(answer)


class Registrar:
    """Keeps one node registered for as long as its task group lives.

    :param entry: what to register.
    :param port: epmd's port on this machine.
    :param tasks: where the upkeep, and an epmd of our own, run.
    :param embedded_on: start an epmd of our own on these addresses when none answers;
        127.0.0.1 must be covered, for that is where local nodes register.  Empty: do not.
    """

    def __init__(
        self,
        entry: epmd.Registration,
        port: int,
        tasks: TaskGroup,
        *,
        embedded_on: tuple[str, ...] = (LOOPBACK,),
    ) -> None:
        self.entry = entry
        self.port = port
        self.embedded_on = embedded_on
        self.server: EpmdServer | None = None
        """Our own epmd while it is serving."""
        self._tasks = tasks

    async def register(self) -> int:
        """Register, stay registered from now on, and return our creation.

        :raises NameTaken: the name is in use.
        :raises EpmdError: there is no epmd and none may be, or could be, started.
        """
        stream, creation = await self._first()
        self._tasks.start_soon(self._keep, stream)
        return creation

    async def _first(self) -> tuple[ByteStream, int]:
        for _ in range(START_ATTEMPTS):
            try:
                return await self._register()
            except NameTaken:
                raise
            except EpmdError:
                if not self.embedded_on:
                    raise
            await self._start_server()
        return await self._register()

    async def _keep(self, stream: ByteStream) -> None:
        while True:
            await _until_closed(stream)
            log.warning("epmd on port %d went away; registering again", self.port)
            stream = await self._again()

    async def _again(self) -> ByteStream:
        while True:
            try:
                stream, _creation = await self._register()
            except EpmdError as error:
                log.info("not registered with epmd: %s", error)
                if self.embedded_on and not isinstance(error, NameTaken):
                    await self._start_server()
                await anyio.sleep(RETRY_SECONDS)
            else:
                return stream

    async def _register(self) -> tuple[ByteStream, int]:
        stream: ByteStream | None = None
        try:
            with anyio.fail_after(ANSWER_TIMEOUT):
                stream = await anyio.connect_tcp(LOOPBACK, self.port)
                await stream.send(epmd.alive_request(self.entry))
                answer = b""
                while (reply := epmd.alive_reply(answer)) is None:
                    answer += await stream.receive()
        except BaseException as error:
            if stream is not None:
                await anyio.aclose_forcefully(stream)
            if isinstance(error, _NO_EPMD):
                raise EpmdError(f"no epmd answers on port {self.port}: {error}") from None
            raise
        if not reply.accepted:
            await anyio.aclose_forcefully(stream)
            raise NameTaken(self.entry.name, self.port)
        return stream, reply.creation

    async def _start_server(self) -> None:
        if self.server is not None:
            return
        server = EpmdServer(self.port, self.embedded_on)
        try:
            await self._tasks.start(self._serve, server)
        except OSError as error:
            # Somebody else was quicker: then there is an epmd now, which is all we want.
            log.debug("no embedded epmd on port %d: %s", self.port, error)
        else:
            self.server = server  # not before: who sees it may ask it
            log.info("no epmd was running: serving one on port %d", self.port)

    async def _serve(
        self, server: EpmdServer, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            await server.serve(task_status=task_status)
        finally:
            self.server = None


_NO_EPMD = (OSError, anyio.BrokenResourceError, anyio.EndOfStream, RemoteProtocolError)


async def _until_closed(stream: ByteStream) -> None:
    descriptor = fork.hold(fork.descriptor_of(stream))
    try:
        while True:
            await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
        return
    finally:
        fork.release(descriptor)
        await anyio.aclose_forcefully(stream)
