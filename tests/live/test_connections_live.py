"""Connections to real nodes: who gets in, what keeps them, what ends them."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from erl_bridge import ErlangError, NameTaken, NetLimits, Node, NodeLimits, NodeThread
from erl_bridge.etf import Atom
from erl_bridge.net.epmd_client import lookup, registered_names
from tests.live.erlnode import COOKIE, ErlNode, unique_name
from tests.live.served import Served

Start = Callable[..., ErlNode]


@pytest.fixture
def ours() -> Iterator[Callable[..., Served]]:
    """Start nodes of ours that end with the test."""
    started: list[Served] = []

    def start(name: str | None = None, **options: Any) -> Served:
        started.append(Served(name, **options))
        return started[-1]

    yield start
    for served in started:
        served.stop()


def until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Wait for something another process does."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


class TestWhoGetsIn:
    def test_not_with_another_cookie(self, served: Served, erl_node: Start) -> None:
        stranger = erl_node(cookie="not_it")
        assert stranger.eval(f"net_adm:ping('{served.name}')") == "pang"
        assert stranger.name not in served.node.nodes()
        assert not served.thread.ping(stranger.name)

    def test_a_nameless_node_gets_a_name(self, served: Served, erl_node: Start) -> None:
        dynamic = erl_node("undefined")
        assert dynamic.eval(f"net_kernel:connect_node('{served.name}')") == "true"
        assert dynamic.eval(f"rpc:call('{served.name}', t, add, [1, 2])") == "3"
        assert dynamic.eval("node()").strip("'") in served.node.nodes()

    def test_long_names_among_themselves(
        self, ours: Callable[..., Served], erl_node: Start
    ) -> None:
        served = ours(f"{unique_name('py')}@127.0.0.1")
        long = erl_node(f"{unique_name('long')}@127.0.0.1", long_names=True)
        assert long.eval(f"rpc:call('{served.name}', t, add, [1, 2])") == "3"
        assert served.thread.call(long.name, "erlang", "node", []) == Atom(long.name)

    def test_not_a_long_name_among_short_ones(self, served: Served, erl_node: Start) -> None:
        long = erl_node(f"{unique_name('long')}@127.0.0.1", long_names=True)
        assert long.eval(f"net_adm:ping('{served.name}')") == "pang"
        assert not served.thread.ping(long.name)

    def test_not_our_own_name(self, served: Served, otp: str, epmd_port: int) -> None:
        with pytest.raises(AssertionError, match=r"seems to be in use|duplicate_name"):
            ErlNode(otp, served.name.partition("@")[0])
        with pytest.raises(NameTaken, match="already registered"):
            Served(served.name)


class TestVisibility:
    def test_hidden_by_default(self, served: Served, peer: ErlNode) -> None:
        assert peer.eval(f"net_adm:ping('{served.name}')") == "pong"
        assert (
            peer.eval(
                f"begin N = '{served.name}',"
                " {lists:member(N, nodes()), lists:member(N, nodes(hidden))} end"
            )
            == "{false,true}"
        )
        assert peer.eval("global:sync()") == "ok"

    def test_visible_on_request_and_in_step_with_global(
        self, ours: Callable[..., Served], erl_node: Start
    ) -> None:
        served = ours(hidden=False)
        first, second = erl_node(), erl_node()
        assert first.eval(f"net_adm:ping('{second.name}')") == "pong"
        assert first.eval(f"net_adm:ping('{served.name}')") == "pong"
        assert first.eval(f"lists:member('{served.name}', nodes())") == "true"
        assert first.eval("global:sync()", 20) == "ok"
        assert first.eval("global:register_name(us, self())", 20) == "yes"
        assert second.eval("is_pid(global:whereis_name(us))") == "true"
        assert second.eval("global:sync()", 20) == "ok"
        assert until(lambda: first.name in served.node.nodes(hidden=False))
        # Hidden or not, our going must not take anybody else's connection with it.
        served.stop()
        assert first.eval(f"timer:sleep(200), lists:member('{second.name}', nodes())") == "true"
        assert first.eval("global:sync()", 20) == "ok"


class TestOurDials:
    def test_ping_and_call(self, served: Served, erl_node: Start) -> None:
        other = erl_node()
        assert served.thread.ping(other.name)
        assert served.thread.ping(other.short), "the host part may be left out"
        assert served.thread.call(other.name, "erlang", "nodes", [Atom("hidden")]) == [
            Atom(served.name)
        ]

    def test_no_such_node(self, served: Served) -> None:
        assert not served.thread.ping("no_such_node")

    def test_a_message_connects(self, served: Served, erl_node: Start) -> None:
        other = erl_node()
        other.eval("register(tester, self())")
        to = (Atom("tester"), Atom(other.name))
        for i in range(3):
            served.node.send(to, i)
        assert other.eval("[receive M -> M after 5000 -> none end || _ <- [1,2,3]]") == "[0,1,2]"

    def test_both_dial_at_once(self, ours: Callable[..., Served], erl_node: Start) -> None:
        """Whichever name is greater; and each time both get through."""
        for letter in "az":
            other = erl_node(unique_name("m"))
            served = ours(unique_name(letter))
            for _ in range(5):
                other.begin(f"[rpc:call('{served.name}', t, add, [1, 2]) || _ <- [1, 2]]")
                assert served.thread.call(other.name, "erlang", "abs", [-1], 10) == 1
                assert other.result() == "[3,3]"
                assert served.node.nodes() == [other.name]
                other.eval(f"erlang:disconnect_node('{served.name}')")
                assert until(partial(_alone, served))

    def test_two_of_ours(self, ours: Callable[..., Served]) -> None:
        a, b = ours(), ours()
        threads = [
            threading.Thread(target=x.thread.ping, args=(y.name,)) for x, y in ((a, b), (b, a))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert a.thread.call(b.name, "t", "add", [1, 2], 5) == 3
        assert b.thread.call(a.name, "t", "add", [1, 2], 5) == 3
        assert (a.node.nodes(), b.node.nodes()) == ([b.name], [a.name])


class TestLoss:
    def test_a_killed_peer(self, served: Served, erl_node: Start) -> None:
        """kill -9: everything that concerned it ends with noconnection."""
        other = erl_node()
        seen: queue.Queue[Any] = queue.Queue()
        served.node.watch_peers(lambda name, up, reason: seen.put((name, up)))
        served.cancelled.clear()
        other.eval(f"{{named, '{served.name}'}} ! self()")
        pid = served.next()
        assert seen.get(timeout=30) == (other.name, True)
        ref = served.node.monitor(pid, lambda ref, item, reason: seen.put((ref, reason)))
        served.process.link(pid)
        other.eval(f"erpc:send_request('{served.name}', t, wait, [60000])")
        failed: queue.Queue[Any] = queue.Queue()

        def call() -> None:
            try:
                served.thread.call(other.name, "timer", "sleep", [60000])
            except ErlangError as error:
                failed.put(error.reason)

        thread = threading.Thread(target=call)
        thread.start()
        other.eval("ok")
        os.kill(other.process.pid, signal.SIGKILL)
        assert {seen.get(timeout=30) for _ in range(2)} == {
            (ref, Atom("noconnection")),
            (other.name, False),
        }
        assert served.next() == (Atom("exit"), pid, Atom("noconnection"))
        assert failed.get(timeout=30) == (Atom("erpc"), Atom("noconnection"))
        assert served.cancelled.wait(30), "its request was not cancelled"
        thread.join()
        assert not served.thread.ping(other.name)

    def test_a_restarted_peer_is_another(self, served: Served, erl_node: Start) -> None:
        name = unique_name()
        first = erl_node(name)
        assert first.eval(f"net_adm:ping('{served.name}')") == "pong"
        first.kill()
        second = erl_node(name)
        assert second.eval(f"rpc:call('{served.name}', t, add, [1, 2])") == "3"
        assert served.node.nodes().count(second.name) == 1

    def test_we_stop(self, ours: Callable[..., Served], peer: ErlNode) -> None:
        served = ours()
        peer.eval(
            f"begin monitor_node('{served.name}', true),"
            f" put(m, monitor(process, {{echo, '{served.name}'}})) end"
        )
        before = threading.active_count()
        served.stop()
        assert threading.active_count() < before
        assert (
            peer.eval(
                "begin M = get(m), {receive {nodedown, _} -> down after 5000 -> up end,"
                " receive {'DOWN', M, _, _, R} -> R after 5000 -> nothing end} end"
            )
            == "{down,noconnection}"
        )

    def test_disconnected(self, served: Served, peer: ErlNode) -> None:
        assert peer.eval(f"net_adm:ping('{served.name}')") == "pong"
        served.node.disconnect(peer.name)
        assert until(lambda: peer.name not in served.node.nodes())
        assert peer.eval(f"net_adm:ping('{served.name}')") == "pong"

    def test_one_bad_peer_harms_nobody(self, served: Served, peer: ErlNode) -> None:
        """Garbage before the cookie, and a frame too long after it."""
        assert peer.eval(f"net_adm:ping('{served.name}')") == "pong"
        for garbage in (b"GET / HTTP/1.0\r\n\r\n", b"\0\0", b"\xff" * 100, bytes(50)):
            with socket.create_connection(("127.0.0.1", served.node.port), 5) as stranger:
                stranger.sendall(garbage)
                stranger.settimeout(5)
                assert stranger.recv(100) == b""
        assert peer.name in served.node.nodes()
        assert peer.eval(f"erpc:call('{served.name}', t, add, [1, 2])") == "3"

    def test_a_frame_beyond_the_limit(self, ours: Callable[..., Served], erl_node: Start) -> None:
        served = ours(limits=NodeLimits(net=NetLimits(max_frame=1024 * 1024)))
        greedy, modest = erl_node(), erl_node()
        assert modest.eval(f"net_adm:ping('{served.name}')") == "pong"
        assert (
            greedy.eval(
                f"try erpc:call('{served.name}', t, size, [binary:copy(<<0>>, 1 bsl 21)])"
                " catch error:R -> R end"
            )
            == "{erpc,noconnection}"
        )
        assert modest.name in served.node.nodes()
        assert greedy.eval(f"erpc:call('{served.name}', t, size, [<<0>>])") == "1"


class TestTicks:
    def test_an_impatient_peer_and_an_impatient_node(
        self, ours: Callable[..., Served], erl_node: Start
    ) -> None:
        """A peer with net_ticktime 4 keeps us, silent or streaming; ours of 4 keeps it."""
        patient, hasty = ours(), ours(limits=NodeLimits(net=NetLimits(net_ticktime=4)))
        other = erl_node(extra=("-kernel", "net_ticktime", "4"))
        for served in (patient, hasty):
            assert other.eval(f"net_adm:ping('{served.name}')") == "pong"
            other.eval(f"monitor_node('{served.name}', true)")
        ups: queue.Queue[Any] = queue.Queue()
        patient.node.watch_peers(lambda name, up, reason: ups.put(reason))
        hasty.node.watch_peers(lambda name, up, reason: ups.put(reason))
        assert (
            other.eval("receive {nodedown, _} = D -> D after 8000 -> connected end") == "connected"
        )
        # Talking one way only, a peer sends no ticks that we could answer.
        assert (
            other.eval(
                f"begin [begin {{named, '{patient.name}'}} ! I, timer:sleep(100) end"
                " || I <- lists:seq(1, 70)],"
                " receive {nodedown, _} = D -> D after 0 -> connected end end"
            )
            == "connected"
        )
        assert ups.empty()


class TestEpmd:
    @pytest.fixture
    def own_port(self, monkeypatch: pytest.MonkeyPatch) -> int:
        """A port without any epmd."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port: int = taken.getsockname()[1]
        monkeypatch.setenv("ERL_EPMD_PORT", str(port))
        return port

    def test_ours_serves_everybody(
        self, own_port: int, ours: Callable[..., Served], erl_node: Start
    ) -> None:
        """Started because none was there; other nodes find each other through it."""
        served = ours()
        assert served.node.endpoint.embedded_epmd_running
        first, second = erl_node(), erl_node()
        assert first.eval(f"net_adm:ping('{second.name}')") == "pong"
        assert second.eval(f"net_adm:ping('{served.name}')") == "pong"
        listed = dict(served.thread.run(registered_names, "127.0.0.1", own_port))
        assert set(listed) == {first.short, second.short, served.name.partition("@")[0]}
        tool = subprocess.run(["epmd", "-names"], capture_output=True, text=True, check=True)
        assert f"name {first.short} at port {listed[first.short]}" in tool.stdout

    def test_a_second_node_of_ours_uses_the_first_ones(
        self, own_port: int, ours: Callable[..., Served]
    ) -> None:
        """And takes over when the first one ends."""
        first, second = ours(), ours()
        assert not second.node.endpoint.embedded_epmd_running
        assert second.thread.ping(first.name)
        first.stop()
        assert until(lambda: second.node.endpoint.embedded_epmd_running, 15)
        name = second.name.partition("@")[0]
        assert until(lambda: second.thread.run(lookup, "127.0.0.1", own_port, name) is not None, 15)

    def test_a_real_one_that_is_restarted(
        self, own_port: int, ours: Callable[..., Served], peer: ErlNode
    ) -> None:
        """We register again; without a real one coming back, with our own."""
        epmd = shutil.which("epmd")
        assert epmd is not None

        def start() -> subprocess.Popen[bytes]:
            daemon = subprocess.Popen(
                [epmd, "-port", str(own_port), "-address", "127.0.0.1"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            assert until(lambda: _answers(own_port))
            return daemon

        daemon = start()
        try:
            served = ours()
            name = served.name.partition("@")[0]
            assert not served.node.endpoint.embedded_epmd_running
            daemon.kill()
            daemon.wait()
            assert until(lambda: served.node.endpoint.embedded_epmd_running, 15)
            assert until(lambda: _registered(served, own_port, name), 15)
        finally:
            daemon.kill()
            daemon.wait()

    def test_nothing_is_left_registered(self, epmd_port: int, ours: Callable[..., Served]) -> None:
        served = ours()
        watcher = ours()
        name = served.name.partition("@")[0]
        assert _registered(watcher, epmd_port, name)
        served.stop()
        assert until(lambda: not _registered(watcher, epmd_port, name))
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", served.node.port), 5)

    def test_a_forked_child_does_not_keep_us_registered(self, epmd_port: int, otp: str) -> None:
        """A worker pool of the user's must not hold a dead node's name and connections."""
        script = (
            "import os, sys, time\n"
            "from erl_bridge import Node, NodeThread\n"
            f"node = NodeThread(Node({(name := unique_name('fork'))!r}, cookie={COOKIE!r}))\n"
            "node.start()\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    os.close(1)\n"
            "    time.sleep(30)\n"
            "    os._exit(0)\n"
            "print(child, flush=True)\n"
            "os._exit(0)\n"
        )
        command = [sys.executable, "-c", script]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=30)
        child = int(result.stdout)
        try:
            with NodeThread(Node(unique_name("py"), cookie=COOKIE)) as watcher:
                assert until(lambda: watcher.run(lookup, "127.0.0.1", epmd_port, name) is None)
        finally:
            os.kill(child, signal.SIGKILL)


def _alone(served: Served) -> bool:
    return served.node.nodes() == []


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _registered(served: Served, port: int, name: str) -> bool:
    try:
        return served.thread.run(lookup, "127.0.0.1", port, name) is not None
    except OSError:
        return False
