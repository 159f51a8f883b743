"""One node against peers that misbehave, each in its own way."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from erl_bridge import EpmdServer, NetLimits, Node, NodeLimits, NodeThread
from erl_bridge.etf import Atom, encode
from erl_bridge.proto.control import Op
from erl_bridge.proto.flags import Flag, offered
from erl_bridge.proto.frames import TICK, frame
from erl_bridge.proto.handshake import Status
from tests.unit.erl_bridge.conftest import Start
from tests.unit.erl_bridge.rawpeer import COOKIE, RawPeer, unique_name

Dial = Callable[..., RawPeer]

QUIET = 0.05


def limits(**net: float) -> NodeLimits:
    """Limits of the network half."""
    return NodeLimits(net=NetLimits(**net))  # type: ignore[arg-type]  # sizes are whole numbers


def until(condition: Callable[[], bool]) -> bool:
    """Wait for the node's loop to get there."""
    end = time.monotonic() + 10
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture
def node(start: Start) -> NodeThread:
    """A node with default limits."""
    return start(apply=lambda _context, _module, _function, args: args)


class TestStrangers:
    def test_silence_is_ended(self, start: Start, raw: Dial) -> None:
        node = start(limits=limits(handshake_timeout=0.2))
        assert raw(node, handshake=False).closed(5)

    @pytest.mark.parametrize(
        "garbage",
        [b"GET / HTTP/1.0\r\n\r\n", b"\0\0", b"\xff\xff", struct.pack(">H", 40) + bytes(40)],
    )
    def test_garbage_is_closed(self, node: NodeThread, raw: Dial, garbage: bytes) -> None:
        stranger = raw(node, handshake=False)
        stranger.socket.sendall(garbage)
        assert stranger.closed()
        assert node.node.nodes() == []

    def test_a_wrong_cookie_is_closed_without_a_word(
        self, node: NodeThread, raw: Dial, caplog: pytest.LogCaptureFixture
    ) -> None:
        """To the peer; the log says who came, and what to do, once for each."""
        for name in ("one@vm", "one@vm", "two@vm", "one@vm"):
            with pytest.raises(ConnectionError, match="closed during"):
                raw(node, cookie="other", name=name)
        assert node.node.nodes() == []
        told = [line.getMessage() for line in caplog.records if line.levelno == logging.WARNING]
        assert [line.split(" (127.0.0.1:")[0] for line in told] == [
            f"handshake refused: '{name}' does not have our cookie" for name in ("one@vm", "two@vm")
        ]
        assert told[0].endswith("): start both with the same one")

    def test_only_so_many_at_once(self, start: Start, raw: Dial) -> None:
        node = start(limits=limits(max_handshakes=3))
        waiting = [raw(node, handshake=False) for _ in range(3)]
        assert raw(node, handshake=False).closed()
        waiting[0].close()
        assert until(lambda: _can_connect(node, raw))

    def test_peers_that_are_up_do_not_count(self, start: Start, raw: Dial) -> None:
        node = start(limits=limits(max_handshakes=1))
        peers = [raw(node) for _ in range(4)]
        names = sorted(peer.name for peer in peers)
        assert until(lambda: sorted(node.node.nodes()) == names)

    def test_a_nameless_one_of_the_wrong_kind(self, node: NodeThread, raw: Dial) -> None:
        stranger = raw(node, handshake=False)
        host = b"long.example"
        flags = offered(hidden=True) | Flag.NAME_ME
        body = struct.pack(">cQIH", b"N", flags, 0, len(host)) + host
        stranger.socket.sendall(struct.pack(">H", len(body)) + body)
        assert stranger.closed()


