"""``gen_server`` conversations: serving a registered name, and calling one.

A call is a message ``{'$gen_call', {Pid, Tag}, Request}`` to which ``{Tag, Reply}`` is
due; before it the caller monitors us.  The tag must come back exactly as it was sent, and
its shape says where to, and by which monitor the caller watches us:

=====================  ==================================  =============  ==============
tag                    sent by                             reply goes to  watched by
=====================  ==================================  =============  ==============
``[alias|Ref]``        ``gen_server:call``                 the alias Ref  Ref
``[[alias|Ref]|Mon]``  ``gen_server:multi_call`` (OTP 28)  the alias Ref  Mon, or Ref
``Ref``                older libraries                     the pid        Ref
anything else          ``multi_call`` (OTP 25)             the pid        its newest one
=====================  ==================================  =============  ==============

A server here does not die of a bad request.  The caller nevertheless sees what it would
see if it had, 'DOWN' with the reason, because callers are written for that.

System messages, ``{system, {Pid, Tag}, Request}``, are conversations of the same shape
(:mod:`erl_bridge.runtime.system`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from erl_bridge.etf import Atom, EncodeError, ImproperList, Pid, Reference, encode
from erl_bridge.proto.control import Op
from erl_bridge.runtime.calls import (
    EXIT,
    RETURN,
    THROW,
    CallContext,
    Outcome,
    failure,
    finish,
)
from erl_bridge.runtime.peer import Peer, Request
from erl_bridge.runtime.process import Process
from erl_bridge.runtime.system import NOT_SUPPORTED, parse_system, system_answer

if TYPE_CHECKING:
    from erl_bridge.runtime.node import Node

__all__ = ("NO_REPLY", "Caller", "GenHandler", "GenServer", "alias_of", "parse_call", "parse_cast")

log = logging.getLogger(__name__)

GEN_CALL, GEN_CAST = Atom("$gen_call"), Atom("$gen_cast")
_ALIAS = Atom("alias")
_SYSTEM_LIMIT = Atom("system_limit")


class _NoReply:
    """The type of :data:`NO_REPLY`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NO_REPLY"


NO_REPLY: Final = _NoReply()
"""Returned by a handler that calls :meth:`Caller.reply` itself, now or later."""


def parse_call(message: Any) -> tuple[Pid, Any, Any] | None:
    """Return (pid, tag, request) of a gen call, or None for any other message."""
    match message:
        case tuple((Atom() as kind, tuple((Pid() as pid, tag)), request)) if kind is GEN_CALL:
            return pid, tag, request
    return None


def parse_cast(message: Any) -> tuple[Any] | None:
    """Return the cast in a one-tuple, or None for any other message."""
    match message:
        case tuple((Atom() as kind, cast)) if kind is GEN_CAST:
            return (cast,)
    return None


def alias_of(tag: Any) -> Reference | None:
    """Return the alias a tag asks the reply to be sent to."""
    if isinstance(tag, ImproperList) and len(tag.items) == 1:
        first = tag.items[0]
        if isinstance(first, ImproperList):
            return alias_of(first)
        if first is _ALIAS and isinstance(tag.tail, Reference):
            return tag.tail
    return None


class Caller:
    """Who waits for a reply."""

    def __init__(self, server: GenServer, peer: Peer, pid: Pid, tag: Any) -> None:
        self.pid = pid
        self.tag = tag
        self.peer = peer.name
        self.node = server.node
        self._server = server
        self._peer = peer
        # Set just before the call, on the same connection; later ones are for others.
        known = isinstance(tag, (Reference, ImproperList))
        self._newest = None if known else server.process.newest_monitor_of(pid)

    def reply(self, term: Any) -> None:
        """Send the reply.  Any thread.

        :raises erl_bridge.etf.EncodeError: the term has no external form.
        """
        self.node.run_in_loop(self._reply, encode((self.tag, term)))

    def context(self, group_leader: Pid | None = None) -> CallContext:
        """Return who calls as functions of a node are told.  In the event loop's thread."""
        process = self._server.process
        watch = next(filter(process.watched, self._monitors()), None)
        leader = self.pid if group_leader is None else group_leader
        return CallContext(self.node, self.peer, self.pid, leader, process, watch)

    def fail(self, reason: Any) -> None:
        """Make the caller's call exit with ``reason``, as if the server had died.  Any thread.

        :raises erl_bridge.etf.EncodeError: the reason has no external form.
        """
        self.node.run_in_loop(self._fail, encode(reason))

    def _reply(self, payload: bytes) -> None:
        alias = alias_of(self.tag)
        pid = self._server.process.pid
        if alias is not None:
            self._peer.signal_encoded(Op.ALIAS_SEND, (pid, alias), payload)
        else:
            self._peer.send(self.pid, payload, pid)

    def _fail(self, reason: bytes) -> None:
        process = self._server.process
        for ref in self._monitors():
            if process.fire_monitor(ref, reason):
                return

    def _monitors(self) -> Iterator[Reference]:
        """Give what may be the caller's monitor on the server."""
        refs = [alias_of(self.tag), self.tag, self._newest]
        if isinstance(self.tag, ImproperList):
            refs.append(self.tag.tail)
        return (ref for ref in refs if isinstance(ref, Reference))


