"""Links, monitors, names and messages between real nodes and processes of ours."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from erl_bridge import ErlangError
from erl_bridge.etf import Atom, Pid
from tests.live.erlnode import ErlNode
from tests.live.served import Call, Served

#: Receive one message that matches, or say that none came.
DOWN = "receive {'DOWN', M, process, _, R} -> R after 5000 -> nothing end"


@pytest.fixture
def there(peer: ErlNode, served: Served) -> Pid:
    """The pid of the peer's evaluating process."""
    peer.eval(f"{{named, '{served.name}'}} ! self()")
    pid = served.next()
    assert isinstance(pid, Pid)
    return pid


class TestMessages:
    def test_to_a_pid_and_to_a_name(self, call: Call, served: Served) -> None:
        call(
            "begin P = erpc:call(N, t, pid, []), P ! one, {named, N} ! two, P ! {three, <<3>>} end"
        )
        assert [served.next() for _ in range(3)] == [
            Atom("one"),
            Atom("two"),
            (Atom("three"), b"\3"),
        ]

    def test_to_nobody(self, call: Call, served: Served) -> None:
        call(
            "begin {no_such_name, N} ! lost, P = erpc:call(N, t, new, []),"
            " erpc:call(N, t, 'end', [P, ok]), P ! lost end"
        )
        assert call("net_adm:ping(N)") == "pong"
        assert served.nothing_came()

    def test_from_us_to_a_pid(self, peer: ErlNode, served: Served, there: Pid) -> None:
        served.node.send(there, (Atom("hello"), [1, 2]))
        assert peer.eval("receive M -> M after 5000 -> nothing end") == "{hello,[1,2]}"

    def test_from_us_to_a_name(self, peer: ErlNode, served: Served) -> None:
        peer.eval("register(tester, self())")
        served.node.send((Atom("tester"), Atom(peer.name)), Atom("hello"), sender=served.process)
        assert peer.eval("receive M -> M after 5000 -> nothing end") == "hello"
        peer.eval("unregister(tester)")

    def test_a_stream_from_another_thread_keeps_its_order(
        self, peer: ErlNode, served: Served, there: Pid
    ) -> None:
        def stream() -> None:
            for i in range(5000):
                served.node.send(there, (Atom("token"), i))
            process.exit(Atom("done"))

        process = served.new()
        served.node.send(there, process.pid)
        peer.eval("begin P = receive X -> X end, put(m, monitor(process, P)) end")
        thread = threading.Thread(target=stream)
        thread.start()
        got = peer.eval(
            "begin M = get(m), F = fun F(N) -> receive {token, N} -> F(N + 1);"
            " {'DOWN', M, _, _, R} -> {N, R} after 5000 -> {N, nothing} end end, F(0) end"
        )
        thread.join()
        assert got == "{5000,done}"

    def test_between_processes_of_ours(self, served: Served) -> None:
        served.node.send(served.process, [1])
        assert served.next() == [1]
        served.node.send(Atom("named"), b"x")
        assert served.next() == b"x"


class TestMonitors:
    def test_down_with_the_reason(self, call: Call) -> None:
        assert (
            call(
                "begin P = erpc:call(N, t, new, []), M = monitor(process, P),"
                f" erpc:call(N, t, 'end', [P, {{shutdown, <<1>>}}]), {DOWN} end"
            )
            == "{shutdown,<<1>>}"
        )

    def test_by_name(self, call: Call, served: Served) -> None:
        process = served.new()
        served.node.register_name("mortal", process)
        call("put(m, monitor(process, {mortal, N}))")
        call("net_adm:ping(N)")
        process.exit(Atom("gone"))
        assert (
            call(
                "receive {'DOWN', M, process, {mortal, N}, R} -> {R, M =:= get(m)}"
                " after 5000 -> no end"
            )
            == "{gone,true}"
        )

    def test_of_nobody(self, call: Call) -> None:
        assert call(f"begin M = monitor(process, {{no_such_name, N}}), {DOWN} end") == "noproc"
        assert (
            call(
                "begin P = erpc:call(N, t, new, []), erpc:call(N, t, 'end', [P, ok]),"
                f" M = monitor(process, P), {DOWN} end"
            )
            == "noproc"
        )

    def test_taken_back(self, call: Call) -> None:
        assert (
            call(
                "begin P = erpc:call(N, t, new, []), M = monitor(process, P), demonitor(M),"
                " erpc:call(N, t, 'end', [P, ok]), receive X -> X after 100 -> nothing end end"
            )
            == "nothing"
        )

    def test_several_on_one_process(self, call: Call) -> None:
        assert (
            call(
                "begin P = erpc:call(N, t, new, []), Ms = [monitor(process, P) || _ <- [1,2,3]],"
                " demonitor(hd(Ms)), erpc:call(N, t, 'end', [P, ok]),"
                " [receive {'DOWN', M, _, _, R} -> R after 300 -> nothing end || M <- Ms] end"
            )
            == "[nothing,ok,ok]"
        )


