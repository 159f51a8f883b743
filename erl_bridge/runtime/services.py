"""The registered names every node must have.

``net_kernel``
    ``net_adm:ping`` calls it with ``{is_auth, Node}`` and waits for ever without a ``yes``.
``rex``
    The old ``rpc`` server.  ``rpc:call`` has not used it since OTP 23, ``rpc:block_call``
    and ``rpc:sbcast`` still do.  Nodes that see us as visible ask it for our features.
``global_name_server``
    On visible nodes only.  Every visible peer opens with ``init_connect`` and counts us as
    not synchronised until it hears ``in_sync``; ``global:sync()`` over there waits as long.
    We hold no global names, so we say at once that there is nothing to agree on.  A lock,
    by default, is one on every visible node, so ``global:trans`` of peers needs ours.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from erl_bridge.etf import FALSE, TRUE, Atom, Pid, Reference, encode
from erl_bridge.runtime import calls
from erl_bridge.runtime.calls import CallContext, Outcome
from erl_bridge.runtime.gen import GEN_CAST, Caller, GenHandler

if TYPE_CHECKING:
    from erl_bridge.runtime.node import Node

__all__ = ("GlobalNameServer", "NetKernel", "Rex")

log = logging.getLogger(__name__)

_YES = Atom("yes")
_REX = Atom("rex")

MAX_LOCKS = 4096
"""Locks of peers at a time; who asks for more waits, as for one that others hold."""


class NetKernel(GenHandler):
    """Answers pings."""

    def handle_call(self, request: Any, caller: Caller) -> Any:
        """Say yes: who gets here has shown the cookie."""
        match request:
            case tuple((Atom(name="is_auth"), Atom())):
                return _YES
        return super().handle_call(request, caller)


class Rex(GenHandler):
    """Runs the owner's functions for the old ``rpc`` protocol."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def handle_call(self, request: Any, caller: Caller) -> Awaitable[Any] | Any:
        """Serve ``call`` and ``block_call``; the latter blocks nobody but its caller."""
        match request:
            case tuple(
                (
                    Atom(name="call" | "block_call"),
                    Atom() as module,
                    Atom() as function,
                    list() as args,
                    Pid() as leader,
                )
            ):
                context = caller.context(leader)
                return self._run(context, module.name, function.name, args)
        return super().handle_call(request, caller)

    def handle_cast(self, message: Any, peer: str) -> Awaitable[None] | None:
        """Serve ``cast``."""
        match message:
            case tuple(
                (
                    Atom(name="cast"),
                    Atom() as module,
                    Atom() as function,
                    list() as args,
                    Pid() as leader,
                )
            ):
                context = CallContext(self._node, peer, leader, leader)
                result = self._run(context, module.name, function.name, args)
                return result if inspect.isawaitable(result) else None
        return super().handle_cast(message, peer)

    def handle_info(self, message: Any, peer: str) -> None:
        """Say that calls may use ``erpc`` here."""
        match message:
            case tuple((Pid() as pid, Atom(name="features_request"))):
                reply = (Atom("features_reply"), Atom(self._node.name), [Atom("erpc")])
                self._node.send(pid, reply)
            case tuple((Pid() as pid, tuple((Atom(name="sbcast"), Atom() as name, sent)))):
                self._node.send(pid, (_REX, Atom(self._node.name), self._pass_on(name, sent, peer)))
            case _:
                super().handle_info(message, peer)

    def _pass_on(self, name: Atom, message: Any, peer: str) -> Any:
        process = self._node.whereis(name.name)
        if process is None:
            return Atom("nonexisting_name"), name
        process.deliver(message, self._node.peer(peer))
        return Atom(self._node.name)

    def _run(
        self, context: CallContext, module: str, function: str, args: list[Any]
    ) -> Awaitable[Any] | Any:
        outcome = calls.invoke(self._node.apply, context, module, function, args)
        if isinstance(outcome, Outcome):
            return calls.rpc_value(outcome)

        async def run() -> Any:
            what = f"{module}:{function}/{len(args)}"
            return calls.rpc_value(await calls.finish(outcome, what))

        return run()


class _Lock:
    """One lock of ``global``: who asked for it, and the processes that hold it so."""

    def __init__(self, requester: bytes) -> None:
        self.requester = requester
        self.holders: list[tuple[Pid, Reference]] = []


class GlobalNameServer(GenHandler):
    """Tells peers that they are in step with us, and takes part in their locks."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._locks: dict[bytes, _Lock] = {}
        """By their resource's id, encoded: it may be any term."""

    def handle_call(self, request: Any, caller: Caller) -> Any:
        """Serve ``set_lock`` and ``del_lock``; a holder that ends lets go."""
        match request:
            case tuple((Atom(name="set_lock"), tuple((resource, requester)))):
                return self._set(encode(resource), encode(requester), caller.pid)
            case tuple((Atom(name="del_lock"), tuple((resource, requester)))):
                lock = self._locks.get(encode(resource))
                if lock is not None and lock.requester == encode(requester):
                    self._let_go(encode(resource), lambda pid, _: pid == caller.pid)
                return TRUE
        return super().handle_call(request, caller)

    def handle_cast(self, message: Any, peer: str) -> None:
        """Answer ``init_connect``; everything else is about names, and we have none."""
        match message:
            case tuple((Atom(name="init_connect"), *_)):
                answer = (Atom("in_sync"), Atom(self._node.name), TRUE)
                to = (Atom("global_name_server"), Atom(peer))
                self._node.send(to, (GEN_CAST, answer))
            case _:
                log.debug("%s told global: %r", peer, message)

    def _set(self, key: bytes, requester: bytes, pid: Pid) -> Atom:
        if key not in self._locks and len(self._locks) >= MAX_LOCKS:
            return FALSE
        lock = self._locks.setdefault(key, _Lock(requester))
        if lock.requester != requester:
            return FALSE
        ref = self._node.make_ref()
        lock.holders.append((pid, ref))
        self._node.monitor(pid, lambda gone, *_: self._let_go(key, lambda _, r: r == gone), ref=ref)
        return TRUE

    def _let_go(self, key: bytes, of: Callable[[Pid, Reference], bool]) -> None:
        """Drop one hold, and the lock with the last."""
        lock = self._locks.get(key)
        held = next((hold for hold in lock.holders if of(*hold)), None) if lock else None
        if lock is None or held is None:
            return
        lock.holders.remove(held)
        self._node.demonitor(held[1])
        if not lock.holders:
            del self._locks[key]
