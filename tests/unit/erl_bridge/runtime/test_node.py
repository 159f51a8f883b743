"""Nodes of ours with each other, and with a peer that says exactly what a test wants."""

from __future__ import annotations

import queue
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest

from erl_bridge import (
    NO_REPLY,
    CallContext,
    Caller,
    ErlangError,
    GenHandler,
    NameTaken,
    Node,
    NodeThread,
    NotConnected,
)
from erl_bridge.etf import Atom, EncodeError, Fun, ImproperList, Pid, Reference, encode
from erl_bridge.proto.control import Op
from tests.unit.erl_bridge.conftest import Start
from tests.unit.erl_bridge.rawpeer import COOKIE, RawPeer, unique_name
from tests.unit.erl_bridge.runtime.conftest import Dial, apply
from tests.waiting import wait_for


class TestTwoNodes:
    @pytest.fixture
    def pair(self, start: Start) -> tuple[NodeThread, NodeThread]:
        return start(apply=apply), start(apply=apply)

    def test_ping_and_calls(self, pair: tuple[NodeThread, NodeThread]) -> None:
        a, b = pair
        assert a.ping(b.node.name)
        assert b.call(a.node.name, "t", "echo", [[1, (2,)]]) == [1, (2,)]
        assert a.call(b.node.name, "t", "who", [])[0] == Atom(a.node.name)

    @pytest.mark.parametrize("kind", ["error", "exit", "throw"])
    def test_failures(self, pair: tuple[NodeThread, NodeThread], kind: str) -> None:
        a, b = pair
        with pytest.raises(ErlangError) as caught:
            a.call(b.node.name, "t", "fail", [Atom(kind), 7])
        assert (caught.value.class_, caught.value.reason) == (kind, 7)

    def test_a_call_that_is_given_up(self, pair: tuple[NodeThread, NodeThread]) -> None:
        a, b = pair
        with pytest.raises(ErlangError) as caught:
            a.call(b.node.name, "t", "wait", [60], 0.05)
        assert caught.value.reason == (Atom("erpc"), Atom("timeout"))
        assert a.call(b.node.name, "t", "echo", [1]) == 1

    def test_what_cannot_be_sent_is_the_callers_error(
        self, pair: tuple[NodeThread, NodeThread]
    ) -> None:
        a, b = pair
        with pytest.raises(EncodeError):
            a.call(b.node.name, "t", "echo", ["text"])
        assert len(a.node.monitors) == 0
        with pytest.raises(EncodeError):
            a.node.send(b.node.process, "text")

    def test_links_and_monitors(
        self, pair: tuple[NodeThread, NodeThread], seen: queue.Queue[Any]
    ) -> None:
        a, b = pair
        near = a.node.spawn_process(on_exit=lambda pid, reason: seen.put((pid, reason)))
        far = b.node.spawn_process()
        a.ping(b.node.name)
        near.link(far.pid)
        ref = a.node.monitor(far, lambda ref, item, reason: seen.put((ref, item, reason)))
        a.ping(b.node.name)
        far.exit([Atom("why")])
        assert {repr(seen.get(timeout=30)) for _ in range(2)} == {
            repr((far.pid, [Atom("why")])),
            repr((ref, far.pid, [Atom("why")])),
        }

    def test_a_link_to_nobody_and_to_nowhere(
        self, pair: tuple[NodeThread, NodeThread], seen: queue.Queue[Any]
    ) -> None:
        a, b = pair
        near = a.node.spawn_process(on_exit=lambda pid, reason: seen.put(reason))
        far = b.node.spawn_process()
        near.link(far.pid)
        assert seen.get(timeout=30) is Atom("noconnection")
        far.exit()
        a.ping(b.node.name)
        near.link(far.pid)
        assert seen.get(timeout=30) is Atom("noproc")

    def test_gen_calls_between_them(self, pair: tuple[NodeThread, NodeThread]) -> None:
        class Handler(GenHandler):
            def handle_call(self, request: Any, caller: Caller) -> Any:
                threading.Thread(target=caller.reply, args=((request, caller.tag),)).start()
                return NO_REPLY

        a, b = pair
        process = b.node.register_name("server", Handler())
        there = (Atom("server"), Atom(b.node.name))
        request, tag = a.run(a.node.gen_call, there, 7)
        assert request == 7
        assert isinstance(tag, Reference)
        assert a.run(a.node.gen_call, process.pid, 8)[0] == 8
        with pytest.raises(ErlangError) as caught:
            a.run(a.node.gen_call, (Atom("rex"), Atom(b.node.name)), 1)
        assert caught.value.reason == (Atom("bad_call"), 1)
        with pytest.raises(NotConnected):
            a.run(a.node.gen_call, (Atom("rex"), Atom("no@where")), 1)

    def test_one_goes(self, pair: tuple[NodeThread, NodeThread], seen: queue.Queue[Any]) -> None:
        a, b = pair
        a.node.watch_peers(lambda name, up, reason: seen.put((name, up)))
        a.ping(b.node.name)
        assert seen.get(timeout=30) == (b.node.name, True)
        a.node.monitor(b.node.process, lambda ref, item, reason: seen.put(reason))
        a.ping(b.node.name)
        b.stop()
        assert {str(seen.get(timeout=30)) for _ in range(2)} == {
            "noconnection",
            str((b.node.name, False)),
        }

    def test_messages_before_the_connection_arrive_in_order(
        self, pair: tuple[NodeThread, NodeThread], seen: queue.Queue[Any]
    ) -> None:
        a, b = pair
        process = b.node.spawn_process(seen.put)
        for i in range(200):
            a.node.send(process, i)
        assert [seen.get(timeout=30) for _ in range(200)] == list(range(200))

    def test_messages_to_nowhere_are_dropped(self, node: NodeThread) -> None:
        node.node.send((Atom("x"), Atom("no@where")), 1)
        node.node.send(Pid(Atom("no@where"), 1, 2, 3), 1)
        assert not node.ping("no@where")


