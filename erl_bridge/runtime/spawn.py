"""SPAWN_REQUEST: how ``erpc``, ``rpc`` and ``spawn`` of other nodes reach our functions.

``erpc:call`` spawns ``erpc:execute_call(Res, M, F, A)`` here with a monitor, and reads the
result from the exit reason.  So a call is a process whose exit reason is the answer.  The
SPAWN_REPLY must be the first thing the peer hears of it: an exit of a pid that was never
announced makes a real node drop the connection.

What may be spawned is what the owner's handler serves, in one of three wrappings:

============================  ======================  ==============================
spawned                       arguments               exit reason
============================  ======================  ==============================
``erpc:execute_call/4``       ``[Res, M, F, A]``      the outcome, tagged with Res
``erpc:execute_cast/3``       ``[M, F, A]``           ``normal``
any other ``M:F/N``           ``A``                   ``normal`` or the failure
============================  ======================  ==============================

A fun arrives as ``erlang:apply/2``.  It is decoded and goes to the handler like any other
function, which knows no ``erlang:apply`` and answers ``undef``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from erl_bridge.etf import Atom, EncodeError, Pid, Reference
from erl_bridge.proto.control import (
    NO_PAYLOAD,
    SPAWN_LINKED,
    SPAWN_MONITORED,
    Control,
    Op,
    control_frame,
)
from erl_bridge.proto.errors import RemoteProtocolError
from erl_bridge.runtime import calls
from erl_bridge.runtime.calls import CallContext, Outcome
from erl_bridge.runtime.peer import Peer, Request
from erl_bridge.runtime.process import NOCONNECTION, NORMAL, Process

if TYPE_CHECKING:
    from erl_bridge.runtime.node import Node

__all__ = ("SpawnServer",)

log = logging.getLogger(__name__)

_LINK, _MONITOR = Atom("link"), Atom("monitor")
_BADOPT, _BADARG, _SYSTEM_LIMIT = Atom("badopt"), Atom("badarg"), Atom("system_limit")
_KILL, _KILLED = Atom("kill"), Atom("killed")

#: Options about heaps and schedulers, which we have none of: taken and ignored.
_IGNORED: Final = frozenset(
    map(
        Atom,
        (
            "fullsweep_after",
            "max_heap_size",
            "message_queue_data",
            "min_bin_vheap_size",
            "min_heap_size",
            "priority",
            "tag",
        ),
    )
)


class _Job(NamedTuple):
    """One spawn, unwrapped: the function and how its outcome becomes an exit reason."""

    module: str
    function: str
    args: list[Any]
    reason: Callable[[Outcome], Any]
    kept: bool
    """Runs on when the peer goes."""


class SpawnServer:
    """Answers spawn requests with the owner's functions."""

    def __init__(self, node: Node, max_requests: int) -> None:
        self._node = node
        self._max_requests = max_requests

    def request(self, peer: Peer, control: Control) -> None:
        """Serve one SPAWN_REQUEST."""
        req_id, from_pid, group_leader, mfa, options = control.fields
        flags = _flags(options)
        if flags is None:
            _refuse(peer, req_id, from_pid, _BADOPT)
            return
        if control.payload is NO_PAYLOAD:
            log.warning("a spawn request of %s is not taken: %s", peer.name, control.damaged)
            _refuse(peer, req_id, from_pid, _BADARG)
            return
        running = len(peer.requests)
        if running >= self._max_requests:
            if not peer.told_full:
                log.warning("%s has %d requests running, no more are taken", peer.name, running)
            peer.told_full = True
            _refuse(peer, req_id, from_pid, _SYSTEM_LIMIT)
            return
        if running < self._max_requests // 2:
            peer.told_full = False
        job = _unwrap(mfa, control.payload)
        if job is None:
            _refuse(peer, req_id, from_pid, _BADARG)
            return
        process = self._node.spawn_process()
        if flags & SPAWN_LINKED:
            process.linked(peer, from_pid)
        if flags & SPAWN_MONITORED:
            process.add_monitor(peer, from_pid, process.pid, req_id)
        watch = req_id if flags & SPAWN_MONITORED else None
        context = CallContext(self._node, peer.name, from_pid, group_leader, process, watch)
        # Lazy, so that an answer that is ready in this turn leaves in the same packet.
        reply = control_frame(Op.SPAWN_REPLY, req_id, from_pid, flags, process.pid)
        peer.connection.send(reply, lazy=True)
        outcome = calls.invoke(self._node.apply, context, job.module, job.function, job.args)
        if isinstance(outcome, Outcome):
            _end(process, job, outcome)
        else:
            self._start(peer, process, job, outcome)

    def _start(self, peer: Peer, process: Process, job: _Job, awaitable: Awaitable[Any]) -> None:
        request = Request(peer, kept=job.kept)

        async def run() -> None:
            what = f"{job.module}:{job.function}/{len(job.args)}"
            _end(process, job, await calls.finish(awaitable, what))

        def stopped(_pid: Pid, reason: Any) -> None:
            # Signals with reason normal do not kill, and kill itself is seen as killed.
            if reason is not NORMAL:
                process.exit(_KILLED if reason is _KILL else reason)
                request.cancel()

        def over(_task: asyncio.Task[None]) -> None:
            # Cancelled, since its peer went away: nobody hears of it, but it must not stay.
            if process.alive:
                process.exit(NOCONNECTION)

        process.on_exit = process.on_exit_request = stopped
        task = self._node.start_task(run())
        request.runs_in(task)
        task.add_done_callback(over)


def _flags(options: list[Any]) -> int | None:
    flags = 0
    for option in options:
        if option is _MONITOR:
            flags |= SPAWN_MONITORED
        elif option is _LINK:
            flags |= SPAWN_LINKED
        elif not (type(option) is tuple and len(option) == 2):
            return None
        elif option[0] is _MONITOR:
            flags |= SPAWN_MONITORED
        elif not isinstance(option[0], Atom) or option[0] not in _IGNORED:
            return None
    return flags


def _refuse(peer: Peer, req_id: Reference, from_pid: Pid, reason: Atom) -> None:
    peer.signal(Op.SPAWN_REPLY, (req_id, from_pid, 0, reason))


def _unwrap(mfa: tuple[Any, ...], args: Any) -> _Job | None:
    """Return what to run, or None when it is not a function with a list of arguments."""
    match mfa:  # a tuple, as the control table has it
        case (Atom() as module, Atom() as function, int() as arity):
            pass
        case _:
            raise RemoteProtocolError("a spawn request without module, function and arity")
    if type(args) is not list or len(args) != arity:
        return None
    match module.name, function.name, args:
        case "erpc", "execute_call", [Reference() as result, *call]:
            return _inner(call, lambda outcome: calls.erpc_reason(result, outcome), kept=False)
        case "erpc", "execute_cast", call:
            return _inner(call, lambda _outcome: NORMAL, kept=True)
        case "erpc", _, _:
            return None
    return _Job(module.name, function.name, args, calls.exit_reason, kept=True)


def _inner(call: list[Any], reason: Callable[[Outcome], Any], *, kept: bool) -> _Job | None:
    match call:
        case [Atom() as module, Atom() as function, list() as args]:
            return _Job(module.name, function.name, args, reason, kept)
    return None


def _end(process: Process, job: _Job, outcome: Outcome) -> None:
    reason = job.reason(outcome)
    try:
        process.exit(reason)
    except EncodeError as error:
        log.exception("%s:%s/%d returned no term", job.module, job.function, len(job.args))
        text = (Atom("unencodable"), str(error).encode())
        process.exit(job.reason(Outcome(calls.ERROR, text, [])))
