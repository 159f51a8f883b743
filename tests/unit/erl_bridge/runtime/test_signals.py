"""Signals and gen calls, word by word, from a peer that says exactly what a test wants."""

from __future__ import annotations

import queue
from typing import Any

import pytest

from erl_bridge import (
    NodeThread,
)
from erl_bridge.etf import Atom, ImproperList, Pid, encode
from erl_bridge.proto.control import Op
from erl_bridge.proto.flags import Flag, offered
from erl_bridge.proto.frames import frame
from tests.unit.erl_bridge.conftest import Start
from tests.unit.erl_bridge.rawpeer import RawPeer
from tests.unit.erl_bridge.runtime.conftest import Dial


class TestSignals:
    def test_every_old_form_is_taken(
        self, node: NodeThread, raw: Dial, seen: queue.Queue[Any]
    ) -> None:
        """A peer may use any form of the table, traced or not."""
        process = node.node.spawn_process(
            seen.put,
            lambda pid, reason: seen.put(("exit", pid, reason)),
            on_exit_request=lambda pid, reason: seen.put(("asked", pid, reason)),
        )
        node.node.register_name("named", process)
        peer = raw(node)
        me, to, token, empty = peer.pid(), process.pid, (1, 2), Atom("")
        peer.send(Op.SEND, empty, to, payload=1)
        peer.send(Op.SEND_TT, empty, to, token, payload=2)
        peer.send(Op.SEND_SENDER_TT, me, to, token, payload=3)
        peer.send(Op.REG_SEND_TT, me, empty, Atom("named"), token, payload=4)
        assert [seen.get(timeout=30) for _ in range(4)] == [1, 2, 3, 4]
        for op, extra, payload in (
            (Op.EXIT, (5,), {}),
            (Op.EXIT_TT, (token, 5), {}),
            (Op.PAYLOAD_EXIT, (), {"payload": 5}),
            (Op.PAYLOAD_EXIT_TT, (token,), {"payload": 5}),
        ):
            peer.send(Op.LINK, me, to)
            peer.send(op, me, to, *extra, **payload)
            assert seen.get(timeout=30) == ("exit", me, 5)
        for op, extra, payload in (
            (Op.EXIT2, (6,), {}),
            (Op.EXIT2_TT, (token, 6), {}),
            (Op.PAYLOAD_EXIT2, (), {"payload": 6}),
            (Op.PAYLOAD_EXIT2_TT, (token,), {"payload": 6}),
        ):
            peer.send(op, me, to, *extra, **payload)
            assert seen.get(timeout=30) == ("asked", me, 6)
        peer.send(Op.NODE_LINK)
        peer.send(Op.GROUP_LEADER, me, to)
        peer.send(Op.ALIAS_SEND, me, peer.ref(), payload=1)
        peer.send(Op.UNLINK, me, to)
        peer.send(Op.PAYLOAD_EXIT, me, to, payload=7)
        peer.send(Op.SEND, empty, to, payload=b"over")
        assert seen.get(timeout=30) == b"over", "an exit without a link means nothing"

    def test_unlinking_is_acknowledged_even_for_the_dead(self, node: NodeThread, raw: Dial) -> None:
        """With the pids swapped and the same number."""
        process = node.node.spawn_process()
        peer = raw(node)
        for number in (1, 2):
            peer.send(Op.UNLINK_ID, number, peer.pid(), process.pid)
            answer = peer.receive()
            assert answer.op is Op.UNLINK_ID_ACK
            assert answer.fields == (number, process.pid, peer.pid())
            process.exit()

    def test_a_pid_of_a_former_life_is_nobody(self, node: NodeThread, raw: Dial) -> None:
        process = node.node.spawn_process()
        old = Pid(process.pid.node, process.pid.id, process.pid.serial, process.pid.creation + 1)
        peer = raw(node)
        peer.send(Op.MONITOR_P, peer.pid(), old, peer.ref())
        answer = peer.receive()
        assert answer.fields == (old, peer.pid(), peer.ref())
        assert answer.payload is Atom("noproc")

    def test_only_the_peer_that_was_asked_may_say_down(
        self, node: NodeThread, raw: Dial, seen: queue.Queue[Any]
    ) -> None:
        one, other = raw(node), raw(node)
        ref = node.node.monitor(one.pid(), lambda ref, item, reason: seen.put(reason))
        ask = one.receive()
        assert (ask.op, ask.fields[1:]) == (Op.MONITOR_P, (one.pid(), ref))
        other.send(Op.PAYLOAD_MONITOR_P_EXIT, one.pid(), ask.fields[0], ref, payload=1)
        other.call("t", "echo", [1])
        other.result()
        assert seen.empty()
        one.send(Op.MONITOR_P_EXIT, one.pid(), ask.fields[0], ref, 2)
        assert seen.get(timeout=30) == 2

    def test_a_failing_callback_is_logged_and_that_is_all(
        self, node: NodeThread, raw: Dial, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(_message: Any) -> None:
            raise KeyError("in a callback")

        process = node.node.spawn_process(fail)
        peer = raw(node)
        peer.send(Op.SEND, Atom(""), process.pid, payload=1)
        peer.call("t", "echo", [1])
        assert peer.result() == (Atom("return"), 1)
        assert "in a callback" in caplog.text

    def test_processes_are_told_when_a_peer_goes(
        self, node: NodeThread, raw: Dial, seen: queue.Queue[Any]
    ) -> None:
        process = node.node.spawn_process(on_exit=lambda pid, reason: seen.put((pid, reason)))
        peer = raw(node)
        peer.send(Op.LINK, peer.pid(), process.pid)
        peer.call("t", "echo", [1])
        peer.result()
        peer.close()
        assert seen.get(timeout=30) == (peer.pid(), Atom("noconnection"))
        assert process.alive


class TestGenServers:
    def ask(self, peer: RawPeer, name: str, tag: Any, request: Any) -> None:
        call = (Atom("$gen_call"), (peer.pid(), tag), request)
        peer.send(Op.REG_SEND, peer.pid(), Atom(""), Atom(name), payload=call)

    def test_replies_go_where_the_tag_says(self, node: NodeThread, raw: Dial) -> None:
        peer = raw(node)
        request = (Atom("is_auth"), Atom(peer.name))
        alias = ImproperList((Atom("alias"),), peer.ref())
        for tag in (alias, ImproperList((alias,), peer.ref(2))):
            self.ask(peer, "net_kernel", tag, request)
            reply = peer.receive()
            assert (reply.op, reply.fields[1]) == (Op.ALIAS_SEND, peer.ref())
            assert reply.payload == (tag, Atom("yes"))
        for other in (peer.ref(), (peer.ref(), Atom(node.node.name))):
            self.ask(peer, "net_kernel", other, request)
            reply = peer.receive()
            assert (reply.op, reply.fields[1]) == (Op.SEND_SENDER, peer.pid())
            assert reply.payload == (other, Atom("yes"))

    @pytest.mark.parametrize("through", ["alias", "monitor", "plain"])
    def test_a_failure_reaches_the_callers_monitor(
        self, node: NodeThread, raw: Dial, through: str
    ) -> None:
        """Whichever of its references the caller watches by; others go on watching."""
        peer = raw(node)
        alias = ImproperList((Atom("alias"),), peer.ref(1))
        tag = {
            "alias": alias,
            "monitor": ImproperList((alias,), peer.ref(2)),
            "plain": peer.ref(3),
        }[through]
        watched = {"alias": 1, "monitor": 2, "plain": 3}[through]
        for number in (watched, 9):
            peer.send(Op.MONITOR_P, peer.pid(), Atom("net_kernel"), peer.ref(number))
        self.ask(peer, "net_kernel", tag, Atom("nonsense"))
        down = peer.receive()
        assert down.op is Op.PAYLOAD_MONITOR_P_EXIT
        assert down.fields == (Atom("net_kernel"), peer.pid(), peer.ref(watched))
        assert down.payload == (Atom("bad_call"), Atom("nonsense"))
        peer.call("t", "echo", [1])
        assert peer.result() == (Atom("return"), 1)

    def test_a_request_that_cannot_be_decoded_fails_its_caller(
        self, node: NodeThread, raw: Dial
    ) -> None:
        peer = raw(node)
        peer.send(Op.MONITOR_P, peer.pid(), Atom("net_kernel"), peer.ref())
        control = encode((6, peer.pid(), Atom(""), Atom("net_kernel")))
        peer.socket.sendall(frame(control, b"\x83h\x02"))
        down = peer.receive()
        assert down.fields == (Atom("net_kernel"), peer.pid(), peer.ref())
        assert down.payload[0] is Atom("undecodable")

    def test_visible_nodes_are_in_step_at_once(self, start: Start, raw: Dial) -> None:
        node = start(hidden=False)
        peer = raw(node, flags=offered(hidden=False) | Flag.PUBLISHED)
        hello = (Atom("$gen_cast"), (Atom("init_connect"), (8, 1), Atom(peer.name), Atom("x")))
        name = Atom("global_name_server")
        peer.send(Op.REG_SEND, peer.pid(), Atom(""), name, payload=hello)
        answer = peer.receive()
        assert (answer.op, answer.fields[2]) == (Op.REG_SEND, name)
        in_sync = (Atom("in_sync"), Atom(node.node.name), Atom("true"))
        assert answer.payload == (Atom("$gen_cast"), in_sync)
        assert node.node.nodes(hidden=False) == [peer.name]
