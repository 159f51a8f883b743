"""Who wins when two nodes dial each other, one step at a time.

``far`` plays a node that our node dials; the same "node" also dials ours, through a
:class:`RawPeer` of the same name.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from erl_bridge import EpmdServer, NetLimits, NodeLimits, NodeThread, NotConnected
from erl_bridge.proto import HandshakeRefused
from erl_bridge.proto.epmd import Registration
from erl_bridge.proto.flags import offered
from erl_bridge.proto.handshake import Completed, Handshake, LocalNode, PeerNamed, Status
from tests.unit.erl_bridge.conftest import Start
from tests.unit.erl_bridge.rawpeer import COOKIE, RawPeer, unique_name

Dial = Callable[..., RawPeer]


class Far:
    """A node that is registered and listens, and answers when it is told to."""

    def __init__(self, epmd: EpmdServer, host: str, stem: str) -> None:
        short = unique_name(stem)
        self.name = f"{short}@{host}"
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(10)
        self.client: socket.socket | None = None
        port = self.listener.getsockname()[1]
        epmd.directory.nodes[short] = Registration(short, port)

    def take(self) -> None:
        """Take a TCP connection, and say nothing."""
        self.client, _ = self.listener.accept()
        self.client.settimeout(10)

    def answer(self, status: Status, name: str | None = None) -> Completed | None:
        """Do the accepting side's handshake with this status."""
        if self.client is None:
            self.take()
        assert self.client is not None
        us = LocalNode(name or self.name, 7, offered(hidden=True), COOKIE.encode())
        side = Handshake.accept(us)
        try:
            while data := self.client.recv(1000):
                for event in side.receive(data):
                    if isinstance(event, PeerNamed):
                        side.decide(status)
                    if isinstance(event, Completed):
                        return event
                self.client.sendall(side.data_to_send())
        except HandshakeRefused:
            pass
        finally:
            self.client.sendall(side.data_to_send())
        return None

    def hung_up(self) -> bool:
        """Whether the node gave its dial up."""
        assert self.client is not None
        try:
            while self.client.recv(1000):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self.listener.close()
        if self.client is not None:
            self.client.close()


class Attempt(threading.Thread):
    """Our node's connect, waiting in a thread."""

    def __init__(self, node: NodeThread, name: str) -> None:
        super().__init__()
        self.outcome: queue.Queue[Any] = queue.Queue()
        self.node, self.target = node, name
        self.start()

    def run(self) -> None:
        try:
            self.node.connect(self.target)
        except NotConnected as error:
            self.outcome.put(error)
        else:
            self.outcome.put("connected")

    def result(self) -> Any:
        found = self.outcome.get(timeout=10)
        self.join()
        return found


@pytest.fixture
def node(start: Start) -> NodeThread:
    """Its name is in the middle of the alphabet."""
    return start(unique_name("m"))


@pytest.fixture
def far(epmd: EpmdServer, node: NodeThread) -> Iterator[Callable[[str], Far]]:
    """Make far nodes; ``a`` is a smaller name than ours, ``z`` a greater one."""
    made: list[Far] = []

    def make(stem: str) -> Far:
        made.append(Far(epmd, node.node.name.partition("@")[2], stem))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_the_greater_name_keeps_its_dial(
    node: NodeThread, far: Callable[[str], Far], raw: Dial
) -> None:
    """We are greater: the other's dial is answered nok, ours goes on."""
    lesser = far("a")
    attempt = Attempt(node, lesser.name)
    lesser.take()
    with pytest.raises(HandshakeRefused) as caught:
        raw(node, name=lesser.name)
    assert caught.value.status == "nok"
    assert lesser.answer(Status.OK_SIMULTANEOUS)
    assert attempt.result() == "connected"
    assert node.node.nodes() == [lesser.name]


def test_the_lesser_name_gives_way(node: NodeThread, far: Callable[[str], Far], raw: Dial) -> None:
    """The other is greater: its dial is taken, ours given up, and who waited is connected."""
    greater = far("z")
    attempt = Attempt(node, greater.name)
    greater.take()
    raw(node, name=greater.name)
    assert attempt.result() == "connected"
    assert greater.hung_up()
    assert node.node.nodes() == [greater.name]


def test_nok_means_that_the_other_dials(
    node: NodeThread, far: Callable[[str], Far], raw: Dial
) -> None:
    """So we wait for it."""
    greater = far("z")
    attempt = Attempt(node, greater.name)
    assert greater.answer(Status.NOK) is None
    assert greater.hung_up()
    assert attempt.outcome.empty()
    raw(node, name=greater.name)
    assert attempt.result() == "connected"


def test_but_not_for_ever(start: Start, epmd: EpmdServer) -> None:
    """Its dial may never come."""
    node = start(limits=NodeLimits(net=NetLimits(handshake_timeout=0.3)))
    greater = Far(epmd, node.node.name.partition("@")[2], "z")
    attempt = Attempt(node, greater.name)
    greater.answer(Status.NOK)
    assert "no answer within 0.3 s" in str(attempt.result())
    greater.close()


def test_a_stranger_cannot_end_our_dial(
    node: NodeThread, far: Callable[[str], Far], raw: Dial
) -> None:
    """A name alone proves nothing."""
    greater = far("z")
    attempt = Attempt(node, greater.name)
    greater.take()
    with pytest.raises(ConnectionError):
        raw(node, name=greater.name, cookie="other")
    assert greater.answer(Status.OK)
    assert attempt.result() == "connected"


def test_a_handshake_that_is_coming_in_is_waited_for(
    node: NodeThread, far: Callable[[str], Far], raw: Dial
) -> None:
    """No second connection is made beside it."""
    other = far("a")
    peer = raw(node, name=other.name, handshake=False)
    side = Handshake.connect(peer.us, node.node.name)
    peer.socket.sendall(side.data_to_send())
    greeting = peer.socket.recv(1000)
    attempt = Attempt(node, other.name)
    side.receive(greeting)
    if len(greeting) < 10:  # the status alone; the challenge is behind it
        side.receive(peer.socket.recv(1000))
    peer.socket.sendall(side.data_to_send())
    assert attempt.result() == "connected"
    other.listener.settimeout(0.1)
    with pytest.raises(TimeoutError):
        other.take()


def test_alive_is_answered_when_we_know_of_none(
    node: NodeThread, far: Callable[[str], Far]
) -> None:
    """The other had not noticed that an older connection was gone."""
    other = far("a")
    attempt = Attempt(node, other.name)
    assert other.answer(Status.ALIVE)
    assert attempt.result() == "connected"


@pytest.mark.parametrize(
    ("status", "name", "why"),
    [
        (Status.NOT_ALLOWED, None, "not_allowed"),
        (Status.OK, "somebody@else", "'somebody@else' answered"),
    ],
)
def test_a_dial_that_is_turned_away(
    node: NodeThread, far: Callable[[str], Far], status: Status, name: str | None, why: str
) -> None:
    """Everyone who waits hears why."""
    other = far("a")
    attempts = [Attempt(node, other.name) for _ in range(3)]
    other.answer(status, name)
    for attempt in attempts:
        assert why in str(attempt.result())
    assert node.node.nodes() == []


def test_nobody_at_the_registered_port(node: NodeThread, far: Callable[[str], Far]) -> None:
    """The node died, and its epmd does not know yet."""
    other = far("a")
    other.close()
    assert isinstance(Attempt(node, other.name).result(), NotConnected)
    assert isinstance(Attempt(node, "nobody").result(), NotConnected)
