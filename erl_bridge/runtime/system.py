"""System messages: what ``sys``, ``gen_server:stop`` and tools ask of any OTP process.

Whoever asks waits, five seconds or for ever, because every ``gen`` process answers.  So
does every server here, with what it tells of itself:

==============================  ======================================================
asked by                        answer
==============================  ======================================================
``sys:get_state``               ``{ok, State}``, the handler's; OTP 28 takes it apart,
                                OTP 25, whose own processes say the state alone, does not
``sys:get_status``              the tuple ``gen_server`` gives, with that state
``sys:resume``, ``no_debug``    ``ok``: nothing is suspended, and nothing traced
``gen_server:stop``             the handler's: some may be ended by peers
what changes a process          ``{error, not_supported}``: others use it, too
anything else                   ``{error, {unknown_system_msg, Request}}``
==============================  ======================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from erl_bridge.etf import Atom, Pid

if TYPE_CHECKING:
    from erl_bridge.runtime.gen import GenServer

__all__ = ("NOT_SUPPORTED", "parse_system", "system_answer")

_OK: Final = Atom("ok")
_ERROR: Final = Atom("error")
_SYSTEM: Final = Atom("system")
_RUNNING: Final = Atom("running")
_DATA: Final = Atom("data")
_GEN_SERVER: Final = Atom("gen_server")

NOT_SUPPORTED: Final = (_ERROR, Atom("not_supported"))
"""The answer to what a peer may not do."""


def parse_system(message: Any) -> tuple[Pid, Any, Any] | None:
    """Return (pid, tag, request) of a system message, or None for any other."""
    match message:
        case tuple((Atom() as kind, tuple((Pid() as pid, tag)), request)) if kind is _SYSTEM:
            return pid, tag, request
    return None


def system_answer(server: GenServer, request: Any) -> Any:
    """Return the answer to a system message."""
    match request:
        case Atom(name="get_state"):
            return _OK, server.handler.state()
        case Atom(name="get_status"):
            return _status(server)
        case Atom(name="resume") | tuple((Atom(name="debug"), Atom(name="no_debug"))):
            return _OK
        case tuple((Atom(name="terminate"), reason)):
            return server.handler.handle_stop(reason)
        case (
            Atom(name="suspend")
            | tuple((Atom(name="replace_state" | "debug"), _))
            | tuple((Atom(name="change_code"), *_))
        ):
            return NOT_SUPPORTED
    return _ERROR, (Atom("unknown_system_msg"), request)


def _status(server: GenServer) -> Any:
    process, parent = server.process, server.node.process.pid
    name = process.name or f"<{process.pid.id}.{process.pid.serial}>"
    about = [
        (Atom("header"), _chars(f"Status for generic server {name}")),
        (_DATA, [(_chars("Status"), _RUNNING), (_chars("Parent"), parent)]),
        (_DATA, [(_chars("State"), server.handler.state())]),
    ]
    whole: list[Any] = [[], _RUNNING, parent, [], about]
    return Atom("status"), process.pid, (Atom("module"), _GEN_SERVER), whole


def _chars(text: str) -> list[int]:
    return [ord(char) for char in text]