class TestSpawns:
    def test_the_reply_comes_before_the_result(self, node: NodeThread, raw: Dial) -> None:
        """A real node drops a connection where it does not."""
        peer = raw(node)
        for seconds in (0, 0.02):
            peer.call("t", "wait", [seconds])
            reply, down = peer.receive(), peer.receive()
            assert reply.op is Op.SPAWN_REPLY
            req_id, to, flags, pid = reply.fields
            assert (req_id, to, flags) == (peer.ref(), peer.pid(), 2)
            assert down.op is Op.PAYLOAD_MONITOR_P_EXIT
            assert down.fields == (pid, peer.pid(), peer.ref())

    @pytest.mark.parametrize(
        ("mfa", "options", "args", "answer"),
        [
            ((Atom("t"), Atom("echo"), 1), [Atom("no_such_option")], [1], "badopt"),
            ((Atom("t"), Atom("echo"), 1), [(Atom("x"), 1)], [1], "badopt"),
            ((Atom("t"), Atom("echo"), 1), [(Atom("link"), 1, 2)], [1], "badopt"),
            ((Atom("t"), Atom("echo"), 1), [([], 1)], [1], "badopt"),
            ((Atom("t"), Atom("echo"), 1), [1], [1], "badopt"),
            ((Atom("t"), Atom("echo"), 2), [], [1], "badarg"),
            ((Atom("t"), Atom("echo"), 1), [], Atom("x"), "badarg"),
            ((Atom("erpc"), Atom("execute_call"), 4), [], [1, 2, 3, 4], "badarg"),
            ((Atom("erpc"), Atom("execute_cast"), 3), [], [1, 2, 3], "badarg"),
        ],
    )
    def test_what_is_not_taken(
        self, node: NodeThread, raw: Dial, mfa: Any, options: Any, args: Any, answer: str
    ) -> None:
        peer = raw(node)
        peer.send(Op.SPAWN_REQUEST, peer.ref(), peer.pid(), peer.pid(), mfa, options, payload=args)
        assert peer.receive().fields == (peer.ref(), peer.pid(), 0, Atom(answer))

    def test_a_request_without_a_function_is_no_request(self, node: NodeThread, raw: Dial) -> None:
        peer = raw(node)
        peer.send(Op.SPAWN_REQUEST, peer.ref(), peer.pid(), peer.pid(), (1, 2, 3), [], payload=[])
        assert peer.closed()

    def test_a_fun_comes_back_unrun(self, node: NodeThread, raw: Dial) -> None:
        """As undef, with the fun among the arguments as it was sent."""
        peer = raw(node)
        fun = Fun(_a_fun(peer))
        peer.call("erlang", "apply", [fun, []])
        kind, reason, stack = peer.result()
        assert (kind, reason) == (Atom("error"), Atom("undef"))
        assert stack == [(Atom("erlang"), Atom("apply"), [fun, []], [])]

    def test_link_and_monitor_together(self, node: NodeThread, raw: Dial) -> None:
        peer = raw(node)
        mfa = (Atom("t"), Atom("fail"), 2)
        options = [Atom("link"), (Atom("monitor"), []), (Atom("priority"), Atom("low"))]
        peer.send(
            Op.SPAWN_REQUEST,
            *(peer.ref(), peer.pid(), peer.pid(), mfa, options),
            payload=[Atom("exit"), Atom("why")],
        )
        reply, down, end = (peer.receive() for _ in range(3))
        assert reply.fields[2] == 3
        assert (down.op, down.payload) == (Op.PAYLOAD_MONITOR_P_EXIT, Atom("why"))
        assert (end.op, end.payload) == (Op.PAYLOAD_EXIT, Atom("why"))
        assert end.fields == (reply.fields[3], peer.pid())

    def test_running_calls_of_a_peer_end_with_it_and_casts_do_not(
        self, start: Start, raw: Dial, seen: queue.Queue[Any]
    ) -> None:
        async def wait(name: Atom) -> None:
            try:
                await anyio.sleep(0.3)
                seen.put((name, "done"))
            except BaseException:
                seen.put((name, "cancelled"))
                raise

        node = start(apply=lambda _context, _module, _function, args: wait(args[0]))
        peer = raw(node)
        peer.call("t", "wait", [Atom("call")])
        mfa = (Atom("erpc"), Atom("execute_cast"), 3)
        cast = [Atom("t"), Atom("wait"), [Atom("cast")]]
        peer.send(Op.SPAWN_REQUEST, *(peer.ref(2), peer.pid(), peer.pid(), mfa, []), payload=cast)
        for _ in range(2):
            peer.receive()
        peer.close()
        assert seen.get(timeout=30) == (Atom("call"), "cancelled")
        assert seen.get(timeout=30) == (Atom("cast"), "done")

    @pytest.mark.parametrize("how", ["spawn", "alias", "old tag", "multi_call", "otp 25"])
    def test_a_caller_that_stops_waiting_is_told_of(
        self, start: Start, raw: Dial, seen: queue.Queue[Any], how: str
    ) -> None:
        """As a process does that ends, or whose call timed out: it takes its monitor back."""

        async def wait(context: CallContext, name: str) -> None:
            context.on_abandoned(lambda: seen.put(name))
            seen.put("waits")
            await anyio.sleep(60)

        node = start(apply=lambda context, _module, function, _args: wait(context, function))
        peer = raw(node)
        rex = Atom("rex")
        for number, name in ((1, "one"), (2, "other")):
            ref = peer.ref(number)
            if how == "spawn":
                peer.call("t", name, [], number=number)
                assert peer.receive().op is Op.SPAWN_REPLY
            else:
                alias = ImproperList((Atom("alias"),), ref)
                outer = ImproperList((alias,), ref)
                of_25 = (peer.ref(10), Atom(peer.name))  # of its multi_call, and no monitor
                tag = {"alias": alias, "multi_call": outer, "otp 25": of_25}.get(how, ref)
                request = (Atom("block_call"), Atom("t"), Atom(name), [], peer.pid())
                call = (Atom("$gen_call"), (peer.pid(), tag), request)
                peer.send(Op.MONITOR_P, peer.pid(), rex, ref)
                peer.send(Op.REG_SEND, peer.pid(), Atom(""), rex, payload=call)
            assert seen.get(timeout=30) == "waits"
        peer.send(Op.DEMONITOR_P, peer.pid(), rex, peer.ref(2))
        assert seen.get(timeout=30) == "other"
        peer.send(Op.DEMONITOR_P, peer.pid(), rex, peer.ref(2))
        peer.close()
        assert seen.get(timeout=30) == "one"
        assert seen.empty()

    def test_one_that_left_before_it_was_asked_about_is_told_of(
        self, start: Start, raw: Dial, seen: queue.Queue[Any]
    ) -> None:
        gone = threading.Event()

        async def wait(context: CallContext) -> None:
            await anyio.to_thread.run_sync(gone.wait, 10)
            context.on_abandoned(lambda: seen.put("left"))

        node = start(apply=lambda context, *_: wait(context))
        peer = raw(node)
        peer.call("t", "wait", [])
        pid = peer.receive().fields[3]
        peer.send(Op.DEMONITOR_P, peer.pid(), pid, peer.ref())
        peer.call("t", "wait", [], number=2)
        assert peer.receive().op is Op.SPAWN_REPLY  # what came before has been seen
        gone.set()
        assert seen.get(timeout=30) == "left"
        assert peer.receive().op is Op.PAYLOAD_MONITOR_P_EXIT
        assert seen.empty(), "the second call was answered"

    def test_a_peer_that_goes_leaves_no_process_behind(self, node: NodeThread, raw: Dial) -> None:
        """What ran for it is cancelled, and what stood for that is gone, too."""
        peer = raw(node)
        pids = []
        for number in range(1, 4):
            peer.call("t", "wait", [60], number=number)
            pids.append(peer.receive().fields[3])
        assert all(node.node.find(pid) is not None for pid in pids)
        peer.close()
        wait_for(lambda: all(node.node.find(pid) is None for pid in pids))

    def test_stopping_the_node_ends_everything(
        self, start: Start, raw: Dial, seen: queue.Queue[Any]
    ) -> None:
        async def wait() -> None:
            try:
                await anyio.sleep(60)
            finally:
                seen.put("cancelled")

        node = start(apply=lambda *_: wait())
        peer = raw(node)
        peer.call("t", "wait", [])
        peer.receive()
        node.stop()
        assert seen.get_nowait() == "cancelled"
        assert peer.closed()