class TestPeers:
    def test_only_so_many(self, start: Start, raw: Dial) -> None:
        node = start(limits=limits(max_connections=2))
        first, _second = raw(node), raw(node)
        assert raw(node, handshake=False).closed()
        first.close()
        assert until(lambda: _can_connect(node, raw))

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"\x7f\xff\xff\xffp", id="too long"),
            pytest.param(struct.pack(">IBB", 2, 131, 68), id="distribution header"),
            pytest.param(frame(encode((99, 1))), id="unknown operation"),
            pytest.param(frame(b"\x83\xff"), id="no term"),
            pytest.param(frame(encode((1, 2, 3))), id="no pids"),
        ],
    )
    def test_a_broken_protocol_costs_the_breaker_only(
        self, node: NodeThread, raw: Dial, data: bytes
    ) -> None:
        good, bad = raw(node), raw(node)
        bad.socket.sendall(data)
        assert bad.closed()
        good.call("m", "f", [1])
        assert good.result() == (Atom("return"), [1])

    def test_a_bug_of_ours_costs_that_peer_only(
        self, node: NodeThread, raw: Dial, caplog: pytest.LogCaptureFixture
    ) -> None:
        good, bad = raw(node), raw(node)

        def broken(connection: object, body: bytes) -> None:
            raise KeyError("a bug")

        right = node.node.peer_frame
        node.node.peer_frame = broken  # type: ignore[method-assign]  # the bug
        bad.send(Op.LINK, bad.pid(), bad.pid())
        assert bad.closed()
        node.node.peer_frame = right  # type: ignore[method-assign]
        good.call("m", "f", [1])
        assert good.result() == (Atom("return"), [1])
        assert "a bug" in caplog.text

    def test_the_same_name_again_replaces_the_older(self, node: NodeThread, raw: Dial) -> None:
        older = raw(node)
        newer = raw(node, name=older.name)
        assert older.closed()
        newer.call("m", "f", [1])
        assert newer.result() == (Atom("return"), [1])
        assert node.node.nodes() == [newer.name]

    def test_a_stranger_with_that_name_does_not(self, node: NodeThread, raw: Dial) -> None:
        peer = raw(node)
        with pytest.raises(ConnectionError):
            raw(node, name=peer.name, cookie="other")
        peer.call("m", "f", [1])
        assert peer.result() == (Atom("return"), [1])

    def test_nor_does_one_that_keeps_the_older(self, node: NodeThread, raw: Dial) -> None:
        peer = raw(node)
        with pytest.raises(Exception, match="older connection"):
            raw(node, name=peer.name, if_alive=Status.NOK)
        peer.call("m", "f", [1])
        assert peer.result() == (Atom("return"), [1])


class TestWriting:
    @pytest.mark.parametrize("at_once", [False, True])
    def test_a_peer_that_does_not_read_is_dropped(
        self, start: Start, raw: Dial, caplog: pytest.LogCaptureFixture, *, at_once: bool
    ) -> None:
        """Its queue is bounded in bytes, and the reason says so; in one turn of the loop, too."""
        node = start(limits=limits(write_limit=4 << 20))
        deaf, good = raw(node), raw(node)
        pid = deaf.pid()

        def send() -> None:
            for _ in range(100):
                node.node.send(pid, bytes(1 << 20))

        if at_once:
            node.run(send)
        else:
            send()
        assert until(lambda: deaf.name not in node.node.nodes())
        assert f"the connection with {deaf.name} is given up: peer does not read" in caplog.text
        assert good.name in node.node.nodes()

    def test_one_that_takes_nothing_for_a_ticktime_is_too(
        self, start: Start, raw: Dial, caplog: pytest.LogCaptureFixture
    ) -> None:
        node = start(limits=limits(net_ticktime=0.4))
        deaf = raw(node)
        for _ in range(16):
            node.node.send(deaf.pid(), bytes(1 << 20))
        assert until(lambda: node.node.backlog(deaf.name) > 0)

        def keeps_ticking() -> bool:
            try:
                deaf.socket.sendall(TICK)
            except OSError:
                return True
            return node.node.nodes() == []

        assert until(keeps_ticking)
        assert "untouched" in caplog.text

    def test_drain_waits_for_a_slow_reader(self, node: NodeThread, raw: Dial) -> None:
        slow = raw(node)
        for _ in range(64):
            node.node.send(slow.pid(), bytes(1 << 20))
        assert until(lambda: node.node.backlog(slow.name) > 8 << 20)
        done = threading.Event()

        def wait() -> None:
            node.run(node.node.drain, slow.name)
            done.set()

        waiter = threading.Thread(target=wait)
        waiter.start()
        assert not done.wait(0.2)
        received = 0
        while received < 64:
            assert len(slow.receive().payload) == 1 << 20
            received += 1
        assert done.wait(10)
        waiter.join()
        assert node.node.backlog(slow.name) == 0

    def test_many_answers_of_one_turn_leave_together(self, node: NodeThread, raw: Dial) -> None:
        """Fifty requests in one packet; what comes back is whole and in order."""
        peer = raw(node)
        peer.socket.settimeout(10)
        for number in range(50):
            peer.call("m", "f", [number], number=number)
        assert [peer.result() for _ in range(50)] == [
            (Atom("return"), [number]) for number in range(50)
        ]