class TestLinks:
    def test_exit_reaches_the_other_side(self, call: Call) -> None:
        assert (
            call(
                "begin process_flag(trap_exit, true), P = erpc:call(N, t, new, []), link(P),"
                " erpc:call(N, t, 'end', [P, why]),"
                " R = receive {'EXIT', P, R0} -> R0 after 5000 -> nothing end,"
                " process_flag(trap_exit, false), R end"
            )
            == "why"
        )

    def test_a_normal_exit_too(self, call: Call) -> None:
        assert (
            call(
                "begin process_flag(trap_exit, true), P = erpc:call(N, t, new, []), link(P),"
                " erpc:call(N, t, 'end', [P, normal]),"
                " R = receive {'EXIT', P, R0} -> R0 after 5000 -> nothing end,"
                " process_flag(trap_exit, false), R end"
            )
            == "normal"
        )

    def test_to_a_dead_process(self, call: Call) -> None:
        assert (
            call(
                "begin process_flag(trap_exit, true), P = erpc:call(N, t, new, []),"
                " erpc:call(N, t, 'end', [P, why]), link(P),"
                " R = receive {'EXIT', P, R0} -> R0 after 5000 -> nothing end,"
                " process_flag(trap_exit, false), R end"
            )
            == "noproc"
        )

    def test_unlinked(self, call: Call, served: Served) -> None:
        assert (
            call(
                "begin process_flag(trap_exit, true), P = erpc:call(N, t, new, []),"
                " link(P), unlink(P), link(P), unlink(P), erpc:call(N, t, 'end', [P, why]),"
                " R = receive X -> X after 100 -> nothing end,"
                " process_flag(trap_exit, false), R end"
            )
            == "nothing"
        )
        assert served.nothing_came()

    def test_we_hear_of_the_end_of_theirs(self, call: Call, served: Served) -> None:
        call("spawn(fun() -> link(erpc:call(N, t, pid, [])), exit(bye) end)")
        kind, pid, reason = served.next()
        assert (kind, reason) == (Atom("exit"), Atom("bye"))
        assert isinstance(pid, Pid)

    def test_an_exit_request_is_only_that(self, call: Call, served: Served) -> None:
        call("begin P = erpc:call(N, t, pid, []), exit(P, please) end")
        kind, _pid, reason = served.next()
        assert (kind, reason) == (Atom("asked"), Atom("please"))
        assert served.process.alive

    def test_we_link_with_theirs_and_unlink(self, peer: ErlNode, served: Served) -> None:
        process = served.new()
        for unlink in (False, True):
            peer.eval(
                f"begin P = spawn(fun() -> receive stop -> exit(bye) end end), register(victim, P),"
                f" {{named, '{served.name}'}} ! P end"
            )
            pid = served.next()
            process.link(pid)
            if unlink:
                process.unlink(pid)
            served.thread.ping(peer.name)
            peer.eval(
                "begin M = monitor(process, victim), victim ! stop,"
                " receive {'DOWN', M, _, _, R} -> R end end"
            )
            served.thread.ping(peer.name)
            if unlink:
                assert served.nothing_came()
            else:
                assert served.next() == (Atom("exit"), pid, Atom("bye"))

    def test_our_exit_ends_theirs(self, peer: ErlNode, served: Served) -> None:
        peer.eval(
            "begin P = spawn(fun() -> receive never -> ok end end), put(m, monitor(process, P)),"
            f" {{named, '{served.name}'}} ! P end"
        )
        served.process.send_exit(served.next(), Atom("stop_it"))
        assert peer.eval(f"begin M = get(m), {DOWN} end") == "stop_it"