class TestNames:
    def test_one_process_one_name(self, node: NodeThread) -> None:
        process = node.node.spawn_process()
        assert node.node.register_name("a", process) is process
        assert node.node.whereis("a") is process
        with pytest.raises(ValueError, match="'a' is registered already"):
            node.node.register_name("a", node.node.spawn_process())
        with pytest.raises(ValueError, match="as 'a' already"):
            node.node.register_name("b", process)
        node.node.unregister_name("a")
        node.node.unregister_name("a")
        assert node.node.whereis("a") is None
        assert process.alive
        node.node.register_name("a", process)
        process.exit()
        wait_for(lambda: node.node.whereis("a") is None)

    @pytest.mark.parametrize("name", ["a b", "", "a@b@c", "ä", "@h"])
    def test_names_of_nodes_are_checked(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"node name|only letters"):
            Node(name, cookie="x")


class TestLife:
    def test_a_node_that_does_not_run_says_so(self) -> None:
        node = Node("a", cookie="x")
        for use in (
            lambda: node.process,
            node.spawn_process,
            lambda: node.send(Atom("x"), 1),
            lambda: NodeThread(node).ping("b"),
        ):
            with pytest.raises(RuntimeError, match="not running"):
                use()

    def test_start_and_stop_leave_nothing(self, start: Start) -> None:
        before = threading.active_count()
        node = start()
        assert node.running
        assert threading.active_count() > before
        node.stop()
        assert not node.running
        assert threading.active_count() == before
        node.stop()

    def test_a_name_that_is_taken(self, start: Start) -> None:
        """The error is plain, and nothing is left of the attempt."""
        node = start()
        before = threading.active_count()
        with pytest.raises(NameTaken, match="choose another name"):
            start(node.node.name)
        assert threading.active_count() == before
        assert node.ping(node.node.name) is False  # a node does not dial itself

    def test_one_life(self, start: Start) -> None:
        node = start()
        with pytest.raises(RuntimeError, match="running already"):
            node.start()
        node.stop()
        with pytest.raises(RuntimeError, match="one life"):
            node.start()

    def test_a_callback_cannot_stop_its_node(
        self, node: NodeThread, seen: queue.Queue[Any]
    ) -> None:
        def stop(_message: Any) -> None:
            try:
                node.stop()
            except RuntimeError as error:
                seen.put(str(error))

        node.node.send(node.node.spawn_process(stop), 1)
        assert "one of its own callbacks" in seen.get(timeout=30)
        assert node.running

    def test_who_watches_peers_can_stop(
        self, node: NodeThread, raw: Dial, seen: queue.Queue[Any]
    ) -> None:
        end = node.node.watch_peers(lambda *what: seen.put(what))
        first = raw(node)
        assert seen.get(timeout=30) == (first.name, True, "")
        end()
        second = raw(node)
        second.call("t", "echo", [1])
        second.result()
        assert seen.empty()

    def test_senders_may_outlive_the_node(self, start: Start) -> None:
        node = start()
        process = node.node.spawn_process()
        node.stop()
        node.node.send(process, 1)
        process.exit()

    @pytest.mark.anyio
    async def test_in_the_callers_own_loop(self, epmd: Any) -> None:
        """As an async context manager; errors of the body come out as they are."""
        options = {"cookie": COOKIE, "epmd_port": epmd.port, "apply": apply}
        async with Node(unique_name(), **options) as a, Node(unique_name(), **options) as b:
            assert await a.call(b.name, "t", "echo", [1]) == 1
            assert await b.ping(a.name)
            await a.drain(b.name)
            await a.drain("no@where")
        with pytest.raises(KeyError):
            async with Node(unique_name(), **options):
                raise KeyError("mine")

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"


def _a_fun(peer: RawPeer) -> bytes:
    """The external form of a closure, without the version byte."""
    free = (
        bytes((1,))
        + bytes(16)
        + (0).to_bytes(4, "big")
        + (0).to_bytes(4, "big")
        + encode(Atom("m"), version=False)
        + encode(0, version=False)
        + encode(0, version=False)
        + encode(peer.pid(), version=False)
    )
    return bytes((112,)) + (len(free) + 4).to_bytes(4, "big") + free