class GenHandler:
    """What a registered name does.  Override what it serves.

    The methods run in the event loop and may return an awaitable; calls of different
    callers then overlap.  Exceptions of :meth:`handle_call` reach the caller as the
    reason of its exit; those of the others are logged.
    """

    def handle_call(self, request: Any, caller: Caller) -> Awaitable[Any] | Any:
        """Return the reply, or :data:`NO_REPLY`.  Here: fail, the request is not known."""
        caller.fail((Atom("bad_call"), request))
        return NO_REPLY

    def handle_cast(self, message: Any, peer: str) -> Awaitable[None] | None:
        """Take a cast.  Here: nothing."""

    def handle_info(self, message: Any, peer: str) -> Awaitable[None] | None:
        """Take any other message.  Here: nothing."""

    def state(self) -> Any:
        """Return what ``sys:get_state`` shows.  Here: nothing, an empty map."""
        return {}

    def handle_stop(self, reason: Any) -> Any:  # noqa: ARG002  # for those who may be ended
        """Answer ``gen_server:stop``: ``ok``, and end soon.  Here: refuse, others use it.

        The reply has to leave before the process ends.
        """
        return NOT_SUPPORTED


class GenServer:
    """Takes a process's messages apart and gives them to a handler."""

    def __init__(self, node: Node, process: Process, handler: GenHandler, limit: int) -> None:
        self.node = node
        self.process = process
        self.handler = handler
        self._limit = limit

    def deliver(self, message: Any, peer: Peer) -> None:
        """Handle one message of a peer."""
        call = parse_call(message)
        if call is not None:
            pid, tag, request = call
            caller = Caller(self, peer, pid, tag)
            self._call(lambda: self.handler.handle_call(request, caller), caller, peer)
            return
        asked = parse_system(message)
        if asked is not None:
            pid, tag, request = asked
            caller = Caller(self, peer, pid, tag)
            self._call(lambda: system_answer(self, request), caller, peer)
            return
        cast = parse_cast(message)
        try:
            if cast is not None:
                result = self.handler.handle_cast(cast[0], peer.name)
            else:
                result = self.handler.handle_info(message, peer.name)
        except Exception:
            log.exception("%r failed on a message of %s", self.process, peer.name)
            return
        if inspect.isawaitable(result):
            if len(peer.requests) >= self._limit:
                log.warning("a message of %s is dropped: too much is running for it", peer.name)
                _close(result)
                return
            task = self.node.start_task(self._finish_message(result, peer.name))
            Request(peer, kept=True).runs_in(task)

    def _call(self, serve: Callable[[], Any], caller: Caller, peer: Peer) -> None:
        try:
            result = serve()
        except Exception as error:  # noqa: BLE001  # goes to the caller, and to the log
            self._answer(caller, failure(error, repr(self.process)))
            return
        if result is NO_REPLY:
            return
        if not inspect.isawaitable(result):
            self._answer(caller, Outcome(RETURN, result, []))
        elif len(peer.requests) >= self._limit:
            _close(result)
            caller.fail(_SYSTEM_LIMIT)
        else:
            Request(peer).runs_in(self.node.start_task(self._finish_call(result, caller)))

    async def _finish_call(self, awaitable: Awaitable[Any], caller: Caller) -> None:
        self._answer(caller, await finish(awaitable, repr(self.process)))

    async def _finish_message(self, awaitable: Awaitable[Any], peer: str) -> None:
        try:
            await awaitable
        except Exception:
            log.exception("%r failed on a message of %s", self.process, peer)

    def _answer(self, caller: Caller, outcome: Outcome) -> None:
        if outcome.value is NO_REPLY:
            return
        try:
            if outcome.class_ is RETURN or outcome.class_ is THROW:
                caller.reply(outcome.value)  # a throw out of a callback is its return value
            elif outcome.class_ is EXIT:
                caller.fail(outcome.value)
            else:
                caller.fail((outcome.value, outcome.stack))
        except EncodeError as error:
            log.exception("%r made a reply that is no term", self.process)
            caller.fail((Atom("unencodable"), str(error).encode()))


def _close(awaitable: Any) -> None:
    # An unstarted coroutine has to be closed, or Python complains that it was forgotten.
    if inspect.iscoroutine(awaitable):
        awaitable.close()