class TestOurMonitors:
    @pytest.fixture
    def downs(self) -> queue.Queue[Any]:
        return queue.Queue()

    def watch(self, served: Served, to: Any, downs: queue.Queue[Any]) -> Any:
        return served.node.monitor(to, lambda ref, item, reason: downs.put((ref, item, reason)))

    def test_on_a_pid(self, peer: ErlNode, served: Served, downs: queue.Queue[Any]) -> None:
        peer.eval(f"{{named, '{served.name}'}} ! spawn(fun() -> receive go -> exit(bye) end end)")
        pid = served.next()
        ref = self.watch(served, pid, downs)
        served.node.send(pid, Atom("go"))
        assert downs.get(timeout=10) == (ref, pid, Atom("bye"))

    def test_on_a_name(self, peer: ErlNode, served: Served, downs: queue.Queue[Any]) -> None:
        there = (Atom("no_such_name"), Atom(peer.name))
        ref = self.watch(served, there, downs)
        assert downs.get(timeout=10) == (ref, there, Atom("noproc"))

    def test_taken_back(self, peer: ErlNode, served: Served, downs: queue.Queue[Any]) -> None:
        peer.eval(
            f"begin Pid = spawn(fun() -> receive go -> ok end end), put(m, monitor(process, Pid)),"
            f" {{named, '{served.name}'}} ! Pid end"
        )
        pid = served.next()
        served.node.demonitor(self.watch(served, pid, downs))
        served.node.send(pid, Atom("go"))
        ended = "begin M = get(m), receive {'DOWN', M, _, _, R} -> R after 5000 -> lost end end"
        assert peer.eval(ended) == "normal"
        assert served.thread.ping(peer.name)
        assert downs.empty()

    def test_on_a_node_that_is_not_there(self, served: Served, downs: queue.Queue[Any]) -> None:
        there = (Atom("x"), Atom(f"no_such_node@{served.name.partition('@')[2]}"))
        ref = self.watch(served, there, downs)
        assert downs.get(timeout=10) == (ref, there, Atom("noconnection"))

    def test_on_one_of_ours(self, served: Served, downs: queue.Queue[Any]) -> None:
        process = served.new()
        ref = self.watch(served, process, downs)
        process.exit(Atom("bye"))
        assert downs.get(timeout=10) == (ref, process.pid, Atom("bye"))
        ref = self.watch(served, process, downs)
        assert downs.get(timeout=10) == (ref, process.pid, Atom("noproc"))


