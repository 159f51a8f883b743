"""epmd's client and server over real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable, Iterator

import anyio
import pytest

from erl_bridge import EpmdError, EpmdServer, NameTaken
from erl_bridge.net.epmd_client import Registrar, default_epmd_port, lookup, registered_names
from erl_bridge.net.hosts import LOOPBACK
from erl_bridge.proto.epmd import Registration

pytestmark = pytest.mark.anyio

ENTRY = Registration("a", 4711, extra=b"x")


@pytest.fixture
def anyio_backend() -> str:
    """The node runs on asyncio."""
    return "asyncio"


@pytest.fixture
def free_port() -> int:
    """A port where nobody listens."""
    with socket.create_server((LOOPBACK, 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until an async condition holds."""
    with anyio.fail_after(10):
        while not await condition():  # noqa: ASYNC110  # what is waited for is elsewhere
            await anyio.sleep(0.01)


async def test_a_registration_lives_as_long_as_its_tasks() -> None:
    """Found while it is there, gone with it, and then free for others."""
    async with anyio.create_task_group() as outer:
        server = EpmdServer(0)
        port = await outer.start(server.serve)
        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                creation = await Registrar(ENTRY, port, tasks, embedded_on=()).register()
                assert creation >= 4
                assert await lookup(LOOPBACK, port, "a") == ENTRY
                assert await registered_names(LOOPBACK, port) == [("a", 4711)]
                with pytest.raises(NameTaken, match="'a' is already registered"):
                    await Registrar(ENTRY, port, tasks, embedded_on=()).register()
                assert await lookup(LOOPBACK, port, "a") == ENTRY
                tasks.cancel_scope.cancel()

            async def gone() -> bool:
                return await lookup(LOOPBACK, port, "a") is None

            await eventually(gone)
        outer.cancel_scope.cancel()


async def test_without_any_epmd(free_port: int) -> None:
    """An error that names the port, or one of our own if that is allowed."""
    async with anyio.create_task_group() as tasks:
        with pytest.raises(EpmdError, match=str(free_port)):
            await Registrar(ENTRY, free_port, tasks, embedded_on=()).register()
        with pytest.raises(EpmdError, match=str(free_port)):
            await lookup(LOOPBACK, free_port, "a")
        registrar = Registrar(ENTRY, free_port, tasks)
        await registrar.register()
        assert registrar.server is not None
        assert await lookup(LOOPBACK, free_port, "a") == ENTRY
        tasks.cancel_scope.cancel()


async def test_two_that_both_start_one(free_port: int) -> None:
    """One wins, and both are registered with it."""
    async with anyio.create_task_group() as tasks:
        entries = [Registration(name, 1) for name in "abc"]
        registrars = [Registrar(entry, free_port, tasks) for entry in entries]
        async with anyio.create_task_group() as starting:
            for registrar in registrars:
                starting.start_soon(registrar.register)
        assert sum(registrar.server is not None for registrar in registrars) == 1
        found = await registered_names(LOOPBACK, free_port)
        assert sorted(found) == [("a", 1), ("b", 1), ("c", 1)]
        tasks.cancel_scope.cancel()


async def test_a_restarted_epmd_gets_the_registration_again(free_port: int) -> None:
    """By itself, within a retry or two."""
    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as first:
            await first.start(EpmdServer(free_port).serve)
            await Registrar(ENTRY, free_port, tasks, embedded_on=()).register()
            first.cancel_scope.cancel()
        await tasks.start(EpmdServer(free_port).serve)

        async def back() -> bool:
            return await lookup(LOOPBACK, free_port, "a") == ENTRY

        await eventually(back)
        tasks.cancel_scope.cancel()


class Stranger:
    """Something that listens on epmd's port and answers what it likes."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.server = socket.create_server((LOOPBACK, 0))
        self.port: int = self.server.getsockname()[1]
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            with client:
                client.recv(1000)
                client.sendall(self.answer)

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.thread.join()


@pytest.fixture(params=[b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"w\0\0"])
def stranger(request: pytest.FixtureRequest) -> Iterator[Stranger]:
    """Closes at once, speaks something else, stops in the middle."""
    found = Stranger(request.param)
    yield found
    found.close()


async def test_something_else_on_the_port(stranger: Stranger) -> None:
    """EpmdError, never anything else; and no second one is started beside it."""
    with pytest.raises(EpmdError):
        await lookup(LOOPBACK, stranger.port, "a")
    async with anyio.create_task_group() as tasks:
        with pytest.raises(EpmdError):
            await Registrar(ENTRY, stranger.port, tasks).register()
        tasks.cancel_scope.cancel()


async def test_a_client_that_says_nothing_or_nonsense_harms_nobody() -> None:
    """The server closes it, and goes on."""
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(EpmdServer(0).serve)
        for nonsense in (b"", b"\0\0", b"\xff" * 50, b"\0\1k"):
            async with await anyio.connect_tcp(LOOPBACK, port) as stream:
                if nonsense:
                    await stream.send(nonsense)
                    if nonsense != b"\xff" * 50:  # that one announces more to come
                        with pytest.raises(anyio.EndOfStream):
                            await stream.receive()
        assert await registered_names(LOOPBACK, port) == []
        tasks.cancel_scope.cancel()


def test_the_port_is_epmds_or_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """As erl has it."""
    monkeypatch.delenv("ERL_EPMD_PORT", raising=False)
    assert default_epmd_port() == 4369
    monkeypatch.setenv("ERL_EPMD_PORT", "5000")
    assert default_epmd_port() == 5000
    monkeypatch.setenv("ERL_EPMD_PORT", "http")
    with pytest.raises(ValueError, match="ERL_EPMD_PORT"):
        default_epmd_port()
