"""An authenticated peer that sends rubbish: it may lose its connection, and that is all.

Parse it or close that connection for a protocol error, never anything else: no exception
of ours, no callback that breaks, no other peer that notices.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erl_bridge import EpmdServer, GenHandler, Node, NodeThread, Undef
from erl_bridge.etf import Atom, Pid, Reference
from erl_bridge.net.connection import Connection, Phase
from erl_bridge.proto.control import MESSAGES, NO_PAYLOAD, Op, control_frame
from erl_bridge.proto.flags import offered
from erl_bridge.proto.handshake import Handshake, LocalNode, PeerInfo
from tests.property.strategies.erl_terms import terms
from tests.unit.erl_bridge.rawpeer import COOKIE, unique_name

FAR = Atom("far@host")


class Sink(asyncio.Transport):
    """Takes whatever is written."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: Any) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


class World:
    """A node whose connections get their bytes from the test."""

    def __init__(self, epmd: EpmdServer) -> None:
        self.node = Node(
            unique_name(), cookie=COOKIE, epmd_port=epmd.port, apply=self.apply, hidden=False
        )
        self.thread = NodeThread(self.node)
        self.thread.start()
        self.process = self.node.spawn_process(lambda _: None, lambda *_: None)
        self.node.register_name("server", GenHandler())

    def apply(self, _context: Any, module: str, function: str, args: list[Any]) -> Any:
        if module == "late":
            return asyncio.sleep(0, args)
        raise Undef(module, function, args)

    def connect(self) -> Connection:
        """An authenticated peer without a socket."""
        us = LocalNode(self.node.name, 1, offered(hidden=True), b"x")

        async def make() -> Connection:
            connection = Connection(
                self.node.endpoint, Handshake.accept(us), self.node.limits.net, accepted=True
            )
            connection._transport = Sink()
            connection.peer = PeerInfo(FAR.name, 1, offered(hidden=True))
            connection.phase = Phase.UP
            self.node.endpoint.opened(connection)
            return connection

        return self.thread.run(make)

    def feed(self, connection: Connection, pieces: list[bytes]) -> None:
        """Let bytes arrive, and whatever they set off run."""

        async def run() -> None:
            for piece in pieces:
                if connection.phase is Phase.UP:
                    connection.data_received(piece)
                    for _ in range(3):
                        await asyncio.sleep(0)

        self.thread.run(run)

    def close(self, connection: Connection) -> None:
        """End a connection that survived."""

        async def run() -> None:
            connection.close("the test is over", abort=True)

        self.thread.run(run)


@pytest.fixture(scope="module")
def world(epmd: EpmdServer) -> Iterator[World]:
    """One node for all the rubbish."""
    found = World(epmd)
    yield found
    found.thread.stop()


class Errors(logging.Handler):
    """What is logged as an error, which is what a bug of ours ends as."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []
        logging.getLogger("erl_bridge").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())

    def end(self) -> list[str]:
        logging.getLogger("erl_bridge").removeHandler(self)
        return self.found


pids = st.builds(Pid, st.just(FAR), st.integers(1, 3), st.just(0), st.just(1))
refs = st.builds(Reference, st.just(FAR), st.just(1), st.tuples(st.integers(1, 3)))
names = st.sampled_from(["net_kernel", "rex", "global_name_server", "server", "x"]).map(Atom)
atoms = st.sampled_from(
    [
        *("$gen_call", "$gen_cast", "alias", "is_auth", "call", "block_call", "cast", "late", "m"),
        *("init_connect", "io_request", "features_request", "erpc", "execute_call", "monitor"),
        *("execute_cast", "link", "return", "error", "EXIT"),
    ]
).map(Atom)


def likely(ours: Pid) -> st.SearchStrategy[Any]:
    """Terms built from the words the node listens for, in any order."""
    leaves = st.one_of(atoms, pids, refs, st.just(ours), st.integers(0, 5), st.binary(max_size=3))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.lists(inner, max_size=5).map(tuple)
        ),
        max_leaves=12,
    )


def fields_of(op: Op, ours: Pid, draw: Any) -> tuple[Any, ...]:
    """Fields of the right kinds, as far as the table asks for kinds."""
    anything = likely(ours)
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "from_pid": pids,
        "to_pid": st.one_of(st.just(ours), pids),
        "to_name": names,
        "to": st.one_of(st.just(ours), pids, names),
        "from": st.one_of(pids, names),
        "ref": refs,
        "req_id": refs,
        "alias": refs,
        "group_leader": pids,
        "mfa": st.tuples(atoms, atoms, st.integers(0, 4)),
        "options": st.lists(st.one_of(atoms, anything), max_size=3),
        "flags": st.integers(0, 3),
        "result": st.one_of(pids, names),
        "id": st.integers(0, 2**64),
    }
    return tuple(draw(kinds.get(name, anything)) for name in MESSAGES[op].fields)


@settings(deadline=None)
@given(st.data())
def test_rubbish_costs_the_connection_at_most(world: World, data: st.DataObject) -> None:
    """Sequences of possible messages, some damaged, in chunks of any size."""
    errors = Errors()
    connection = world.connect()
    draw = data.draw
    ours = world.process.pid
    stream = b""
    for op in draw(st.lists(st.sampled_from(list(Op)), min_size=1, max_size=6)):
        payload: Any = NO_PAYLOAD
        if MESSAGES[op].payload:
            payload = draw(st.one_of(likely(ours), terms))
        frame = bytearray(control_frame(op, *fields_of(op, ours, draw), payload=payload))
        if draw(st.integers(0, 3)) == 0:
            at = draw(st.integers(5, len(frame) - 1))
            frame[at] = draw(st.integers(0, 255))
        stream += bytes(frame)
    step = draw(st.sampled_from([1, 7, len(stream)]))
    world.feed(connection, [stream[at : at + step] for at in range(0, len(stream), step)])
    if connection.phase is Phase.CLOSED:
        assert connection.close_reason.startswith("protocol error: ")
    else:
        world.close(connection)
    assert errors.end() == []
    assert world.process.alive
    assert world.node.nodes() == []
    assert not world.process._monitors
    assert not world.process._links