class TestGenServers:
    def test_call(self, call: Call) -> None:
        assert call("gen_server:call({echo, N}, [1, 2])") == "{echo,[1,2]}"

    def test_call_by_pid(self, call: Call) -> None:
        assert call("gen_server:call(erpc:call(N, t, server, []), 1)") == "{echo,1}"

    def test_a_late_reply(self, call: Call) -> None:
        assert call("gen_server:call({echo, N}, {wait, 20})") == "late"

    def test_a_call_that_is_given_up(self, call: Call) -> None:
        assert (
            call("try gen_server:call({echo, N}, {wait, 200}, 20) catch exit:{R, _} -> R end")
            == "timeout"
        )
        assert call("receive X -> X after 400 -> nothing end") == "nothing"

    def test_send_request(self, call: Call) -> None:
        assert (
            call("gen_server:wait_response(gen_server:send_request({echo, N}, 1), 5000)")
            == "{reply,{echo,1}}"
        )

    def test_multi_call(self, call: Call, served: Served, peer: ErlNode) -> None:
        name = served.name
        assert call("gen_server:multi_call([N], echo, 1)") in (
            f"{{[{{{name},{{echo,1}}}}],[]}}",
            f"{{[{{'{name}',{{echo,1}}}}],[]}}",
        )

    def test_multi_call_with_a_timeout(self, call: Call) -> None:
        assert call("element(2, gen_server:multi_call([N], echo, 1, 5000))") == "[]"
        assert (
            call("element(2, gen_server:multi_call([N], no_such_name, 1, 5000)) =:= [N]") == "true"
        )

    def test_the_tag_is_what_the_caller_sent(self, call: Call) -> None:
        tag = call("element(2, gen_server:call({echo, N}, tag))")
        assert tag.startswith("[alias|#Ref<")

    def test_gen_statem_call(self, call: Call) -> None:
        assert call("gen_statem:call({echo, N}, 1)") == "{echo,1}"

    def test_cast_and_info(self, call: Call, served: Served) -> None:
        call("begin gen_server:cast({echo, N}, one), {echo, N} ! two end")
        assert [served.next(), served.next()] == [
            (Atom("cast"), Atom("one")),
            (Atom("info"), Atom("two")),
        ]

    def test_a_failing_server_fails_its_caller_and_lives(self, call: Call) -> None:
        caught = "try gen_server:call({echo, N}, %s) catch exit:{R, {gen_server, call, _}} -> R end"
        assert call(caught % "{exit, {shutdown, why}}") == "{shutdown,why}"
        assert call(caught % "bug") == "{{python,'KeyError',<<\"'bug'\">>},[]}"
        assert call("gen_server:call({echo, N}, 1)") == "{echo,1}"

    def test_nobody_there(self, call: Call) -> None:
        assert (
            call("try gen_server:call({no_such_name, N}, 1) catch exit:{R, _} -> R end") == "noproc"
        )

    def test_a_request_net_kernel_does_not_know(self, call: Call) -> None:
        assert (
            call("try gen_server:call({net_kernel, N}, nonsense) catch exit:{R, _} -> R end")
            == "{bad_call,nonsense}"
        )


class TestOurCalls:
    def test_a_function_there(self, peer: ErlNode, served: Served) -> None:
        call = served.thread.call
        assert call(peer.name, "erlang", "node", []) == Atom(peer.name)
        assert call(peer.name, "lists", "seq", [1, 300], 5) == list(range(1, 301))

    def test_its_failures(self, peer: ErlNode, served: Served) -> None:
        call = served.thread.call
        for kind in ("throw", "exit", "error"):
            with pytest.raises(ErlangError) as caught:
                call(peer.name, "erlang", "raise", [Atom(kind), Atom("why"), []])
            assert (caught.value.class_, caught.value.reason) == (kind, Atom("why"))
        with pytest.raises(ErlangError) as caught:
            call(peer.name, "no_such_module", "f", [1])
        assert caught.value.reason is Atom("undef")
        assert caught.value.stack[0][:3] == (Atom("no_such_module"), Atom("f"), [1])

    def test_a_timeout(self, peer: ErlNode, served: Served) -> None:
        with pytest.raises(ErlangError) as caught:
            served.thread.call(peer.name, "timer", "sleep", [60000], 0.05)
        assert caught.value.reason == (Atom("erpc"), Atom("timeout"))

    def test_a_node_that_is_not_there(self, served: Served) -> None:
        with pytest.raises(ErlangError) as caught:
            served.thread.call("no_such_node", "erlang", "node", [])
        assert caught.value.reason == (Atom("erpc"), Atom("noconnection"))

    def test_output_of_what_we_call_does_not_hang(self, peer: ErlNode, served: Served) -> None:
        with pytest.raises(ErlangError):
            served.thread.call(peer.name, "io", "format", [b"hello"], 10)

    def test_a_gen_server_there(self, peer: ErlNode, served: Served) -> None:
        to = (Atom("rex"), Atom(peer.name))
        request = (Atom("block_call"), Atom("erlang"), Atom("abs"), [-1], served.process.pid)
        assert served.thread.run(served.node.gen_call, to, request) == 1
        with pytest.raises(ErlangError) as caught:
            served.thread.run(served.node.gen_call, (Atom("nobody"), Atom(peer.name)), 1)
        assert (caught.value.class_, caught.value.reason) == ("exit", Atom("noproc"))
