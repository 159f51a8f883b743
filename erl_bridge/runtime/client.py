"""Calls from us to other nodes.

All run in the event loop.  The remote process that works for a call is monitored, so a
call always ends: with its value, its failure, ``noconnection``, or the timeout.  After a
timeout the function may still be running, or never have been started; nothing tells.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import anyio

from erl_bridge.etf import Atom, Pid, Reference
from erl_bridge.net.errors import NotConnected
from erl_bridge.proto.control import Op
from erl_bridge.runtime.errors import ErlangError
from erl_bridge.runtime.gen import GEN_CALL

if TYPE_CHECKING:
    from erl_bridge.runtime.node import Node
    from erl_bridge.runtime.peer import Peer

__all__ = ("Client",)

log = logging.getLogger(__name__)

_ERPC, _TIMEOUT, _NOCONNECTION = Atom("erpc"), Atom("timeout"), Atom("noconnection")
_EXECUTE_CALL = (_ERPC, Atom("execute_call"), 4)
_MONITOR = Atom("monitor")


class Client:
    """The calling side of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._replies: dict[Reference, asyncio.Future[Any]] = {}

    async def connect(self, name: str) -> Peer:
        """Return the peer, dialling it where needed.

        :raises NotConnected: with the reason in words.
        """
        connection = await self._node.endpoint.connect(name)
        peer = self._node.peer(name)
        if peer is None:
            raise NotConnected(name, connection.close_reason or "the connection closed at once")
        return peer

    async def ping(self, name: str, seconds: float | None) -> bool:
        """Do what ``net_adm:ping`` does: connect, and ask ``net_kernel``."""
        request = (Atom("is_auth"), Atom(self._node.name))
        try:
            answer = await self.gen_call((Atom("net_kernel"), Atom(name)), request, seconds)
        except (NotConnected, ErlangError) as error:
            log.debug("no pong from %s: %s", name, error)
            return False
        return answer is Atom("yes")

    async def call(
        self, name: str, module: str, function: str, args: list[Any], seconds: float | None
    ) -> Any:
        """Do ``erpc:call(Node, M, F, A, Timeout)``."""
        try:
            peer = await self.connect(name)
        except NotConnected as error:
            raise ErlangError("error", (_ERPC, _NOCONNECTION)) from error
        result = self._node.make_ref()
        ref = self._node.make_ref()
        pid = self._node.process.pid
        future = self._expect(ref)
        self._node.monitors.expect(ref, peer, self._down)
        try:
            peer.signal(
                Op.SPAWN_REQUEST,
                (ref, pid, pid, _EXECUTE_CALL, [_MONITOR]),
                [result, Atom(module), Atom(function), args],
            )
            with anyio.fail_after(seconds):
                reason = await future
        except TimeoutError:
            raise ErlangError("error", (_ERPC, _TIMEOUT)) from None
        finally:
            self._replies.pop(ref, None)
            self._node.demonitor(ref)
        return _result(reason, result)

    async def gen_call(self, to: Any, request: Any, seconds: float | None) -> Any:
        """Do ``gen_server:call`` on a pid or a (name, node) pair of atoms.

        :raises ErlangError: exit with the server's reason, or with ``timeout``.
        :raises NotConnected: its node cannot be reached.
        """
        name = to.node.name if isinstance(to, Pid) else to[1].name
        await self.connect(name)
        ref = self._node.make_ref()
        future = self._expect(ref)
        self._node.monitor(to, self._down, ref=ref)
        try:
            # Behind the monitor on the same connection: if that is gone, 'DOWN' says so.
            self._node.send(to, (GEN_CALL, (self._node.process.pid, ref), request))
            with anyio.fail_after(seconds):
                answer = await future
        except TimeoutError:
            raise ErlangError("exit", _TIMEOUT) from None
        finally:
            self._replies.pop(ref, None)
            self._node.demonitor(ref)
        if isinstance(answer, _Down):
            raise ErlangError("exit", answer.reason)
        return answer

    # -- what comes back ----------------------------------------------------------------------

    def spawned(self, ref: Reference, result: Pid | Atom) -> None:
        """Take a SPAWN_REPLY."""
        if isinstance(result, Pid):
            self._node.monitors.spawned(ref, result)
        else:
            self._node.monitors.forget(ref)
            self._down(ref, None, (_ERPC, result))

    def message(self, message: Any) -> None:
        """Take a message to the node's own process: a reply, or a request for output."""
        match message:
            case tuple((Reference() as ref, reply)):
                future = self._replies.get(ref)
                if future is not None and not future.done():
                    future.set_result(reply)
            case tuple((Atom(name="io_request"), Pid() as pid, reply_as, _)):
                # We are the group leader of what we call; unanswered, its io:format hangs.
                error = (Atom("error"), Atom("enotsup"))
                self._node.send(pid, (Atom("io_reply"), reply_as, error))
            case _:
                log.debug("a message for nobody: %r", message)

    def _expect(self, ref: Reference) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        self._replies[ref] = future
        return future

    def _down(self, ref: Reference, _item: Any, reason: Any) -> None:
        future = self._replies.get(ref)
        if future is not None and not future.done():
            future.set_result(_Down(reason))


class _Down:
    """A 'DOWN' where a reply was expected."""

    def __init__(self, reason: Any) -> None:
        self.reason = reason


def _result(down: Any, result: Reference) -> Any:
    reason = down.reason if isinstance(down, _Down) else down
    match reason:
        case tuple((Reference() as ref, Atom(name="return"), value)) if ref == result:
            return value
        case tuple((Reference() as ref, Atom(name="throw" | "exit" | "error" as kind), why)) if (
            ref == result
        ):
            raise ErlangError(kind, why)
        case tuple((Reference() as ref, Atom(name="error"), why, list() as stack)) if ref == result:
            raise ErlangError("error", why, stack)
        case tuple((Atom() as tag, _)) if tag is _ERPC:
            raise ErlangError("error", reason)
    raise ErlangError("error", (_ERPC, reason))