class TestTicks:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A silence of ours is short here, so that the tests are."""
        monkeypatch.setattr("erl_bridge.net.connection.QUIET_SECONDS", QUIET)

    def test_a_silent_peer_is_dropped(
        self, start: Start, raw: Dial, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "erl_bridge")
        node = start(limits=limits(net_ticktime=0.4))
        peer = raw(node)
        assert peer.closed(5)
        assert peer.ticks() > 0, "it should have been ticked before"
        assert "net_tick_timeout" in caplog.text

    def test_what_arrives_after_a_silence_is_answered_at_once(
        self, node: NodeThread, raw: Dial
    ) -> None:
        """A tick, or a message that needs no answer."""
        peer = raw(node)
        nothing = frame(encode((2, Atom(""), peer.pid())), encode(1))
        for expected, data in enumerate((TICK, nothing), 1):
            time.sleep(QUIET * 2)
            peer.socket.sendall(data)
            assert until(partial(_ticked, peer, expected))

    def test_nodes_do_not_tick_each_other_in_a_circle(self, start: Start) -> None:
        a, b = start(), start()
        assert a.ping(b.node.name)
        connection = a.node.endpoint.connection(b.node.name)
        assert connection is not None
        time.sleep(QUIET * 2)
        before = connection.bytes_in
        a.node.run_in_loop(connection.send, TICK)
        assert until(lambda: connection.bytes_in == before + 4)
        time.sleep(QUIET * 5)
        assert connection.bytes_in == before + 4


def _ticked(peer: RawPeer, times: int) -> bool:
    peer.socket.settimeout(0.05)
    with suppress(TimeoutError):
        list(peer._decoder.feed(peer.socket.recv(100)))
    return peer.ticks() == times


def _can_connect(node: NodeThread, raw: Dial) -> bool:
    try:
        raw(node)
    except OSError:
        return False
    return True


def test_early_peers_wait_for_the_node(start: Start) -> None:
    """The port is bound before epmd tells it, so nobody is turned away."""
    node = start()
    with socket.create_connection(("127.0.0.1", node.node.port), 5):
        pass


@pytest.mark.parametrize("turns", range(6))
def test_a_peer_that_comes_while_the_node_stops_is_closed(epmd: EpmdServer, turns: int) -> None:
    """Between accept and its first callback a connection is known to the event loop only."""

    async def main() -> bytes:
        node = Node(unique_name(), cookie=COOKIE, epmd_port=epmd.port)
        async with node:
            peer = socket.create_connection(("127.0.0.1", node.port), 5)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
        with peer, suppress(ConnectionResetError):
            return peer.recv(1)
        return b""

    assert anyio.run(main) == b""
